"""Every log is a line of metrics.jsonl, and the bar is fed from it; by the main process alone."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from dpo_recipes.progress import TrainingBar
from dpo_recipes.training.metrics_log import MetricsLog

LOGS = {"loss": 0.6543, "rewards/accuracies": 0.75, "rewards/margins": 0.01234, "grad_norm": 1.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def make_log(path, terminal: bool = False) -> tuple[MetricsLog, io.StringIO]:
    """(the callback, what it shows)."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, force_interactive=terminal, width=120, color_system=None)
    return MetricsLog(path, TrainingBar(console, {"loss": "loss", "rewards/margins": "margin"})), out


def state(step: int, main: bool = True) -> SimpleNamespace:
    """The Trainer's state at a step of 20."""
    return SimpleNamespace(max_steps=20, global_step=step, is_world_process_zero=main)


def test_every_log_is_one_line_with_its_step(path):
    log, _ = make_log(path)
    for step in (1, 2, 3):
        log.on_log(None, state(step), None, logs={"loss": step / 8, "words": "a\nb"})
        assert len(path.read_text().split("\n")) == step + 1  # on disk at once
    log.on_log(None, state(3), None, logs={})
    log.on_log(None, state(3), None, logs=None)

    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert rows == [{"step": step, "loss": step / 8, "words": "a\nb"} for step in (1, 2, 3)]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_bar_begins_with_the_run_and_shows_each_log(path, terminal):
    log, out = make_log(path, terminal)
    log.on_train_begin(None, state(0), None)
    log.on_log(None, state(20), None, logs=LOGS)
    log.bar.close()
    assert "20/20" in out.getvalue()
    assert "loss 0.654  margin 0.0123" in out.getvalue()


CPU = SimpleNamespace(device=SimpleNamespace(type="cpu"), gradient_accumulation_steps=2)


def test_a_step_has_its_pace_and_memory_and_the_end_those_of_the_run(path, monkeypatch):
    # A step of 2 s, half a second more until a GPU has done it, 8 s of evaluation, a step of 1 s
    clock = iter([0.0, 2.0, 2.5, 10.5, 11.5, 11.5])
    monkeypatch.setattr("dpo_recipes.training.metrics_log.time.perf_counter", lambda: next(clock))
    log, _ = make_log(path)
    for step, tokens in ((1, 1000), (2, 1600)):
        log.on_step_begin(CPU, state(step), None)
        log.on_step_end(CPU, state(step), None)
        log.on_log(CPU, state(step), None, logs={"loss": 0.5, "num_tokens": tokens})
        log.on_log(CPU, state(step), None, logs={"eval_loss": 0.5, "eval_num_tokens": 9})
    log.on_log(CPU, state(2), None, logs={"train_runtime": 11.2, "train_loss": 0.5})

    first, evaluation, second, _, whole = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row.get("tokens_per_second") for row in (first, evaluation, second, whole)] == [400.0, None, 600.0, 457.1]
    assert "memory_bytes" not in evaluation
    assert 10e6 < first["memory_bytes"] <= whole["memory_bytes"] < 100e9
    assert log.closing_words.startswith("Trained 2 steps in 0:00:11: 457 tokens a second, ")
    assert log.closing_words.endswith(" GB of memory at most.")


def test_the_bar_moves_with_every_micro_batch(path):
    log, _ = make_log(path)
    moved = []
    log.bar.part = lambda step, steps: moved.append((step, steps))
    log.on_step_begin(CPU, state(3), None)
    log.on_substep_end(CPU, state(3), None)
    assert moved == [(3.5, 20)]


@pytest.mark.parametrize("terminal", [False, True])
def test_only_the_main_process_writes_and_shows(path, terminal):
    log, out = make_log(path, terminal)
    log.on_train_begin(None, state(0, main=False), None)
    log.on_log(None, state(20, main=False), None, logs=LOGS)
    log.bar.close()
    assert not path.exists()
    assert out.getvalue() == ""

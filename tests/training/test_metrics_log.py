"""Every log is a line of metrics.jsonl, and the bar is fed from it; by the main process alone."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from dpo_recipes.terminal import TrainingBar
from dpo_recipes.training.metrics_log import MetricsLog

LOGS = {"loss": 0.6543, "rewards/accuracies": 0.75, "rewards/margins": 0.01234, "grad_norm": 1.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def make_log(path, terminal: bool = False) -> tuple[MetricsLog, io.StringIO]:
    """(the callback, what it shows)."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
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


@pytest.mark.parametrize("terminal", [False, True])
def test_only_the_main_process_writes_and_shows(path, terminal):
    log, out = make_log(path, terminal)
    log.on_train_begin(None, state(0, main=False), None)
    log.on_log(None, state(20, main=False), None, logs=LOGS)
    log.bar.close()
    assert not path.exists()
    assert out.getvalue() == ""

"""What a run shows: a few lines or a bar while it goes, every number in metrics.jsonl."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dpo_recipes.training import progress

LOGS = {"loss": 0.6543, "rewards/accuracies": 0.75, "rewards/margins": 0.01234, "grad_norm": 1.0}


def show(steps: int, logs=LOGS, every: int = 1, terminal: bool = False, main: bool = True) -> str:
    """All that a run of so many steps writes to its console."""
    out = io.StringIO()
    bar = progress.Bar(Console(file=out, force_terminal=terminal, width=120, color_system=None), Path(os.devnull))
    state = SimpleNamespace(max_steps=steps, global_step=0, is_world_process_zero=main)
    bar.on_train_begin(None, state, None)
    for step in range(every, steps + 1, every):
        state.global_step = step
        bar.on_log(None, state, None, logs=dict(logs) if logs is not None else None)
    bar.on_log(None, state, None, logs={"train_runtime": 3.0, "train_loss": 0.6})
    bar.close()
    bar.close()
    return out.getvalue()


@pytest.mark.parametrize(
    ("steps", "every", "at"),
    [
        (100, 1, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (95, 1, [10, 19, 29, 38, 48, 57, 67, 76, 86, 95]),
        (3, 1, [1, 2, 3]),
        (1, 1, [1]),
        (1000, 300, [300, 600, 900]),
    ],
)
def test_a_log_file_gets_about_ten_lines(steps, every, at):
    lines = show(steps, every=every).splitlines()
    assert lines == [f"step {step}/{steps}  loss 0.654  accuracy 0.75  margin 0.0123" for step in at]


def test_logs_without_the_numbers_of_dpo_are_passed_over():
    assert (
        show(10, logs=None) == show(10, logs={}) == show(10, logs={"eval_loss": 0.5, "eval_rewards/margins": 1.0}) == ""
    )
    assert show(1, logs={"rewards/margins": 0.5}) == "step 1/1  margin 0.5\n"
    assert show(1, logs={"rewards/margins": float("nan"), "loss": 1e-9}) == "step 1/1  loss 1e-09  margin nan\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_only_the_main_process_writes(terminal):
    assert show(20, terminal=terminal, main=False) == ""


def test_a_run_of_no_known_length_does_not_divide_by_zero():
    bar = progress.Bar(Console(file=io.StringIO(), width=120), Path(os.devnull))
    bar.on_log(None, SimpleNamespace(max_steps=0, global_step=1, is_world_process_zero=True), None, logs=LOGS)
    assert bar.line == 10


def test_a_terminal_gets_a_bar_with_the_numbers_and_the_steps():
    said = show(7, terminal=True)
    assert "loss 0.654  accuracy 0.75  margin 0.0123" in said
    assert re.search(r"training .*7/7", said) and "left" in said
    assert "step 7/7" not in said  # no lines beside the bar


def test_a_bar_is_closed_once_and_closing_without_one_is_nothing():
    bar = progress.Bar(Console(file=io.StringIO(), force_terminal=True, width=120), Path(os.devnull))
    bar.close()
    bar.on_train_begin(None, SimpleNamespace(max_steps=3, is_world_process_zero=True), None)
    inner = bar.bar
    assert inner is not None and inner.live.is_started
    bar.close()
    bar.close()
    assert bar.bar is None and not inner.live.is_started


# ------------------------------------------------------------------------------------------------------------ metrics


def test_every_log_is_one_line_with_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = progress.Bar(Console(file=io.StringIO()), path)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    for step in (1, 2, 3):
        state.global_step = step
        file.on_log(None, state, None, logs={"loss": step / 8, "words": "a\nb"})
        assert len(path.read_text().split("\n")) == step + 1  # on disk at once
    file.on_log(None, state, None, logs={})
    file.on_log(None, state, None, logs=None)
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert rows == [{"step": step, "loss": step / 8, "words": "a\nb"} for step in (1, 2, 3)]


def test_other_processes_write_no_metrics(tmp_path):
    file = progress.Bar(Console(file=io.StringIO()), tmp_path / "metrics.jsonl")
    file.on_log(None, SimpleNamespace(global_step=1, is_world_process_zero=False), None, logs=LOGS)
    assert not (tmp_path / "metrics.jsonl").exists()

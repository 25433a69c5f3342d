"""What a person sees: about ten lines in a log file, a bar in a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from dpo_recipes.terminal import TrainingBar

# ------------------------------------------------------------------------------------------------- the training bar

WORDS = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
METRICS = {"loss": 0.6543, "rewards/accuracies": 0.75, "rewards/margins": 0.01234, "grad_norm": 1.0}


def make_bar(out: io.StringIO, terminal: bool = False) -> TrainingBar:
    return TrainingBar(Console(file=out, force_terminal=terminal, width=120, color_system=None), WORDS)


def show(steps: int, metrics=METRICS, every: int = 1, terminal: bool = False) -> str:
    """All that a run of so many steps, logged `every` so often, writes to its console."""
    out = io.StringIO()
    bar = make_bar(out, terminal)
    bar.begin(steps)
    for step in range(every, steps + 1, every):
        bar.show(step, steps, metrics)
    bar.show(steps, steps, {"train_runtime": 3.0, "train_loss": 0.6})
    bar.close()
    return out.getvalue()


@pytest.mark.parametrize(
    ("steps", "every", "shown"),
    [
        (100, 1, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (95, 1, [10, 19, 29, 38, 48, 57, 67, 76, 86, 95]),
        (3, 1, [1, 2, 3]),
        (1, 1, [1]),
        (1000, 300, [300, 600, 900]),
    ],
)
def test_a_log_file_gets_about_ten_lines(steps, every, shown):
    lines = show(steps, every=every).splitlines()
    assert lines == [f"step {step}/{steps}  batch: loss 0.654  accuracy 0.75  margin 0.0123" for step in shown]


@pytest.mark.parametrize("metrics", [{}, {"eval_loss": 0.5, "eval_rewards/margins": 1.0}, {"grad_norm": 1.0}])
@pytest.mark.parametrize("terminal", [False, True])
def test_metrics_without_a_word_are_passed_over(metrics, terminal):
    if terminal:
        assert "0/10" in show(10, metrics, terminal=True)
    else:
        assert show(10, metrics) == ""


def test_the_metrics_that_there_are_are_shown_in_the_order_of_the_words():
    assert show(1, {"rewards/margins": 0.5}) == "step 1/1  batch: margin 0.5\n"
    assert show(1, {"rewards/margins": float("nan"), "loss": 1e-9}) == "step 1/1  batch: loss 1e-09  margin nan\n"


def test_a_run_of_no_known_length_does_not_divide_by_zero():
    out = io.StringIO()
    make_bar(out).show(1, 0, METRICS)
    assert out.getvalue().startswith("step 1/0  batch: loss")


def test_a_terminal_gets_a_bar_with_the_numbers_and_the_steps():
    shown = show(7, terminal=True)
    assert "batch: loss 0.654  accuracy 0.75  margin 0.0123" in shown
    assert re.search(r"training .*7/7", shown)
    assert "left" in shown
    assert "step 7/7" not in shown  # no lines beside the bar


def test_a_bar_is_closed_once_and_closing_without_one_is_nothing():
    bar = make_bar(io.StringIO(), terminal=True)
    bar.close()
    bar.begin(3)
    progress = bar.progress
    assert progress.live.is_started

    bar.close()
    bar.close()
    assert bar.progress is None
    assert not progress.live.is_started

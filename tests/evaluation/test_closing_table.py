"""The closing table, as it is printed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dpo_recipes.evaluation.closing_table import compared
from dpo_recipes.evaluation.held_out import METRICS
from dpo_recipes.result_tables import comparison_table

AFTER = {
    "pairs": 64,
    "loss": 0.51234,
    "rewards/accuracies": 0.78125,
    "rewards/accuracies_interval": [0.6657, 0.8651],
    "rewards/margins": 0.25,
    "rewards/margins_stderr": 0.0125,
    "logps/chosen_change_per_token": -0.5,
    "logps/rejected_change_per_token": -0.75,
    "reward": 1.25,
    "reward_stderr": 0.0625,
    "win_rate": 0.75,
    "win_rate_stderr": 0.03125,
    "kl": 0.875,
    "kl_stderr": 0.125,
    "best_reward_at_kl": 1.5,
    "logps/chosen": -88.0,
    "entropy": 2.0,
}
BEFORE = {
    "pairs": 64,
    "loss": 0.693147,
    "rewards/accuracies": 0.5,
    "rewards/margins": 0.0,
    "reward": 0.125,
    "logps/chosen_change_per_token": 0.0,
    "logps/rejected_change_per_token": 0.0,
    "win_rate": 0.5,
    "kl": 0.0,
}


NAMES = {metric.words: metric.name for metric in METRICS}


def cells(before, after, width=160) -> list[list[str]]:
    """The rows of the closing table as they are printed, by the name of their metric."""
    out = io.StringIO()
    shown = comparison_table(after["pairs"], compared(before, after))
    Console(file=out, width=width).print(shown)
    body = [line for line in out.getvalue().splitlines() if line.startswith("│")]
    rows = []
    for line in body:
        rows.append([cell.strip() for cell in line.split("│")[1:-1]])
    assert len(rows) == shown.row_count
    assert f"Held out: {after['pairs']} pairs" in out.getvalue()
    return [[NAMES.get(words, words), *rest] for words, *rest in rows]


@pytest.mark.parametrize("width", [80, 160])
def test_the_closing_table_has_each_number_with_its_interval_or_error_and_fits_a_terminal(width):
    assert cells(BEFORE, AFTER, width) == [
        ["loss", "0.6931", "0.5123", ""],
        ["rewards/accuracies", "50.0%", "78.1%", "66.6% to 86.5%"],
        ["rewards/margins", "+0.0000", "+0.2500", "+- 0.0125"],
        ["logps/chosen_change_per_token", "+0.0000", "-0.5000", ""],
        ["logps/rejected_change_per_token", "+0.0000", "-0.7500", ""],
        ["reward", "+0.125", "+1.250", "+- 0.062"],
        ["win_rate", "0.500", "0.750", "+- 0.031"],
        ["kl", "0.000", "0.875", "+- 0.125"],
        ["best_reward_at_kl", "", "+1.500", ""],
    ]


def test_the_table_shows_what_there_is_and_nothing_else():
    assert cells({}, {"pairs": 3, "entropy": 2.0, "logps/chosen": -1.0}) == []
    assert cells(BEFORE, {"pairs": 3, "kl": 0.25}) == [["kl", "0.000", "0.250", ""]]


@pytest.mark.parametrize("error", [None, 0.0])
def test_an_error_that_is_nothing_is_left_out(error):
    after = {"pairs": 1, "rewards/margins": 0.5, "rewards/margins_stderr": error, "kl": 0.0, "kl_stderr": error}
    assert [row[3] for row in cells(BEFORE, after)] == ["", ""]


def test_a_measure_named_like_markup_is_printed_as_it_is_named():
    after = {"pairs": 3, "measures/[bold] length": 4.0, "measures/[bold] length_stderr": 0.5}
    assert cells({"measures/[bold] length": 2.0}, after) == [["[bold] length", "2.000", "4.000", "+- 0.500"]]


def test_a_number_that_a_runs_file_could_not_hold_is_said_in_the_table():
    before = {"loss": 0.7, "rewards/accuracies": 0.5}
    after = {"loss": None, "rewards/accuracies": None, "rewards/accuracies_interval": [None, None]}
    rows = compared(before, after)
    assert [(row.before, row.after, row.spread) for row in rows] == [
        ("0.7000", "not finite", ""),
        ("50.0%", "not finite", ""),
    ]

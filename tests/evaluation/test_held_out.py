"""Held-out numbers against arithmetic done by hand, and the table of metrics as it is printed."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
import torch
from rich.console import Console

from dpo_recipes.evaluation.held_out import METRICS, TRL_MEANS, compared, held_out, wilson
from dpo_recipes.losses.pair_logps import PairLogps
from dpo_recipes.terminal import comparison_table


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(successes, trials, low, high):
    assert wilson(successes, trials) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("successes", "trials"), [(0.5, 1), (7.5, 10), (12.5, 64), (63.5, 64)])
def test_wilsons_ends_are_where_the_score_test_is_at_its_limit_with_ties_as_halves(successes, trials):
    p = successes / trials
    low, high = wilson(successes, trials)
    assert 0 < low < p < high < 1
    for end in (low, high):
        assert (p - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / trials, rel=1e-9)
    mirrored = wilson(trials - successes, trials)
    assert (1 - mirrored[1], 1 - mirrored[0]) == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))


@pytest.mark.parametrize("trials", [1, 2, 7, 1000, 10**6])
def test_no_interval_leaves_0_to_1(trials):
    low, high = wilson(0, trials)
    assert 0.0 <= low < 1e-12 < high < 1.0
    low, high = wilson(trials, trials)
    assert 0.0 < low < 1 - 1e-12 < high <= 1.0


def four() -> PairLogps:
    """Margins of 2.5, -1, 0 (a tie) and 4 nats."""
    double = torch.float64
    return PairLogps(
        policy_chosen=torch.tensor([-10.0, -20.0, -30.0, -5.0], dtype=double),
        policy_rejected=torch.tensor([-12.0, -18.0, -31.0, -11.0], dtype=double),
        reference_chosen=torch.tensor([-11.0, -19.5, -30.0, -6.0], dtype=double),
        reference_rejected=torch.tensor([-10.5, -18.5, -31.0, -8.0], dtype=double),
        chosen_tokens=torch.tensor([5, 10, 20, 2], dtype=double),
        rejected_tokens=torch.tensor([4, 8, 16, 4], dtype=double),
    )


def moved() -> PairLogps:
    """The pairs of `four` after an update of one chosen and one rejected side."""
    pairs = four()
    pairs.policy_chosen[0] += 3.7
    pairs.policy_rejected[3] -= 1.6
    return pairs


def test_held_out_numbers_are_those_done_by_hand():
    metrics = {"loss": 0.61, "entropy": 1.25, "logits/chosen": 3.0, "runtime": 9.0, "rewards/accuracies": 0.123}
    numbers = held_out(metrics, four(), 0.2, moved(), same_start=False)
    margins = [0.5, -0.2, 0.0, 0.8]  # beta h
    mean = 1.1 / 4
    standard_deviation = math.sqrt(sum((margin - mean) ** 2 for margin in margins) / 3)
    expected = {
        "pairs": 4,
        "loss": 0.61,
        "rewards/accuracies": 2.5 / 4,
        "rewards/accuracies_interval": list(wilson(2.5, 4)),
        "rewards/margins": mean,
        "rewards/margins_stderr": standard_deviation / 2,
        "rewards/chosen": 0.2 * (1 - 0.5 + 0 + 1) / 4,
        "rewards/rejected": 0.2 * (-1.5 + 0.5 + 0 - 3) / 4,
        "logps/chosen": -65 / 4,
        "logps/rejected": -72 / 4,
        "logps/chosen_change_per_token": -3.7 / 37,
        "logps/rejected_change_per_token": 1.6 / 32,
        "entropy": 1.25,
        "logits/chosen": 3.0,
    }
    assert set(numbers) == set(expected)
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, rel=1e-12), name
    difference = numbers["rewards/chosen"] - numbers["rewards/rejected"]
    assert numbers["rewards/margins"] == pytest.approx(difference, rel=1e-12)


def test_one_pair_has_no_standard_error():
    pair = four().map(lambda tensor: tensor[:1])
    numbers = held_out({"loss": 0.5}, pair, 0.1, pair, same_start=False)
    assert numbers["rewards/margins_stderr"] is None
    assert numbers["rewards/accuracies"] == 1.0
    assert numbers["rewards/accuracies_interval"][0] == pytest.approx(0.2065, abs=5e-5)


def test_rewards_scale_with_beta_and_log_probabilities_do_not():
    small = held_out({"loss": 0.5}, four(), 0.1, four(), same_start=False)
    large = held_out({"loss": 0.5}, four(), 1.0, four(), same_start=False)
    for name in ("rewards/margins", "rewards/margins_stderr", "rewards/chosen", "rewards/rejected"):
        assert large[name] == pytest.approx(10 * small[name], rel=1e-12)
    for name in ("rewards/accuracies", "logps/chosen"):
        assert large[name] == small[name]


def test_changes_are_counted_from_the_start_of_training_not_from_the_reference():
    numbers = held_out({"loss": 0.5}, moved(), 0.1, four())
    assert numbers["logps/chosen_change_per_token"] == pytest.approx(3.7 / 37, rel=1e-12)
    assert numbers["logps/rejected_change_per_token"] == pytest.approx(-1.6 / 32, rel=1e-12)
    unmoved = held_out({"loss": 0.5}, four(), 0.1, four())
    assert unmoved["logps/chosen_change_per_token"] == unmoved["logps/rejected_change_per_token"] == 0


def test_rounding_of_equal_models_is_a_tie_before_and_after():
    def accuracy(pairs: PairLogps, same_start: bool = True) -> float:
        return held_out({"loss": 0.5}, pairs, 0.1, start, same_start)["rewards/accuracies"]

    pairs = four()
    rounding = torch.tensor([1e-6, -2e-6, 3e-6, 0.0], dtype=torch.float64)
    start = dataclasses.replace(
        pairs, reference_chosen=pairs.policy_chosen - rounding, reference_rejected=pairs.policy_rejected
    )
    assert accuracy(start) == 0.5
    assert accuracy(start, same_start=False) == 2.5 / 4

    change = torch.tensor([1.0, -1.0, 2e-6, 1.0], dtype=torch.float64)
    end = dataclasses.replace(start, policy_chosen=start.reference_chosen + change)
    assert accuracy(end) == 2.5 / 4


# -------------------------------------------------------------------------------------------------- table of metrics

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
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in body]
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


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_says_what_it_is_how_it_is_written_and_when_to_worry(metric):
    assert metric.name and metric.words and metric.short != ""
    assert float(format(0.5, metric.form).rstrip("%")) > 0
    assert metric.direction in ("up", "down", "either")
    for sentence in (metric.alarm, metric.meaning):
        assert sentence[0].isupper() and sentence.endswith(".") and ". " not in sentence


def test_every_number_of_the_held_out_pairs_has_one_row():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names) == len({metric.words for metric in METRICS})
    metrics = dict.fromkeys([*TRL_MEANS, "loss"], 0.5)
    numbers = held_out(metrics, moved(), 0.1, four())
    assert {name for name in numbers if not name.endswith(("_interval", "_stderr"))} - {"pairs"} <= set(names)


def test_the_progress_bar_shows_loss_accuracy_and_margin():
    shown = [(metric.name, metric.short) for metric in METRICS if metric.short]
    assert shown == [("loss", "loss"), ("rewards/accuracies", "accuracy"), ("rewards/margins", "margin")]


def test_a_number_that_a_runs_file_could_not_hold_is_said_in_the_table():
    before = {"loss": 0.7, "rewards/accuracies": 0.5}
    after = {"loss": None, "rewards/accuracies": None, "rewards/accuracies_interval": [None, None]}
    rows = compared(before, after)
    assert [(row.before, row.after, row.spread) for row in rows] == [
        ("0.7000", "not finite", ""),
        ("50.0%", "not finite", ""),
    ]

"""Numbers of held-out pairs against arithmetic done by hand."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from making import make_start_pair_logps

from dpo_recipes.evaluation.held_out import METRICS, SPREADS, TRL_MEANS
from dpo_recipes.evaluation.intervals import wilson
from dpo_recipes.evaluation.pair_numbers import as_its_reference, at_its_start, pair_numbers
from dpo_recipes.losses.pair_logps import PairLogps


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
    numbers = pair_numbers(metrics, four(), 0.2, moved(), same_start=False)
    margins = [0.5, -0.2, 0.0, 0.8]  # beta h
    mean = 1.1 / 4
    standard_deviation = math.sqrt(sum((margin - mean) ** 2 for margin in margins) / 3)
    confidences = [1 / (1 + math.exp(-abs(margin))) for margin in margins]
    variances = [confidence * (1 - confidence) for confidence in confidences]
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
        # The chosen side is longer in all but the last
        "rewards/accuracies_length_controlled": ((1 + 0 + 0.5) / 3 + 1) / 2,
        "rewards/confidence": sum(confidences) / 4,
        # In bins of 0.05: a tie and a pair the wrong way round at 0.50 and 0.549, right ones at 0.62 and 0.69
        "rewards/calibration_error": (2 * ((confidences[1] + 0.5) / 2 - 0.25) + 2 - confidences[0] - confidences[3])
        / 4,
        "rewards/calibration_error_by_chance": math.sqrt(2 / math.pi)
        * (2 * math.sqrt((variances[1] + variances[2]) / 2 / 2) + math.sqrt(variances[0]) + math.sqrt(variances[3]))
        / 4,
        "perplexity/chosen": math.exp(65 / 37),
        "perplexity/chosen_reference": math.exp(66.5 / 37),
        "entropy": 1.25,
        "logits/chosen": 3.0,
    }
    others = {"reliability", "rewards/accuracies_length_controlled_interval"}
    assert set(numbers) == set(expected) | others
    assert [(row["ranked_as_labelled"], row["pairs"]) for row in numbers["reliability"]] == [
        (0.25, 2),
        (1.0, 1),
        (1.0, 1),
    ]
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, rel=1e-12), name
    difference = numbers["rewards/chosen"] - numbers["rewards/rejected"]
    assert numbers["rewards/margins"] == pytest.approx(difference, rel=1e-12)


def test_one_pair_has_no_standard_error():
    pair = four().map(lambda tensor: tensor[:1])
    numbers = pair_numbers({"loss": 0.5}, pair, 0.1, pair, same_start=False)
    assert numbers["rewards/margins_stderr"] is None
    assert numbers["rewards/accuracies"] == 1.0 and "rewards/accuracies_length_controlled" not in numbers
    assert numbers["rewards/accuracies_interval"][0] == pytest.approx(0.2065, abs=5e-5)


def test_rewards_scale_with_beta_and_log_probabilities_do_not():
    small = pair_numbers({"loss": 0.5}, four(), 0.1, four(), same_start=False)
    large = pair_numbers({"loss": 0.5}, four(), 1.0, four(), same_start=False)
    for name in ("rewards/margins", "rewards/margins_stderr", "rewards/chosen", "rewards/rejected"):
        assert large[name] == pytest.approx(10 * small[name], rel=1e-12)
    for name in ("rewards/accuracies", "logps/chosen"):
        assert large[name] == small[name]


def test_changes_are_counted_from_the_start_of_training_not_from_the_reference():
    numbers = pair_numbers({"loss": 0.5}, moved(), 0.1, four())
    assert numbers["logps/chosen_change_per_token"] == pytest.approx(3.7 / 37, rel=1e-12)
    assert numbers["logps/rejected_change_per_token"] == pytest.approx(-1.6 / 32, rel=1e-12)
    unmoved = pair_numbers({"loss": 0.5}, four(), 0.1, four())
    assert unmoved["logps/chosen_change_per_token"] == unmoved["logps/rejected_change_per_token"] == 0


def test_rounding_of_equal_models_is_a_tie_before_and_after():
    def accuracy(pairs: PairLogps, same_start: bool = True) -> float:
        return pair_numbers({"loss": 0.5}, pairs, 0.1, start, same_start)["rewards/accuracies"]

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


def test_every_number_of_the_held_out_pairs_has_one_row():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names) == len({metric.words for metric in METRICS})
    numbers = pair_numbers(dict.fromkeys([*TRL_MEANS, "loss"], 0.5), moved(), 0.1, four())
    assert {name for name in numbers if not name.endswith(SPREADS)} - {"pairs", "reliability"} <= set(names)


def test_a_policy_that_was_trained_elsewhere_starts_as_its_reference():
    start = as_its_reference(four())
    numbers = pair_numbers({}, start, 0.1, start, same_start=False)
    assert "loss" not in numbers and numbers["rewards/accuracies"] == 0.5 and numbers["rewards/margins"] == 0
    assert numbers["perplexity/chosen"] == numbers["perplexity/chosen_reference"]
    now = pair_numbers({"loss": 0.5}, four(), 0.1, start, same_start=False)
    assert now["logps/chosen_change_per_token"] == pytest.approx((1 - 0.5 + 0 + 1) / 37, rel=1e-12)


def test_pairs_of_one_prompt_are_worth_less_than_pairs_of_four():
    alone = pair_numbers({"loss": 0.5}, four(), 0.2, four(), same_start=False)
    same = pair_numbers({"loss": 0.5}, four(), 0.2, four(), same_start=False, groups=["p", "q", "q", "p"])
    assert same["rewards/margins"] == alone["rewards/margins"]
    sums = [0.5 + 0.8 - 2 * 1.1 / 4, -0.2 - 2 * 1.1 / 4]  # of the deviations of each prompt's margins
    assert same["rewards/margins_stderr"] == pytest.approx(math.sqrt(2 * (sums[0] ** 2 + sums[1] ** 2)) / 4, rel=1e-12)
    low, high = same["rewards/accuracies_interval"]
    assert low < alone["rewards/accuracies_interval"][0] and high > alone["rewards/accuracies_interval"][1]


def test_where_tokens_count_less_behind_the_shorter_side_there_is_no_perplexity():
    numbers = pair_numbers({"loss": 0.5}, four(), 0.2, four(), same_start=False, whole=False)
    assert not [name for name in numbers if name.startswith("perplexity")]


def test_a_policy_that_was_read_after_training_alone_began_as_its_own_reference():
    """As under DeepSpeed and FSDP, which make its parts when training begins."""
    trained = make_start_pair_logps(chosen_gap=3.0, rejected_gap=-1.0)
    trainer = SimpleNamespace(
        eval_dataset=Dataset.from_dict({"prompt_ids": [[pair] for pair in range(4)]}),
        recipe=SimpleNamespace(beta=0.1),
        health=SimpleNamespace(same_start=True),
        ld_alpha=None,
    )
    before, after = at_its_start(trainer, {"loss": 0.6}, trained)
    assert before["rewards/margins"] == 0.0 and before["rewards/accuracies"] == 0.5
    assert after["rewards/margins"] == pytest.approx(0.1 * 4 / 4) and after["loss"] == 0.6
    assert after["logps/chosen_change_per_token"] == pytest.approx(3 / 40)

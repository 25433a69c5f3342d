"""Calibration and accuracy apart from length, where both are known."""

from __future__ import annotations

import pytest
import torch

from dpo_recipes.evaluation.rankings import calibration, length_controlled
from dpo_recipes.losses.pair_logps import PairLogps


def pairs_with(h, longer=None) -> PairLogps:
    """Pairs of these differences of log-ratios, nats; `longer`: tokens of the chosen side beyond the rejected one's."""
    h = torch.as_tensor(h, dtype=torch.float64)
    nothing = torch.zeros_like(h)
    longer = nothing if longer is None else torch.as_tensor(longer, dtype=torch.float64)
    return PairLogps(
        policy_chosen=h,
        policy_rejected=nothing,
        reference_chosen=nothing,
        reference_rejected=nothing,
        chosen_tokens=50 + longer,
        rejected_tokens=50 + nothing,
    )


def drawn(scale: float, seed: int, count: int = 4000) -> tuple[PairLogps, torch.Tensor]:
    """(pairs, how they are ranked) of a policy whose sigmoid(h) is `scale` times as sure as it is right."""
    draw = torch.Generator().manual_seed(seed)
    size = 4 * torch.rand(count, generator=draw, dtype=torch.float64)
    right = torch.rand(count, generator=draw, dtype=torch.float64) < torch.sigmoid(size)
    return pairs_with(scale * size * torch.where(right, 1.0, -1.0)), right.double()


def test_a_calibrated_policy_has_the_error_that_chance_makes_and_a_sure_one_more():
    errors, by_chance = [], []
    for seed in range(40):
        error, expected, _ = calibration(*with_beta(drawn(1.0, seed, count=200)))
        errors.append(error)
        by_chance.append(expected)
    mean = sum(errors) / 40
    assert mean == pytest.approx(sum(by_chance) / 40, rel=0.1)

    pairs, won = drawn(3.0, seed=1)
    error, expected, table = calibration(pairs, 1.0, won)
    assert error > 5 * expected
    assert all(row["confidence"] > row["ranked_as_labelled"] + 0.05 for row in table if 0.7 < row["confidence"] < 0.95)
    assert sum(row["pairs"] for row in table) == 4000


def with_beta(drawn_pairs):
    pairs, won = drawn_pairs
    return pairs, 1.0, won


def test_beta_is_part_of_the_confidence():
    pairs, won = drawn(1.0, seed=5)
    halved = pairs_with(pairs.h / 2)
    assert calibration(halved, 2.0, won) == calibration(pairs, 1.0, won)


def test_to_prefer_the_longer_side_is_right_in_half_of_the_pairs_length_apart():
    longer = torch.tensor([3.0] * 80 + [-2.0] * 20)
    won = (longer > 0).double()
    assert won.mean() == 0.8
    value, (low, high) = length_controlled(pairs_with(longer, longer), won, range(100))
    assert value == 0.5 and low < 0.5 < high


def test_a_policy_for_which_length_is_nothing_keeps_its_accuracy():
    longer = torch.tensor([3.0] * 80 + [-2.0] * 20)
    won = torch.tensor(([1.0] * 3 + [0.0]) * 25)
    value, _ = length_controlled(pairs_with(won, longer), won, range(100))
    assert value == 0.75


def test_pairs_of_equal_lengths_count_by_their_number():
    longer = [1.0, 1.0, -1.0, 0.0]
    won = torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    value, _ = length_controlled(pairs_with(won, longer), won, range(4))
    assert value == pytest.approx(3 / 8 * 0.5 + 3 / 8 * 1.0 + 1 / 4 * 0.5)


@pytest.mark.parametrize("longer", [[1.0, 2.0, 0.0], [-1.0, -1.0, -5.0], [0.0, 0.0, 0.0]])
def test_where_one_side_is_always_the_longer_one_nothing_can_be_said(longer):
    won = torch.tensor([1.0, 0.0, 1.0])
    assert length_controlled(pairs_with(won, longer), won, range(3)) is None

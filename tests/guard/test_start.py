"""Before the first update: what stops a run whose policy does not equal its reference, on made-up numbers."""

from __future__ import annotations

import math

import pytest
from making import make_start_pair_logps

from dpo_recipes import Data, Recipe
from dpo_recipes.guard.start import loss_at_start, start_is_identity

LN2 = math.log(2)


@pytest.mark.parametrize(("half", "limit"), [(False, 1e-3), (True, 5e-2)])
@pytest.mark.parametrize("side", ["chosen_gap", "rejected_gap"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_policy_and_reference_may_differ_by_rounding_per_token_and_no_more(half, limit, side, sign):
    allowed = sign * limit * 10  # of 10 tokens
    under = make_start_pair_logps(**{side: 0.97 * allowed})
    over = make_start_pair_logps(**{side: 1.03 * allowed})

    assert start_is_identity(under, LN2, LN2, half) is None
    reason = start_is_identity(over, LN2, LN2, half)
    assert f"at most {limit:g} is rounding" in reason
    assert "a wrong reference" in reason


def test_the_allowance_grows_with_the_length_and_an_empty_side_counts_as_one_token():
    assert start_is_identity(make_start_pair_logps(chosen_gap=0.5, tokens=1000), LN2, LN2, False) is None
    assert "differ by 0.5 nats" in start_is_identity(make_start_pair_logps(chosen_gap=0.5, tokens=1), LN2, LN2, False)
    assert "differ by 0.5 nats" in start_is_identity(make_start_pair_logps(chosen_gap=0.5, tokens=0), LN2, LN2, False)


@pytest.mark.parametrize("gaps", [{"chosen_gap": math.nan}, {"rejected_gap": math.nan}, {"rejected_gap": math.inf}])
@pytest.mark.parametrize("half", [False, True])
def test_a_log_probability_that_is_not_finite_is_no_identity_on_either_side(gaps, half):
    reason = start_is_identity(make_start_pair_logps(**gaps), LN2, LN2, half)
    assert "must equal its reference" in reason


@pytest.mark.parametrize(
    ("declared", "half", "allowed"),
    [(LN2, False, 0.01), (LN2, True, 0.1), (25.0, False, 0.25), (25.0, True, 2.5), (0.0, False, 0.01)],
)
def test_the_loss_may_miss_its_declared_value_by_one_percent_and_in_16_bit_by_ten(declared, half, allowed):
    for sign in (-1, 1):
        under = declared + sign * 0.97 * allowed
        over = declared + sign * 1.03 * allowed
        assert start_is_identity(make_start_pair_logps(), under, declared, half) is None
        assert f"the loss must be {declared:.6g}" in start_is_identity(make_start_pair_logps(), over, declared, half)
    assert "but it is nan" in start_is_identity(make_start_pair_logps(), math.nan, declared, half)


def test_a_loss_that_declares_nothing_may_start_anywhere_but_not_from_another_reference():
    assert start_is_identity(make_start_pair_logps(), 1e9, None, False) is None
    assert "differ by" in start_is_identity(make_start_pair_logps(chosen_gap=1.0), 1e9, None, False)


# ------------------------------------------------------------------------------------------- the loss at the start


def at_start(**changes) -> float | None:
    return loss_at_start(Recipe(model="m", data=Data("d"), **changes))


def test_the_losses_of_a_mix_are_added_by_their_weights():
    assert at_start() == LN2
    assert at_start(loss={"sigmoid": 0.5, "hinge": 2.0}) == pytest.approx(0.5 * LN2 + 2)
    assert at_start(loss={"sigmoid": 0.5, "ipo_sum": 1.0}, beta=0.5) == pytest.approx(0.5 * LN2 + 1)


def test_one_part_without_a_fixed_value_leaves_the_whole_without_one():
    def undeclared(pairs, *, beta):
        return pairs.h

    assert at_start(loss={"sigmoid": 1.0, "sft": 0.5}) is None
    assert at_start(loss={"sigmoid": 1.0, undeclared: 0.5}) is None
    assert at_start(trl={"use_weighting": True}) is None

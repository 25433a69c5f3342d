"""The rules that stop a run, on made-up numbers: each stops what it names and nothing beside it."""

from __future__ import annotations

import math

import pytest
import torch
from making import make_start_pair_logps

from dpo_recipes.errors import RecipeError
from dpo_recipes.guard import rules


def test_the_bad_pair_is_the_first_that_is_not_finite_else_the_widest_margin():
    assert rules.first_bad_pair(make_start_pair_logps(chosen_gap=3.0)) == 3
    for name in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"):
        for value in (math.nan, math.inf, -math.inf):
            broken = make_start_pair_logps(chosen_gap=3.0)
            getattr(broken, name)[1] = value
            getattr(broken, name)[2] = math.nan
            assert rules.first_bad_pair(broken) == 1


@pytest.mark.parametrize("numel", [1, 2, 255, 256, 257, 300, 511, 512, 513, 1000, 4096, 70_001])
def test_samples_are_spread_from_one_end_of_a_tensor_to_the_other(numel):
    taken = rules.sample_weights([("w", torch.arange(numel, dtype=torch.float32).requires_grad_())])["w"]
    gaps = set(taken.diff().tolist())
    assert min(numel, 128) <= len(taken) <= 256
    assert taken[0] == 0
    assert len(gaps) <= 1  # evenly
    assert numel - 1 - taken[-1] < max(gaps, default=1)  # no end that is never looked at


def test_samples_cover_every_trainable_tensor_and_nothing_else():
    tensors = [
        ("matrix", torch.zeros(40, 50, requires_grad=True)),
        ("half", torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)),
        ("frozen", torch.zeros(7)),
        ("empty", torch.zeros(0, requires_grad=True)),
        ("number", torch.tensor(1.0, requires_grad=True)),
    ]
    samples = rules.sample_weights(tensors)
    assert set(samples) == {"matrix", "half", "number"}
    for sample in samples.values():
        assert sample.dtype == torch.float32
        assert not sample.requires_grad


@pytest.mark.parametrize("numel", [5, 300, 1000])
def test_a_change_of_any_one_sampled_element_is_seen(numel):
    weight = torch.zeros(numel, requires_grad=True)
    parameters = [("w", weight), ("other", torch.ones(9, requires_grad=True))]
    before = rules.sample_weights(parameters)
    for i in range(0, numel, -(-numel // 256)):
        with torch.no_grad():
            weight[i] = 1e-30
        assert rules.something_moved(before, rules.sample_weights(parameters), [1.0]) is None
        with torch.no_grad():
            weight[i] = 0.0
    after = rules.sample_weights(parameters)
    assert "No trainable tensor of 2 has changed" in rules.something_moved(before, after, [1.0])


def test_samples_are_copies():
    weight = torch.zeros(4, requires_grad=True)
    before = rules.sample_weights([("w", weight)])
    with torch.no_grad():
        weight += 1
    assert before["w"].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_no_gradient_no_trainable_tensor_and_no_movement_are_three_reasons():
    still = {"w": torch.zeros(3)}
    moved = {"w": torch.tensor([0.0, 0.0, 1.0])}
    assert "No tensor of the model is trainable" in rules.something_moved({}, {}, [])
    assert "exactly 0 in the first 2 optimiser steps" in rules.something_moved(still, moved, [0.0, 0.0])
    assert "No trainable tensor of 1 has changed" in rules.something_moved(still, still, [0.0, 0.5])
    assert rules.something_moved(still, moved, [0.0, 1e-30]) is None
    assert rules.something_moved(still, moved, []) is None  # nothing was logged yet: the weights speak


@pytest.mark.parametrize(
    ("largest", "steps", "stops"),
    [(0.0, 9, False), (0.0, 10, True), (0.0, 500, True), (1e-30, 10, False), (1e-30, 500, False), (0.0, 0, False)],
)
def test_rewards_of_exactly_0_stop_from_the_tenth_full_step_on(largest, steps, stops):
    reason = rules.rewards_moved(largest, steps)
    if stops:
        assert f"still exactly 0 after {steps} optimiser steps" in reason
    else:
        assert reason is None


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_norm_that_is_not_a_number_is_named_with_its_step(norm):
    reason = rules.gradient_is_finite(norm, 7)
    assert f"The gradient norm is {norm} at step 7" in reason


@pytest.mark.parametrize("norm", [0.0, 1e-30, 1e30])
def test_a_gradient_of_any_size_is_finite(norm):
    assert rules.gradient_is_finite(norm, 7) is None


def test_a_reason_is_raised_and_none_is_not():
    rules.stop(None)
    with pytest.raises(RecipeError, match="^why$"):
        rules.stop("why")

"""What is counted and compared: held bytes by hand, differences by hand, medians by hand."""

from __future__ import annotations

import pytest
import torch

from dpo_recipes.benchmark.steps import Held, Side, agreement


def test_held_bytes_are_those_of_what_backward_needs_without_the_weights():
    layer = torch.nn.Linear(4, 8, bias=False)
    inputs = torch.ones(3, 4)
    with Held(layer) as held:
        outputs = layer(inputs)
        torch.sigmoid(outputs).sum()
    # The inputs, for the weights' gradient, and what sigmoid gave; the weights are there anyway.
    assert held.bytes == 4 * (3 * 4 + 3 * 8)


def test_a_storage_counts_once_and_backward_still_works():
    layer = torch.nn.Linear(2, 2, bias=False)
    inputs = torch.ones(5, 2, requires_grad=True)
    with Held(layer) as held:
        loss = (inputs * inputs).sum() + layer(inputs).sum()
    loss.backward()
    assert held.bytes == 4 * 5 * 2
    torch.testing.assert_close(inputs.grad, 2 * torch.ones(5, 2) + layer.weight.sum(0))


def test_agreement_is_the_largest_relative_difference():
    trl = Side(
        None, None, losses=[1.0, 2.0], gradients=[{"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([0.0, 2.0])}]
    )
    ours = Side(
        None, None, losses=[1.0, 2.5], gradients=[{"a": torch.tensor([3.0, 4.5])}, {"a": torch.tensor([0.0, 2.0])}]
    )
    assert agreement(trl, trl) == (0.0, 0.0)
    assert agreement(trl, ours) == (pytest.approx(0.25), pytest.approx(0.1))


def test_seconds_are_the_medians_of_the_rounds_for_each_step():
    assert Side(None, None, rounds=[[1.0, 5.0], [3.0, 7.0], [2.0, 9.0]]).seconds() == [2.0, 7.0]

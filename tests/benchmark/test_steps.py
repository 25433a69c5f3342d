"""What is counted and compared: held bytes by hand, differences by hand, medians by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dpo_recipes.benchmark.steps import COMPARED, Held, Side, Watcher, compare_first_steps


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


class Steps:
    """Stands for a trainer: of each step a loss, and the gradient of its one parameter."""

    def __init__(self, losses, gradients, watcher):
        self.model = torch.nn.Module()
        self.model.a = torch.nn.Parameter(torch.zeros(2))
        self.steps = list(zip(losses, gradients, strict=True))
        self.watcher = watcher
        self.args = SimpleNamespace(max_steps=-1)

    def compute_loss(self, loss, gradient):
        return loss + self.model.a @ torch.tensor(gradient)

    def train(self):
        for step in self.steps[: self.args.max_steps]:
            self.model.a.grad = None
            self.compute_loss(*step).backward()
            self.watcher.has_gradients()


def side(losses, gradients):
    watcher = Watcher()
    return Side(Steps(losses, gradients, watcher), watcher)


def compared(of_ours):
    done = []
    trl = side([1.0, 2.0], [[3.0, 4.0], [0.0, 2.0]])
    result = compare_first_steps(trl, side(*of_ours), lambda: done.append(True))
    assert done == [True, True]
    return result


def test_agreement_is_the_largest_relative_difference():
    assert compared(([1.0, 2.0], [[3.0, 4.0], [0.0, 2.0]])) == (0.0, 0.0)
    agreement = compared(([1.0, 2.5], [[3.0, 4.5], [0.0, 2.0]]))
    assert agreement == (pytest.approx(0.25), pytest.approx(0.1))


def test_behind_the_compared_steps_nobody_looks_and_nothing_is_counted():
    ours = side([1.0, 2.0], [[3.0, 4.0], [0.0, 2.0]])
    compare_first_steps(side([1.0, 2.0], [[3.0, 4.0], [0.0, 2.0]]), ours, lambda: None)
    assert len(ours.losses) == len(ours.held) == COMPARED
    ours.trainer.train()
    assert len(ours.losses) == len(ours.held) == COMPARED


def test_seconds_are_the_medians_of_the_rounds_for_each_step():
    assert Side(None, None, rounds=[[1.0, 5.0], [3.0, 7.0], [2.0, 9.0]]).seconds() == [2.0, 7.0]

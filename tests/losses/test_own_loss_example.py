"""How to add a loss: one whole example to copy, a loss, its formula and its tests.

A loss is a function of the pairs and beta, with a default for each number of its own. In a recipe file it is named as
`loss=with_margin, loss_args={"margin": 0.5}`. To offer it to every recipe by name, put it into the table of
losses/plugins.py with its equation and paper, and its formula into tests/losses/test_plugins.py.
"""

from __future__ import annotations

import math

import pytest
import torch

from dpo_recipes import Data, Recipe, conformance


# The loss: pairs in, one value for each pair out, in nats. Log-probabilities are summed over the completion's tokens.
def with_margin(pairs, *, beta, margin=0.5):
    """-logsigmoid(beta h - margin): DPO that asks for more than a preference."""
    return -torch.nn.functional.logsigmoid(beta * pairs.h - margin)


# Where policy and reference agree, h is 0. Declared, the value is checked before the first step of every run.
def value_at_start(beta, margin):
    return math.log1p(math.exp(margin))


with_margin.at_start = value_at_start


# The same once more for one pair, in float64 and without torch, from the paper and not from the code above.
def formula(h, beta, policy_h, margin=0.5):
    return math.log1p(math.exp(margin - beta * h))


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_the_loss_keeps_every_rule_of_the_kit_and_is_its_formula(beta, margin):
    assert conformance(with_margin, beta=beta, formula=formula, margin=margin) == []


def test_a_recipe_takes_the_loss_and_its_number():
    recipe = Recipe(model="m", data=Data("d"), loss=with_margin, loss_args={"margin": 1.0})
    assert recipe.loss_names == {"with_margin"}

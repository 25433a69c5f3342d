"""Losses by name or as functions: their names, their numbers, and those that a recipe may not choose."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.losses.plugins import PLUGIN_LOSSES, cdpo, ipo_sum
from dpo_recipes.losses.selection import at_start, function_of, name_of, own_numbers, refuse_impossible_losses


def with_numbers(pairs, *, beta, margin, scale=1, mode="a", flag=True):
    return pairs.h


def sigmoid(pairs, *, beta):
    """By the name of one of TRL's losses."""
    return pairs.h


def test_a_loss_goes_by_its_name():
    assert name_of("sigmoid") == "sigmoid"
    assert name_of(with_numbers) == "with_numbers"


def test_a_loss_of_trl_has_no_function_and_a_plugin_has_its_own():
    assert function_of("sigmoid") is None
    assert function_of("cdpo") is cdpo
    assert function_of(with_numbers) is with_numbers


def test_own_numbers_are_the_keywords_besides_beta():
    assert own_numbers(cdpo) == {"label_smoothing": 0.1}
    assert own_numbers(ipo_sum) == {}
    assert list(own_numbers(with_numbers)) == ["margin", "scale", "mode", "flag"]


def test_a_function_without_a_name_is_no_loss():
    with pytest.raises(RecipeError, match=r"The loss <lambda>\(pairs, \*, beta\) must be written `def name"):
        own_numbers(lambda pairs, *, beta: pairs.h)


def test_a_class_and_a_partial_are_no_losses():
    class Loss:
        def __init__(self, pairs, *, beta):
            self.pairs = pairs

    with pytest.raises(RecipeError, match="The loss Loss is a class, and a loss is a function"):
        own_numbers(Loss)
    with pytest.raises(RecipeError, match="is a partial, which has no name: .* its numbers as loss_args"):
        own_numbers(functools.partial(with_numbers, margin=1))


def test_a_declared_start_value_gets_the_defaults_of_the_loss_and_the_recipes_numbers():
    def margin(pairs, *, beta, gap=2.0):
        return torch.relu(gap - beta * pairs.h)

    def gap_itself(beta, gap):
        return gap

    assert at_start(margin, 0.1, {}) is None
    margin.at_start = gap_itself
    assert at_start(margin, 0.1, {}) == 2.0
    assert at_start(margin, 0.1, {"gap": 3}) == 3.0


@pytest.mark.parametrize(
    ("weights", "loss_args", "message"),
    [
        ({"sigmod": 1.0}, {}, "Recipe.loss='sigmod' is neither TRL's nor ours. Did you mean 'sigmoid'? Known: "),
        ({"dpo": 1.0}, {}, "Plain DPO is 'sigmoid'."),
        ({"sigmoid": 0}, {}, "Recipe.loss gives 'sigmoid' the weight 0: weights are positive, finite numbers."),
        ({"sigmoid": math.inf}, {}, "weights are positive"),
        ({"sigmoid": math.nan}, {}, "weights are positive"),
        ({sigmoid: 1.0}, {}, "Recipe.loss: two losses go by the name 'sigmoid': give your function another one."),
        ({"cdpo": 1.0, PLUGIN_LOSSES["cdpo"]: 1.0}, {}, "two losses go by the name 'cdpo'"),
        ({"sigmoid": 1.0}, {"tau": 1}, "Recipe.loss_args.tau=1 is read by no loss of ['sigmoid']. TRL's losses take"),
        ({"cdpo": 1.0}, {"smoothing": 1}, "Did you mean 'label_smoothing'?"),
        ({"cdpo": 1.0}, {"label_smoothing": "x"}, "has the wrong type: expected a number such as 0.1, its default."),
        ({"cdpo": 1.0}, {"label_smoothing": math.nan}, "expected a number"),
        ({"cdpo": 1.0}, {"label_smoothing": True}, "expected a number"),
        ({with_numbers: 1.0}, {"margin": 1, "flag": 0}, "expected true or false such as True, its default."),
        ({with_numbers: 1.0}, {"margin": 1, "mode": 3}, "expected text such as 'a', its default."),
        ({"cdpo": 1.0}, {"label_smoothing": 0.5}, "Recipe.loss_args.label_smoothing=0.5 must lie in [0, 0.5)."),
        ({with_numbers: 1.0}, {}, "Recipe.loss_args.margin must be given: the loss has no default for it."),
    ],
)
def test_a_loss_that_cannot_be_is_refused(weights, loss_args, message):
    with pytest.raises(UsageError) as error:
        refuse_impossible_losses(weights, loss_args)
    assert message in str(error.value)


def test_losses_that_can_be_are_not():
    refuse_impossible_losses(
        {"sigmoid": 1, "sft": 0.1, "cdpo": 2.0, with_numbers: 0.5},
        {"label_smoothing": 0, "margin": 1, "scale": 2.5, "mode": "b"},
    )


def test_a_plugin_of_the_table_may_be_given_as_the_function_itself():
    refuse_impossible_losses({cdpo: 1.0}, {"label_smoothing": 0.2})

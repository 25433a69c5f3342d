"""What losses/trl_losses.py says of each of TRL's losses.

Read again: the branches of `DPOTrainer._compute_loss`, one for each `loss_type`, with the message that ends them; and
in `DPOTrainer.__init__` what is refused beside a loss. A new branch is a new row; a changed formula a new start value.
"""

from __future__ import annotations

import ast
import re
import textwrap
from functools import cache

import pytest
from reading_trl import SOURCE, leaning

from dpo_recipes.losses.trl_losses import (
    COUPLED_LOSSES,
    F_DIVERGENCE_LOSSES,
    LIKELIHOOD_LOSSES,
    SMOOTHED_LOSSES,
    TRL_LOSSES,
    UNWEIGHTED_LOSSES,
    readers_of,
)


@cache
def branches() -> dict[str, str]:
    """Loss name -> the source of its branch in DPOTrainer._compute_loss."""
    tree = ast.parse(textwrap.dedent(SOURCE["_compute_loss"]))
    sources = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith("loss_type == "):
            name = ast.literal_eval(node.test.comparators[0])
            sources[name] = "\n".join(map(ast.unparse, node.body))
    return sources


def test_the_losses_are_exactly_those_that_trl_computes_and_lists():
    unbroken = re.sub(r'"\s*f?"', "", SOURCE["_compute_loss"])  # the message is written on several lines
    listed = re.search(r"Should be one of (\[.*?\])", unbroken, re.DOTALL)
    assert listed, leaning("losses/trl_losses.py", "TRL's message lists its losses")
    assert set(TRL_LOSSES) == set(ast.literal_eval(listed[1])), leaning("losses/trl_losses.py", "the losses it lists")
    assert set(TRL_LOSSES) == set(branches()), leaning("losses/trl_losses.py", "the losses it computes")


def test_each_loss_but_plain_likelihood_has_a_start_value():
    with_a_value = {name for name, loss in TRL_LOSSES.items() if loss.at_start is not None}
    assert with_a_value == set(TRL_LOSSES) - {"sft"}, leaning("losses/trl_losses.py", "a start value for each loss")


@pytest.mark.parametrize("option", ["label_smoothing", "discopop_tau"])
def test_an_option_of_some_losses_is_read_by_exactly_those(option):
    readers = {loss for loss, body in branches().items() if f".{option}" in body}
    assert readers == readers_of(option), leaning("losses/trl_losses.py", f"which losses read {option}")


def test_no_other_option_is_read_by_some_losses_only():
    read = set(re.findall(r"self\.(?:args\.)?(\w+)", "\n".join(branches().values())))
    expected = {"beta", "label_smoothing", "discopop_tau"}
    assert read == expected, leaning("losses/trl_losses.py", "what the branches read of the trainer")


def test_the_losses_that_take_a_divergence_are_those_of_trl():
    accepted = re.search(r"f_divergence_loss_types = (\{.*?\})", SOURCE["__init__"], re.DOTALL)
    assert accepted, leaning("losses/trl_losses.py", "TRL lists the losses that take an f-divergence")
    assert ast.literal_eval(accepted[1]) == F_DIVERGENCE_LOSSES, leaning("losses/trl_losses.py", "takes_f_divergence")


def test_the_losses_that_take_no_weighting_are_those_that_trl_refuses():
    refused = re.search(r"self\.use_weighting and any\(loss_type in (\{.*?\})", SOURCE["__init__"])
    assert refused, leaning("losses/trl_losses.py", "TRL lists the losses that take no weighting")
    assert ast.literal_eval(refused[1]) == UNWEIGHTED_LOSSES, leaning("losses/trl_losses.py", "takes_weighting")


def test_the_losses_that_need_label_smoothing_are_those_that_trl_refuses_without():
    refused = re.findall(r'if "(\w+)" in self\.loss_types and self\.label_smoothing == 0\.0', SOURCE["__init__"])
    assert set(refused) == SMOOTHED_LOSSES, leaning("losses/trl_losses.py", "needs_label_smoothing")


@pytest.mark.parametrize("loss", TRL_LOSSES)
def test_the_losses_that_couple_the_pairs_of_a_micro_batch_are_the_ones_we_name(loss):
    couples = "torch.sort(" in branches()[loss] or ".mean()" in branches()[loss]
    assert couples == (loss in COUPLED_LOSSES), leaning("losses/trl_losses.py", f"couples_pairs of {loss}")


@pytest.mark.parametrize("loss", TRL_LOSSES)
def test_the_losses_that_compare_with_a_reference_are_the_ones_we_name(loss):
    compares = re.search(r"logratios|score|ref_", branches()[loss]) is not None
    assert compares == (loss not in LIKELIHOOD_LOSSES), leaning("losses/trl_losses.py", f"compares of {loss}")
    assert compares == ("self.beta" in branches()[loss]), leaning("losses/trl_losses.py", f"beta acts in {loss}")

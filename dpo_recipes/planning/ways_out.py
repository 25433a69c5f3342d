"""What to change where a recipe does not fit on its device, nearest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import RecipeError
from ..losses.trl_losses import COUPLED_LOSSES
from ..recipe.overrides import apply
from ..recipe.recipe import QLoRA, Recipe
from .memory import Plan

SHORTER = (1024, 512, 256)  # tokens to cut pairs to, in this order


def ways_out(
    recipe: Recipe, memory: int, replan: Callable[[Recipe], Plan], tokens: int = 10**9
) -> Iterator[tuple[str, Plan]]:
    """(what to change, as on the command line; the plan that it gives), until one fits into `memory` bytes.

    First what leaves the maths alone, one after the other; then, each on top of those, what does not.
    `tokens`: the longest pair, above which max_length changes nothing.
    """
    same_maths = _changes_of_the_same_maths(recipe)
    attempts = [same_maths[: count + 1] for count in range(len(same_maths))]
    attempts += [[*same_maths, change] for change in _changes_of_other_maths(recipe, tokens)]

    for changes in attempts:
        try:
            changed_plan = replan(apply(recipe, changes))
        except RecipeError:  # such as an option that goes with full fine-tuning alone
            continue
        yield " ".join(changes), changed_plan
        if changed_plan.peak <= memory:
            return


def _changes_of_the_same_maths(recipe: Recipe) -> list[str]:
    """Smaller micro-batches, accumulated to the same step, and activations that are computed twice."""
    changes = []
    coupled = recipe.loss_names & COUPLED_LOSSES  # the micro-batch decides what such a loss is
    if recipe.micro_batch_size != 1 and not coupled:
        changes.append("micro_batch_size=1")
    if recipe.trl.get("gradient_checkpointing") is False:
        changes.append("trl.gradient_checkpointing=true")
    return changes


def _changes_of_other_maths(recipe: Recipe, tokens: int) -> list[str]:
    """Shorter pairs, then fewer trained parameters, then frozen weights of 4 bits."""
    longest = min(recipe.max_length or tokens, tokens)
    changes = [f"max_length={length}" for length in SHORTER if length < longest]
    if recipe.adapter is None:
        changes.append("adapter=lora")
    if not isinstance(recipe.adapter, QLoRA):
        changes.append("adapter=qlora")
    return changes

"""What to change where a recipe does not fit on its device, nearest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from ..errors import RecipeError
from ..losses.trl_losses import COUPLED_LOSSES
from ..recipe.overrides import apply
from ..recipe.recipe import QLoRA, Recipe
from .memory import Plan


def ways_out(
    recipe: Recipe, memory: int, replan: Callable[[Recipe], Plan], tokens: int = 10**9
) -> Iterator[tuple[str, Plan]]:
    """(what to change, as on the command line; the plan that it gives), until one fits into `memory` bytes.
    First what leaves the maths alone, one after the other; then, each on top of those, what does not.
    `tokens`: the longest pair, above which max_length changes nothing."""
    smaller = recipe.micro_batch_size != 1 and not recipe.loss_names & COUPLED_LOSSES
    checkpoint = recipe.trl.get("gradient_checkpointing") is False
    same = ["micro_batch_size=1"] * smaller + ["trl.gradient_checkpointing=true"] * checkpoint
    other = [f"max_length={length}" for length in (1024, 512, 256) if length < min(recipe.max_length or 10**9, tokens)]
    other += ["adapter=lora"] * (recipe.adapter is None) + ["adapter=qlora"] * (not isinstance(recipe.adapter, QLoRA))
    for changes in [same[: n + 1] for n in range(len(same))] + [[*same, change] for change in other]:
        with suppress(RecipeError):  # such as an option that goes with full fine-tuning alone
            yield " ".join(changes), (found := replan(apply(recipe, changes)))
            if found.peak <= memory:
                return

"""What was chosen for a device, of the settings that a recipe leaves open and that leave its maths alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from .recipe import Recipe

CHOSEN: Literal["chosen"] = "chosen"  # the origin of such a value
# A choice that no field of the recipe could hold, as 16 bits with weights of 32: `resolve` reads that it was made.
PRECISION = "dtype"
# Where it was chosen, and not set, the pairs of a step come by length.
ORDER = "trl.train_sampling_strategy"
# Where it was chosen, the reference is read in each step: `resolve` reads that it was made, as a recipe that sets it
# would be refused where the reference is a second model.
IN_STEPS = "trl.precompute_ref_log_probs"
TARGETS = "adapter.target_modules"


class Choice(NamedTuple):
    """A setting that nobody has set."""

    key: str  # as on the command line: micro_batch_size, trl.gradient_checkpointing
    value: Any
    reason: str


def with_choices(recipe: Recipe, choices: Sequence[Choice]) -> Recipe:
    """The recipe with its open settings as they were chosen, which says why, as it does of what was chosen before."""
    trl = dict(recipe.trl)
    fields: dict[str, Any] = {}
    adapter = recipe.adapter
    for choice in choices:
        if choice.key in (PRECISION, IN_STEPS):
            continue
        owner, _, name = choice.key.rpartition(".")
        if owner == "adapter" and adapter is not None:
            fields["adapter"] = adapter = adapter.evolve(**{name: choice.value})
            continue
        if owner == "trl":
            trl[name] = choice.value
        else:
            fields[name] = choice.value
    if trl:
        fields["trl"] = trl
    reasons = dict(recipe.reasons)
    for choice in choices:
        reasons[choice.key] = choice.reason
    return _because(recipe.evolve(**fields), reasons)


def without_choices(recipe: Recipe) -> Recipe:
    """The recipe as it was before anything was chosen for a device."""
    trl = dict(recipe.trl)
    adapter = recipe.adapter
    left_open: list[str] = []
    for key in recipe.reasons:
        if key in (PRECISION, IN_STEPS):
            continue
        owner, _, name = key.rpartition(".")
        if owner == "adapter" and adapter is not None:
            adapter = adapter.evolve(name)
        elif owner == "trl":
            trl.pop(name, None)
        else:
            left_open.append(name)
    fields: dict[str, Any] = {}
    if adapter != recipe.adapter:
        fields["adapter"] = adapter
    if trl:
        fields["trl"] = trl
    else:
        left_open.append("trl")
    return _because(recipe.evolve(*left_open, **fields), {})


def _because(recipe: Recipe, reasons: dict[str, str]) -> Recipe:
    """The recipe, from where it came, with these reasons for what was chosen."""
    return recipe.from_where(source=recipe.source, cli_keys=recipe.cli_keys, called=recipe.called, reasons=reasons)

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
OF_IMAGES = (IN_STEPS, TARGETS)


class Choice(NamedTuple):
    """A setting that nobody has set."""

    key: str  # as on the command line: micro_batch_size, trl.gradient_checkpointing
    value: Any
    reason: str


def with_choices(recipe: Recipe, choices: Sequence[Choice]) -> Recipe:
    """The recipe with its open settings as they were chosen, which says of them why."""
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
    of_images = {key: reason for key, reason in recipe.reasons.items() if key in OF_IMAGES}
    return _because(recipe.evolve(**fields), of_images | {choice.key: choice.reason for choice in choices})


def without_choices(recipe: Recipe) -> Recipe:
    """The recipe as it was before anything was chosen for a device."""
    trl = {name: value for name, value in recipe.trl.items() if f"trl.{name}" not in recipe.reasons}
    chosen_fields = [key for key in recipe.reasons if "." not in key and key != PRECISION]
    if TARGETS in recipe.reasons and recipe.adapter is not None:
        recipe = recipe.evolve(adapter=recipe.adapter.evolve("target_modules"))
    if trl:
        return _because(recipe.evolve(*chosen_fields, trl=trl), {})
    return _because(recipe.evolve("trl", *chosen_fields), {})


def _because(recipe: Recipe, reasons: dict[str, str]) -> Recipe:
    """The recipe, from where it came, with these reasons for what was chosen."""
    return recipe.from_where(source=recipe.source, cli_keys=recipe.cli_keys, called=recipe.called, reasons=reasons)

"""`dpo-recipes show`: every value of a recipe with its origin, and what differs from TRL's own defaults.

Leans on TRL 1.16: what DPOConfig makes of the defaults it leaves open.
"""

from __future__ import annotations

from typing import Any

from ..recipe import trl_options
from ..recipe.dpo_arguments import dpo_arguments
from ..recipe.origins import values_with_origins
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, Settings, here, resolve

WAS_SET = ("recipe file", "command line")  # and not left at a default


def show(recipe: Recipe, device: Device | None = None, *, changed: bool = False) -> dict[str, Any]:
    """What `dpo-recipes show` prints: `recipe` (key -> value, origin) and `trl` (name -> value, TRL's default).

    `device` is this machine unless it is given. With `changed`, `recipe` holds only what the recipe file or the
    command line has set, and there is no `trl`. UsageError where the recipe cannot run on the device.
    """
    if device is None:
        device = Device() if recipe.trl.get("use_cpu") else here()
    settings = resolve(recipe, device)

    values = {}
    for key, (value, origin) in values_with_origins(recipe, settings).items():
        if origin in WAS_SET or not changed:
            values[key] = {"value": value, "origin": origin}

    shown: dict[str, Any] = {
        "name": recipe.name,
        "device": device.kind,
        "step": _step(recipe, settings, device.processes),
        "recipe": values,
    }
    if not changed:
        shown["trl"] = _different_from_trl(recipe, settings)
    return shown


def _step(recipe: Recipe, settings: Settings, processes: int) -> str:
    """How one optimiser step comes to its pairs, in words."""
    step = (
        f"{recipe.global_batch_size} pairs a step = {settings.micro_batch_size} pairs x "
        f"{settings.accumulation} accumulation"
    )
    if processes > 1:
        step += f" x {processes} processes"
    return step


def _different_from_trl(recipe: Recipe, settings: Settings) -> dict[str, dict[str, Any]]:
    """DPOConfig argument -> its value and TRL's own default, where the two differ."""
    defaults = {name: option.default for name, option in trl_options.options().items()}
    defaults["output_dir"] = ""  # the run folder does not exist yet, so it is no difference
    # None in DPOConfig's source; what DPOConfig makes of it when it is built:
    defaults["bf16"] = True
    defaults["disable_tqdm"] = False

    different = {}
    for name, value in dpo_arguments(recipe, settings, output_dir="").items():
        if value != defaults[name]:
            different[name] = {"value": value, "default": defaults[name]}
    return different

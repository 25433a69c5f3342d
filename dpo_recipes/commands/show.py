"""`dpo-recipes show`: every value of a recipe with its origin, and what differs from TRL's own defaults.

Leans on TRL 1.16: what DPOConfig makes of the defaults it leaves open.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..planning.amounts import device_memory
from ..planning.chosen_settings import Situation, choose
from ..recipe import trl_options
from ..recipe.choices import with_choices
from ..recipe.dpo_arguments import dpo_arguments
from ..recipe.origins import WAS_SET, values_with_origins
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, Settings, here, multiplies_bf16, resolve


def show(recipe: Recipe, device: Device | None = None, *, changed: bool = False) -> dict[str, Any]:
    """What `dpo-recipes show` prints: `recipe` (key -> value, origin) and `trl` (name -> value, TRL's default).

    What was chosen for the device has a `reason` too; `left_open` is the sentence about what is chosen later.

    `device` is this machine unless it is given. With `changed`, `recipe` holds only what the recipe file or the
    command line has set, and there is no `trl`. UsageError where the recipe cannot run on the device.
    """
    if device is None:
        device = Device() if recipe.trl.get("use_cpu") else here()
    resolve(recipe, device)  # which raises
    chosen = choose(recipe, _situation(recipe, device))
    recipe = with_choices(recipe, chosen.choices)
    settings = resolve(recipe, device)

    values = {}
    for key, (value, origin) in values_with_origins(recipe, settings).items():
        if origin in WAS_SET or not changed:
            values[key] = {"value": value, "origin": origin}
            if key in recipe.reasons:
                values[key]["reason"] = recipe.reasons[key]

    shown: dict[str, Any] = {
        "name": recipe.name,
        "device": device.kind,
        "step": _step(recipe, settings, device.processes),
        "recipe": values,
    }
    if not changed:
        shown["left_open"] = chosen.left
        shown["trl"] = _different_from_trl(recipe, settings)
    return shown


def _situation(recipe: Recipe, device: Device) -> Situation:
    """What can be known within a moment: of a GPU's memory, or of the lengths of pairs, nothing."""
    return Situation(
        device=device,
        memory=None if device.kind == "cuda" else device_memory(device.kind),
        config=_config_here(recipe),
        train_pairs=None,
        longest=None,
        planned=None,
        why_padded=None,
        multiplies_bf16=multiplies_bf16(),
    )


def _config_here(recipe: Recipe) -> dict[str, Any] | None:
    """The config.json of the recipe's model, where that is a folder."""
    file = Path(recipe.model).expanduser() / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


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

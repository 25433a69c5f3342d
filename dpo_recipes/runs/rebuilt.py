"""The recipe of a run, as a value again."""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import RecipeError
from ..recipe.catalogue import load
from ..recipe.origins import values_with_origins
from ..recipe.overrides import apply
from ..recipe.recipe import Recipe
from ..recipe.resolve import here, resolve
from .files import to_json
from .folder import Run

FOLDER_NAME = re.compile(r"(?P<recipe>.+)-\d{8}-\d{6}(-\d+)?")

# What may differ without the run's being measured otherwise than it was trained: what depends on the device, how
# training went its way, and what is asked of the finished model.
MAY_DIFFER = (
    "dtype",
    "micro_batch_size",
    "global_batch_size",
    "learning_rate",
    "num_train_epochs",
    "pair_sharing",
    "attn_implementation",
    "reward",
    "measures",
    "forgetting",
    "forgetting_limit",
    "prepare",
)


def recipe_of(run: Run) -> Recipe:
    """The recipe that a run was trained with: its recipe.py, with what the command line had changed.

    RecipeError where it cannot be had any more, or would say something else today than recipe.json does.
    """
    resolved = run.recipe
    path = run.path / "recipe.py"
    try:
        recipe = load(path)
    except RecipeError as error:
        raise RecipeError(
            f"The recipe of {run.path} cannot be loaded again: {error} A recipe that was a value in Python, with "
            "functions of its own, leaves no file that makes it again; to measure its model all the same: "
            f"dpo-recipes evaluate --policy {run.path / 'model'} --reference MODEL --data FILE"
        ) from error

    recipe = apply(recipe, _assignments(resolved))
    named = FOLDER_NAME.fullmatch(run.path.resolve().name)
    object.__setattr__(recipe, "source", path)  # the dataclass is frozen
    object.__setattr__(recipe, "called", named["recipe"] if named else None)
    _refuse_differences(recipe, resolved, run)
    return recipe


def _assignments(resolved: dict[str, dict[str, Any]]) -> list[str]:
    """What had been typed behind the recipe's name, from the values that came of it."""
    assignments = []
    for key, entry in resolved.items():
        if entry["origin"] != "command line":
            continue
        value = entry["value"]
        if key == "adapter":
            value = "none" if value is None else str(value).lower()
        assignments.append(f"{key}={value}")
    return assignments


def _refuse_differences(recipe: Recipe, resolved: dict[str, dict[str, Any]], run: Run) -> None:
    """A default may have changed since, or the file: then its model would be measured as what it is not."""
    today = values_with_origins(recipe, resolve(recipe, here()))
    different = []
    for key, entry in resolved.items():
        if key in MAY_DIFFER or key.startswith(("trl.", "rules")) or key not in today:
            continue
        value, _ = today[key]
        if json.loads(to_json(value)) != entry["value"]:
            different.append(f"{key} was {entry['value']!r} and is {value!r} now")
    if different:
        raise RecipeError(
            f"{run.path} was trained with other values than its recipe.py gives today: {'; '.join(different)}. Write "
            f"the values of then into {run.path / 'recipe.py'}; recipe.json holds them all."
        )

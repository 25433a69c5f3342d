"""The recipe of a run, as a value again."""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import RecipeError
from ..recipe.catalogue import load
from ..recipe.choices import CHOSEN, Choice, with_choices
from ..recipe.origins import WAS_SET, origin, values_with_origins
from ..recipe.overrides import apply
from ..recipe.recipe import Recipe
from ..recipe.resolve import here, resolve
from .files import to_json
from .folder import Run

FOLDER_NAME = re.compile(r"(?P<recipe>.+)-(?P<time>\d{8}-\d{6})(-(?P<attempt>\d+))?")

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
    "answers",
    "answers_temperature",
    "forgetting",
    "forgetting_limit",
    "prepare",
)
OPTIONS = ("trl.", "rules.")  # how the keys of options begin, of which a recipe gives any number


def recipe_of(run: Run) -> Recipe:
    """The recipe that a run was trained with: its recipe.py, with what the command line had changed.

    RecipeError where it cannot be had any more, or would say something else today than recipe.json does.
    """
    resolved = run.recipe  # which raises where the run has not come that far
    path = run.path / "recipe.py"
    try:
        recipe = load(path)
    except RecipeError as error:
        raise RecipeError(
            f"The recipe of {run.path} cannot be loaded again: {error} A recipe that was a value in Python, with "
            "functions of its own, leaves no file that makes it again; to measure its model all the same: "
            f"dpo-recipes evaluate --policy {run.model_folder} --reference MODEL --data FILE"
        ) from error

    recipe = apply(recipe, assignments(resolved))
    named = FOLDER_NAME.fullmatch(run.path.resolve().name)
    recipe = recipe.from_where(source=path, cli_keys=recipe.cli_keys, called=named["recipe"] if named else None)
    recipe = with_choices_of(run, recipe)
    _refuse_differences(recipe, run)
    return recipe


def assignments(resolved: dict[str, dict[str, Any]]) -> list[str]:
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


def with_choices_of(run: Run, recipe: Recipe) -> Recipe:
    """A run's recipe with what was chosen for the device when the run began, but for what the recipe sets itself.

    A run of an older version has chosen nothing.
    """
    choices = []
    for key, entry in run.recipe.items():
        if entry["origin"] == CHOSEN and origin(recipe, key) not in WAS_SET:
            choices.append(Choice(key, entry["value"], entry["reason"]))
    return with_choices(recipe, choices)


def differences(run: Run, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value of the run, value that the recipe has today), of all values that differ.

    An option that only one of them gives is a difference, None in the other. A field that only one of them knows is
    none: the run is then of another version of this package. What was chosen for the run's device is none either, as
    long as nobody sets it.
    """
    then = {key: entry["value"] for key, entry in run.recipe.items()}
    chosen = {key for key, entry in run.recipe.items() if entry.get("origin") == CHOSEN}
    now = {}
    for key, (value, came_from) in values_with_origins(recipe, resolve(recipe, here())).items():
        now[key] = json.loads(to_json(value))
        if came_from in WAS_SET:
            chosen.discard(key)

    different = {}
    for key in {**then, **now}:
        is_option = key.startswith(OPTIONS)
        is_known_to_both = key in then and key in now
        if key not in chosen and (is_option or is_known_to_both) and then.get(key) != now.get(key):
            different[key] = (then.get(key), now.get(key))
    return different


def _refuse_differences(recipe: Recipe, run: Run) -> None:
    """A default may have changed since, or the file: then its model would be measured as what it is not."""
    different = []
    for key, (then, now) in differences(run, recipe).items():
        if key not in MAY_DIFFER and not key.startswith(OPTIONS):
            different.append(f"{key} was {then!r} and is {now!r} now")
    if different:
        raise RecipeError(
            f"{run.path} was trained with other values than its recipe.py gives today: {'; '.join(different)}. Write "
            f"the values of then into {run.path / 'recipe.py'}; recipe.json holds them all."
        )

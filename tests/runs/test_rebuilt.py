"""A run's values beside those of today."""

from __future__ import annotations

from dpo_recipes import Data, LoRA, Recipe, apply
from dpo_recipes.recipe.choices import Choice, with_choices
from dpo_recipes.recipe.origins import values_with_origins
from dpo_recipes.recipe.resolve import here, resolve
from dpo_recipes.runs.files import write_json
from dpo_recipes.runs.folder import Run
from dpo_recipes.runs.rebuilt import differences


def run_of(recipe, folder, **others):
    values = {key: {"value": value} for key, (value, _) in values_with_origins(recipe, resolve(recipe, here())).items()}
    write_json(folder / "recipe.json", values | others)
    return Run(folder)


def test_values_that_differ_are_told_as_they_were_and_are(tmp_path):
    recipe = Recipe(model="m", data=Data("d"), adapter=LoRA(r=8), trl={"max_grad_norm": 0.5, "max_steps": 2})
    run = run_of(recipe, tmp_path)
    assert differences(run, recipe) == {}
    other = recipe.evolve(beta=0.3, adapter=LoRA(r=4), trl={"max_steps": 2, "weight_decay": 0.1})
    assert differences(run, other) == {
        "beta": (0.1, 0.3),
        "adapter.r": (8, 4),
        "adapter.alpha": (16, 8),
        "trl.max_grad_norm": (0.5, None),
        "trl.weight_decay": (None, 0.1),
    }


def test_a_field_of_another_version_is_no_difference(tmp_path):
    recipe = Recipe(model="m", data=Data("d"))
    run = run_of(recipe, tmp_path, of_another_version={"value": 3})
    assert differences(run, recipe) == {}


def test_what_was_chosen_for_a_device_differs_only_from_what_somebody_sets(tmp_path):
    recipe = Recipe(model="m", data=Data("d"))
    chosen = with_choices(recipe, [Choice("trl.gradient_checkpointing", False, "it fits")])
    entry = {"value": False, "origin": "chosen", "reason": "it fits"}
    run = run_of(chosen, tmp_path, **{"trl.gradient_checkpointing": entry})
    assert differences(run, recipe) == differences(run, chosen) == {}
    set_now = apply(recipe, ["trl.gradient_checkpointing=true"])
    assert differences(run, set_now) == {"trl.gradient_checkpointing": (False, True)}

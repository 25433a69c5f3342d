"""What a user reads when a model or tokenizer cannot be loaded."""

from __future__ import annotations

import pytest
from making import recipe_for

from dpo_recipes import RecipeError
from dpo_recipes.models.tokenizer import load_tokenizer
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.resolve import Device, resolve


@pytest.mark.parametrize("what", ["tokenizer", "model"])
def test_a_folder_that_holds_no_model_is_named_with_what_it_holds(tmp_path, what):
    (tmp_path / "notes.txt").write_text("hello")
    recipe = recipe_for(tmp_path)
    load = {
        "tokenizer": lambda: load_tokenizer(recipe, str(tmp_path)),
        "model": lambda: load_weights(recipe, resolve(recipe, Device()), str(tmp_path)),
    }[what]
    with pytest.raises(RecipeError, match=f"No {what} could be loaded from .*notes.txt"):
        load()

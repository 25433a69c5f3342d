"""What a user reads when a model or tokenizer cannot be loaded."""

from __future__ import annotations

import pytest
from making import recipe_for

from dpo_recipes import RecipeError
from dpo_recipes.models.loading_errors import explained, reason_of
from dpo_recipes.models.tokenizer import load_tokenizer
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.resolve import Device, resolve


@pytest.mark.parametrize("what", ["tokenizer", "model"])
def test_a_folder_that_holds_no_model_is_named_with_what_it_holds(tmp_path, what):
    (tmp_path / "notes.txt").write_text("hello")
    recipe = recipe_for(tmp_path)
    with pytest.raises(RecipeError, match=f"No {what} could be loaded from .*notes.txt"):
        if what == "tokenizer":
            load_tokenizer(recipe, str(tmp_path))
        else:
            load_weights(recipe, resolve(recipe, Device()), str(tmp_path))


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("set `trust_remote_code=True`", "brings its own code"),
        ("flash_attn is not installed", "Check attn_implementation"),
        ("401 Client Error", "hf auth login"),
    ],
)
def test_the_remedy_is_that_of_what_went_wrong(message, remedy):
    with pytest.raises(RecipeError, match=remedy), explained("model", "some/model"):
        raise ValueError(message)


def test_of_a_librarys_message_what_matters_is_shown():
    assert reason_of(ValueError("\n  It is broken.\nSee the manual.")) == "It is broken. See the manual"
    assert reason_of(KeyboardInterrupt()) == "KeyboardInterrupt"
    heading = "Error(s) in loading state_dict for Model:"
    matter = "size mismatch for layers.0: " + "x" * 250
    assert reason_of(RuntimeError(f"{heading}\n\t{matter}\n\tmore")).startswith(f"{heading} size mismatch for layers.0")
    assert reason_of(ValueError("First line.\n" + "word " * 100)) == "First line"
    assert reason_of(ValueError("word " * 100)).endswith("word ...")

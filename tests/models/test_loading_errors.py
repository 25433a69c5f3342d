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
        ("size mismatch for layers.0.self_attn.q_proj", "Check model="),
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


def test_a_damaged_copy_in_the_cache_of_the_hub_is_named_with_how_to_fetch_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="Check model="), explained("model", "org/tiny"):
        raise ValueError("something else")

    (snapshot / "config.json").write_text("{")
    removed = f"config.json is no valid JSON: .* rm -r {tmp_path / 'models--org--tiny'}"
    with pytest.raises(RecipeError, match=removed), explained("model", "org/tiny"):
        raise ValueError("It looks like the config file is not valid")


def test_of_a_hub_that_breaks_off_the_first_cause_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with (
        pytest.raises(RecipeError, match=r"broke \(peer closed\). Connect, and run again: files") as told,
        explained("model", "a/b"),
    ):
        try:
            raise ConnectionResetError("peer closed")
        except ConnectionError as error:
            raise OSError("Can't load the model for 'a/b'.") from error
    assert "Can't load" not in str(told.value)

"""The class that loads a model, and the part of it that reads text."""

from __future__ import annotations

import pytest
from making import recipe_for
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from dpo_recipes.errors import RecipeError
from dpo_recipes.models import auto_class, tokenizer
from dpo_recipes.models.checkpoint import load_checkpoint


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("llama", AutoModelForCausalLM),
        ("gemma3", AutoModelForCausalLM),  # which loads it with its part for images, too
        ("qwen2_5_vl", AutoModelForImageTextToText),
        ("idefics3", AutoModelForImageTextToText),
        ("bert", AutoModelForCausalLM),  # which says what is wrong with it
    ],
)
def test_a_model_is_loaded_by_the_causal_class_where_that_knows_it(model_type, expected):
    assert auto_class.auto_class(AutoConfig.for_model(model_type)) is expected


def test_models_are_known_of_which_the_causal_class_leaves_the_images_out():
    assert auto_class.reads_images_in_another_class(AutoConfig.for_model("mllama"))
    for model_type in ("llama", "gemma3", "qwen2_5_vl"):
        assert not auto_class.reads_images_in_another_class(AutoConfig.for_model(model_type))


@pytest.mark.parametrize(
    ("kind", "part"), [("idefics3", "model.text_model"), ("llava", "model.language_model"), (None, "model")]
)
def test_the_part_that_reads_text_is_what_the_embeddings_belong_to(tiny, tiny_vision, kind, part):
    assert auto_class.language_part(load_checkpoint(str(tiny_vision(kind) if kind else tiny()))) == part


def test_a_processor_that_cannot_be_loaded_is_said_with_what_may_be_missing(tiny_vision, monkeypatch):
    def fail(*_, **__):
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library")

    monkeypatch.setattr(tokenizer.AutoProcessor, "from_pretrained", fail)
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda name: None)
    recipe = recipe_for(tiny_vision())
    with pytest.raises(RecipeError, match="No processor could be loaded .* need torchvision"):
        tokenizer.with_processor(recipe, str(tiny_vision()), tokenizer.Tokenizer(None, None))

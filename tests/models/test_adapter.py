"""New and continued LoRA adapters on tiny models."""

from __future__ import annotations

import json

import pytest
import torch
from making import load_policy, recipe_for
from peft import PeftModel, get_peft_model

from dpo_recipes import LoRA, QLoRA, RecipeError
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.resolve import Device, resolve


def adapted_layers(model) -> list[str]:
    """The last name of every linear layer that has an adapter, such as q_proj."""
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    return [name.split(".")[-4] for name in names]


@pytest.mark.parametrize(
    ("adapter", "alpha"),
    [
        (LoRA(r=4), 8),
        (LoRA(r=4, alpha=3, use_rslora=True), 3),
    ],
)
def test_the_new_adapter_has_the_recipes_numbers_and_leaves_the_head_alone(tiny, adapter, alpha):
    config = peft_config(adapter)
    model = get_peft_model(load_policy(tiny()), config)
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert set(adapted_layers(model)) == attention | {"gate_proj", "up_proj", "down_proj"}
    assert (config.lora_alpha, config.use_rslora, config.task_type) == (alpha, adapter.use_rslora, "CAUSAL_LM")


def test_only_the_named_modules_are_adapted(tiny):
    model = get_peft_model(load_policy(tiny()), peft_config(LoRA(target_modules=["q_proj"])))
    assert adapted_layers(model) == ["q_proj", "q_proj"]  # one in each of two layers


def test_there_is_no_new_adapter_in_full_fine_tuning_and_where_one_is_continued():
    assert peft_config(None) is None
    assert peft_config(LoRA(continue_from="x")) is None


@pytest.mark.parametrize(("adapter", "dtype"), [(LoRA, torch.float32), (QLoRA, torch.bfloat16)])
def test_a_continued_adapter_is_loaded_and_trains(tiny, start_adapter, adapter, dtype):
    model = load_policy(tiny(), adapter=adapter(continue_from=str(start_adapter)))
    assert isinstance(model, PeftModel)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    for name, parameter in trained:
        assert "lora_" in name and parameter.dtype == dtype
        assert parameter.abs().max() > 0.01


def test_what_cannot_be_continued_is_named(tiny, tmp_path):
    with pytest.raises(RecipeError, match="holds no LoRA adapter.* adapter_config.json"):
        load_policy(tiny(), adapter=LoRA(continue_from=str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}))
    with pytest.raises(RecipeError, match="is a PROMPT_TUNING adapter"):
        load_policy(tiny(), adapter=LoRA(continue_from=str(tmp_path)))


def test_an_adapter_of_another_base_is_said(tiny, start_adapter):
    def said_on(folder) -> list[str]:
        said: list[str] = []
        recipe = recipe_for(folder, adapter=LoRA(continue_from=str(start_adapter)))
        load_weights(recipe, resolve(recipe, Device()), str(folder), say=said.append)
        return said

    assert said_on(tiny()) == []
    (sentence,) = said_on(tiny(seed=3))
    assert str(tiny()) in sentence and str(tiny(seed=3)) in sentence

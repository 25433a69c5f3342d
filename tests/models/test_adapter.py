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


def test_the_new_adapter_has_the_recipes_numbers_and_leaves_the_head_alone(tiny):
    for adapter, alpha in ((LoRA(r=4), 8), (LoRA(r=4, alpha=3, use_rslora=True), 3)):
        config = peft_config(adapter)
        model = get_peft_model(load_policy(tiny()), config)
        adapted = {n.split(".")[-4] for n, _ in model.named_parameters() if "lora_A" in n}
        assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert (config.lora_alpha, config.use_rslora, config.task_type) == (alpha, adapter.use_rslora, "CAUSAL_LM")
    only = get_peft_model(load_policy(tiny()), peft_config(LoRA(target_modules=["q_proj"])))
    assert sum("lora_A" in n for n, _ in only.named_parameters()) == 2
    assert peft_config(None) is None and peft_config(LoRA(continue_from="x")) is None


@pytest.mark.parametrize(("adapter", "dtype"), [(LoRA, torch.float32), (QLoRA, torch.bfloat16)])
def test_a_continued_adapter_is_loaded_and_trains(tiny, start_adapter, adapter, dtype):
    model = load_policy(tiny(), adapter=adapter(continue_from=str(start_adapter)))
    assert isinstance(model, PeftModel)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n and p.dtype == dtype for n, p in trained.items())
    assert all(p.abs().max() > 0.01 for p in trained.values())


def test_what_cannot_be_continued_is_named(tiny, tmp_path):
    with pytest.raises(RecipeError, match="holds no LoRA adapter .* adapter_config.json"):
        load_policy(tiny(), adapter=LoRA(continue_from=str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}))
    with pytest.raises(RecipeError, match="it is a PROMPT_TUNING adapter"):
        load_policy(tiny(), adapter=LoRA(continue_from=str(tmp_path)))


def test_an_adapter_of_another_base_is_said(tiny, start_adapter):
    said: list[str] = []
    for folder, lines in ((tiny(), 0), (tiny(seed=3), 1)):
        recipe = recipe_for(folder, adapter=LoRA(continue_from=str(start_adapter)))
        load_weights(recipe, resolve(recipe, Device()), str(folder), say=said.append)
        assert len(said) == lines
    assert str(tiny()) in said[0] and str(tiny(seed=3)) in said[0]

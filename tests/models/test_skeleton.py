"""A skeleton has the shapes and types of the model it stands for, and is refused where the model is."""

from __future__ import annotations

import pytest
import torch
from making import recipe_for
from peft import get_peft_model

from dpo_recipes import LoRA, QLoRA, RecipeError
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.skeleton import skeleton
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.resolve import Device, resolve


def test_the_skeleton_of_a_gated_or_missing_model_is_refused_like_its_load_policy(tmp_path):
    recipe = recipe_for(tmp_path)
    with pytest.raises(RecipeError, match="No model could be loaded from"):
        skeleton(recipe, resolve(recipe, Device()), str(tmp_path))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox", "gemma3_text", "phi3", "mistral"])
@pytest.mark.parametrize(
    "adapter",
    [
        None, LoRA(r=4), LoRA(r=4, use_dora=True), LoRA(use_rslora=True, target_modules=["dense", "q_proj", "o_proj"]),
        QLoRA(r=4), QLoRA(r=4, use_dora=True, double_quant=False),
    ],
    ids=["full", "lora", "dora", "rslora on some", "qlora", "qlora dora"],
)  # fmt: skip
def test_a_skeleton_has_every_parameter_of_the_model_in_its_type(tiny, kind, adapter):
    """Names, shapes, dtypes and what trains, and the figures beside 4-bit weights: all equal, nothing allocated."""
    folder = tiny(kind, **({"head_dim": 16} if kind == "gemma3_text" else {}), tie_word_embeddings=kind == "qwen2")
    recipe = recipe_for(folder, adapter=adapter)
    settings = resolve(recipe, Device())
    bare, real = skeleton(recipe, settings, str(folder)), load_weights(recipe, settings, str(folder))
    if adapter:
        real = get_peft_model(real, peft_config(adapter))

    def shape(parameter, trains_in):
        state = getattr(parameter, "quant_state", None)
        dtype = trains_in if parameter.requires_grad else parameter.dtype
        return tuple(parameter.shape), dtype, parameter.requires_grad, state and (state.absmax.shape, state.dtype)

    def shapes(model, halved):  # TRL casts the adapter over 4-bit weights, all but DoRA's magnitudes
        half = {n: torch.bfloat16 if halved and "magnitude" not in n else p.dtype for n, p in model.named_parameters()}
        return {n: shape(p, half[n]) for n, p in model.named_parameters()}

    assert all(t.is_meta for t in [*bare.parameters(), *bare.buffers()])
    assert shapes(bare, False) == shapes(real, isinstance(adapter, QLoRA))


def test_a_skeleton_refuses_the_adapter_that_its_model_cannot_have(tiny, tmp_path):
    for adapter, why in (
        (LoRA(continue_from=str(tmp_path)), "holds no LoRA adapter .* adapter_config.json"),
        (LoRA(target_modules=["nothing"]), "This model takes no such adapter: Target modules .* not found"),
    ):
        recipe = recipe_for(tiny(), adapter=adapter)
        with pytest.raises(RecipeError, match=why):
            skeleton(recipe, resolve(recipe, Device()), str(tiny()))


def test_a_skeleton_stands_for_kernels_that_are_not_there(tiny):
    for asked, made in ((None, "sdpa"), ("flash_attention_2", "sdpa"), ("eager", "eager")):
        recipe = recipe_for(tiny(), attn_implementation=asked)
        assert skeleton(recipe, resolve(recipe, Device()), str(tiny())).config._attn_implementation == made


def test_a_skeleton_leaves_4_bit_loading_as_it_was(tiny):
    """bitsandbytes makes its map of 8-bit numbers once for a process: a skeleton that comes first must not be it."""
    recipe = recipe_for(tiny(), adapter=QLoRA(r=4))
    settings = resolve(recipe, Device())
    skeleton(recipe, settings, str(tiny()))
    weight = load_weights(recipe, settings, str(tiny())).model.layers[0].mlp.up_proj.weight
    assert weight.quant_state.state2.code.device.type == "cpu" and weight.quant_state.state2.code.max() == 1

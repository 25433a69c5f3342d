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


def test_the_skeleton_of_a_gated_or_missing_model_is_refused_like_its_weights(tmp_path):
    recipe = recipe_for(tmp_path)
    with pytest.raises(RecipeError, match="No model could be loaded from"):
        skeleton(recipe, resolve(recipe, Device()), str(tmp_path))


def parameters_of(model, trained_in: torch.dtype | None = None) -> dict[str, tuple]:
    """Name -> shape, dtype, whether it trains, and shape and dtype of the figures beside 4-bit weights.

    `trained_in`: the dtype to which TRL will cast what trains, all but DoRA's magnitudes; None: it casts nothing.
    """
    parameters = {}
    for name, parameter in model.named_parameters():
        dtype = parameter.dtype
        if trained_in and parameter.requires_grad and "magnitude" not in name:
            dtype = trained_in
        figures = None
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            figures = (state.absmax.shape, state.dtype)
        parameters[name] = (tuple(parameter.shape), dtype, parameter.requires_grad, figures)
    return parameters


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox", "gemma3_text", "phi3", "mistral"])
@pytest.mark.parametrize(
    "adapter",
    [
        pytest.param(None, id="full"),
        pytest.param(LoRA(r=4), id="lora"),
        pytest.param(LoRA(r=4, use_dora=True), id="dora"),
        pytest.param(LoRA(use_rslora=True, target_modules=["o_proj"]), id="rslora on some"),
        pytest.param(QLoRA(r=4), id="qlora"),
        pytest.param(QLoRA(r=4, use_dora=True, double_quant=False), id="qlora dora"),
    ],
)
def test_a_skeleton_has_every_parameter_of_the_model_in_its_type(tiny, kind, adapter):
    """Names, shapes, dtypes and what trains, and the figures beside 4-bit weights: all equal, nothing allocated."""
    if adapter and adapter.use_rslora and kind == "gpt_neox":
        adapter = LoRA(use_rslora=True, target_modules=["dense"])  # its name of the same module
    changes = {"head_dim": 16} if kind == "gemma3_text" else {}
    folder = tiny(kind, tie_word_embeddings=kind == "qwen2", **changes)
    recipe = recipe_for(folder, adapter=adapter)
    settings = resolve(recipe, Device())
    bare = skeleton(recipe, settings, str(folder))
    real = load_weights(recipe, settings, str(folder))
    if adapter:
        real = get_peft_model(real, peft_config(adapter))

    assert all(tensor.is_meta for tensor in [*bare.parameters(), *bare.buffers()])
    trained_in = torch.bfloat16 if isinstance(adapter, QLoRA) else None
    assert parameters_of(bare) == parameters_of(real, trained_in)


def test_a_skeleton_refuses_the_adapter_that_its_model_cannot_have(tiny, tmp_path):
    refusals = {
        "holds no LoRA adapter.* adapter_config.json": LoRA(continue_from=str(tmp_path)),
        "names 'nothing', and the model has no such module": LoRA(target_modules=["nothing"]),
    }
    for reason, adapter in refusals.items():
        recipe = recipe_for(tiny(), adapter=adapter)
        with pytest.raises(RecipeError, match=reason):
            skeleton(recipe, resolve(recipe, Device()), str(tiny()))


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        (None, "sdpa"),
        ("flash_attention_2", "sdpa"),
        ("eager", "eager"),
    ],
)
def test_a_skeleton_stands_for_kernels_that_are_not_there(tiny, asked, used):
    recipe = recipe_for(tiny(), attn_implementation=asked)
    bare = skeleton(recipe, resolve(recipe, Device()), str(tiny()))
    assert bare.config._attn_implementation == used


def test_a_skeleton_leaves_4_bit_loading_as_it_was(tiny):
    """bitsandbytes makes its map of 8-bit numbers once for a process: a skeleton that comes first must not be it."""
    recipe = recipe_for(tiny(), adapter=QLoRA(r=4))
    settings = resolve(recipe, Device())
    skeleton(recipe, settings, str(tiny()))
    weight = load_weights(recipe, settings, str(tiny())).model.layers[0].mlp.up_proj.weight
    eight_bit_numbers = weight.quant_state.state2.code
    assert eight_bit_numbers.device.type == "cpu" and eight_bit_numbers.max() == 1

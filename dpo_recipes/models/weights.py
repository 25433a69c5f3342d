"""The weights of a policy or a reference, quantised where the recipe says so."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ..errors import RecipeError
from ..recipe.recipe import QLoRA, Recipe
from ..recipe.resolve import Settings
from .adapter import cast_as_trl, lora_config
from .loading_errors import explained

Say = Callable[[str], None]

# TRL and peft use the old name of this option themselves, so the warning says nothing to a user.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)


def load_weights(
    recipe: Recipe, settings: Settings, path: str, *, trainable: bool = True, say: Say = lambda _: None
) -> Any:
    """The policy before training, or (`trainable=False`) a reference of its own: base weights, quantised for QLoRA.

    TRL adds a new adapter later; one that is continued is loaded here. RecipeError where something cannot be read.
    """
    adapter, options = recipe.adapter, loading_options(recipe, settings, trainable)
    if "quantization_config" in options and torch.cuda.is_available() and not recipe.trl.get("use_cpu"):
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    with explained("model", path):
        model: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    keep_4bit_gradients_right(model)
    if trainable and getattr(model, "peft_config", None):
        remedy = f"To train it on, set model= to its base and adapter.continue_from={path}"
        raise RecipeError(f"model={path!r} is an adapter, which a new one would replace. {remedy}")
    if trainable and adapter is not None and adapter.continue_from:
        folder = os.path.expanduser(adapter.continue_from)
        with lora_config(adapter) as config:
            model = PeftModel.from_pretrained(model, folder, is_trainable=True)
        if os.path.realpath(made_on := str(config.base_model_name_or_path)) != os.path.realpath(path):
            same = "they must be the same weights"
            say(f"The adapter {folder} was made on {made_on}, and is continued on {path}: {same}.")
        cast_as_trl(model)  # before TRL copies the adapter for the reference, so that both are the same numbers
    return model


def loading_options(recipe: Recipe, settings: Settings, trainable: bool) -> dict[str, Any]:
    """How a model is made. The revision and the 4 bits are the policy's own, so also those of its start weights."""
    adapter, dtype = recipe.adapter, getattr(torch, settings.weights)
    options = {"dtype": dtype, "trust_remote_code": recipe.trust_remote_code}
    if recipe.attn_implementation:
        options["attn_implementation"] = recipe.attn_implementation
    if trainable or recipe.reference is None:
        options["revision"] = recipe.revision
        if isinstance(adapter, QLoRA):
            options["quantization_config"] = quantization(adapter.double_quant, dtype)
    return options


def quantization(double_quant: bool, dtype: torch.dtype) -> Any:
    options = {"quant_type": "nf4", "compute_dtype": dtype, "use_double_quant": double_quant}
    return BitsAndBytesConfig(load_in_4bit=True, **{f"bnb_4bit_{name}": value for name, value in options.items()})


def keep_4bit_gradients_right(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in eval mode on CPUs with AVX512-BF16.

    It repacks for an inference kernel that has no gradient; back in train mode the loss stays right, but gradients
    through these layers are garbage (0.50.2). To go when that kernel has a gradient or train() unpacks.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False

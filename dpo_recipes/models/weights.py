"""The weights of a policy or a reference, quantised where the recipe says so.

Leans on TRL 1.16: `DPOTrainer` adds a new adapter later, and copies one that is loaded before it casts it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ..errors import RecipeError
from ..recipe.adapters import QLoRA
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings
from .adapter import continue_adapter, refuse_targets
from .checkpoint import load_checkpoint

# TRL and peft use the old name of this option themselves, so the warning says nothing to a user.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)


def load_weights(
    recipe: Recipe,
    settings: Settings,
    path: str,
    *,
    trainable: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Any:
    """The policy before training, or (`trainable=False`) a reference of its own: base weights, quantised for QLoRA.

    TRL adds a new adapter later; one that is continued is loaded here. RecipeError where something cannot be read.
    """
    options = loading_options(recipe, settings, trainable)
    if "quantization_config" in options:
        options |= _placement(use_cpu=bool(recipe.trl.get("use_cpu")))
    model = load_checkpoint(path, **options)
    keep_4bit_gradients_right(model)
    _refuse_numbers_that_are_not_finite(model, path, settings.weights)
    if not trainable:
        return model

    # Transformers loads an adapter's folder as its base with the adapter on it.
    if getattr(model, "peft_config", None):
        raise RecipeError(
            f"model={path!r} is an adapter, which a new one would replace. "
            f"To train it on, set model= to its base and adapter.continue_from={path}"
        )
    adapter = recipe.adapter
    if adapter is None:
        return model
    if adapter.continue_from:
        model = continue_adapter(model, adapter, path, say)
        _refuse_numbers_that_are_not_finite(model, adapter.continue_from, settings.weights)
        return model
    refuse_targets(model, adapter)
    return model


NAMED = 3  # tensors that a message names


def _refuse_numbers_that_are_not_finite(model: Any, path: str, dtype: str) -> None:
    """A NaN among the weights would be blamed, steps later, on whatever computes with it."""
    names = not_finite(model)
    if not names:
        return
    shown = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        shown += f" and {len(names) - NAMED:,} other tensors"
    advice = "Its file is damaged, or was saved by a run that had broken: fetch it again, or take an earlier one."
    if dtype == "float16":
        advice += " Or they overflow in float16, above 65,504: try another dtype."
    raise RecipeError(f"The weights of {path!r} hold numbers that are not finite, in {shown}. {advice}")


def not_finite(model: Any) -> list[str]:
    """The names of the tensors that hold a NaN or an infinity."""
    names = []
    for name, parameter in model.named_parameters():
        tensors = [parameter]
        state = getattr(parameter, "quant_state", None)
        if state is not None:  # packed 4-bit weights are whole numbers; their scales tell
            tensors += [scales for scales in (state.absmax, state.offset) if scales is not None]
        if not all(_is_finite(tensor) for tensor in tensors):
            names.append(name)
    return names


def _is_finite(tensor: torch.Tensor) -> bool:
    """Found without a copy of the tensor. Whole numbers are finite; a tensor on no device has none."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def loading_options(recipe: Recipe, settings: Settings, trainable: bool) -> dict[str, Any]:
    """How Transformers is to make the policy, or (`trainable=False`) its reference."""
    adapter = recipe.adapter
    dtype = getattr(torch, settings.weights)
    options = {"dtype": dtype, "trust_remote_code": recipe.trust_remote_code}
    if recipe.attn_implementation:
        options["attn_implementation"] = recipe.attn_implementation

    # The revision and the 4 bits are the policy's own, so also those of its start weights, not of another model.
    of_the_policy = trainable or recipe.reference is None
    if of_the_policy:
        options["revision"] = recipe.revision
    if of_the_policy and isinstance(adapter, QLoRA):
        options["quantization_config"] = quantization(adapter.double_quant, dtype)
    return options


def _placement(use_cpu: bool) -> dict[str, Any]:
    """Where 4-bit weights go. They are packed while they are loaded, so they are loaded to where they stay.

    Left to itself Transformers takes the current GPU wherever there is one, for a run on the CPU too.
    """
    if use_cpu:
        return {"device_map": {"": "cpu"}}
    if torch.cuda.is_available():
        return {"device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}
    return {}


def quantization(double_quant: bool, dtype: torch.dtype) -> Any:
    """QLoRA's 4-bit NF4 weights (2305.14314), computing in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double_quant,
    )


def keep_4bit_gradients_right(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in eval mode on CPUs with AVX512-BF16.

    It repacks for an inference kernel that has no gradient; back in train mode the loss stays right, but gradients
    through these layers are garbage (0.50.2). To go when that kernel has a gradient or train() unpacks.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False

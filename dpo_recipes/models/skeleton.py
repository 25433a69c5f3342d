"""The shapes and types of a model and its adapter, without a number of them: what memory is planned from.

Leans on TRL 1.16: `DPOTrainer` keeps the start of a continued adapter as a second one, and casts what trains over
4-bit weights to bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig
from transformers.quantizers import AutoHfQuantizer

from ..recipe.adapters import LoRA
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings
from .adapter import cast_as_trl, lora_config, refuse_targets
from .auto_class import auto_class
from .loading_errors import explained
from .weights import loading_options


def skeleton(recipe: Recipe, settings: Settings, path: str, *, trainable: bool = True) -> Any:
    """What `load_weights` and TRL would make of it, adapter included, from the config alone: on the meta device.

    `dtype_of_files` of the causal model is the type in which its files hold the weights.
    """
    options = loading_options(recipe, settings, trainable)
    revision = options.pop("revision", None)
    quantization_config = options.pop("quantization_config", None)
    if options.get("attn_implementation") != "eager":
        # SDPA, which needs as much memory as kernels that are not installed here.
        options.pop("attn_implementation", None)
    with explained("model", path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=recipe.trust_remote_code)
        dtype_of_files = config.dtype or torch.float32  # as said by config.json; from_config sets it anew
        model = auto_class(config).from_config(config, **options)
        model.dtype_of_files = dtype_of_files
    if quantization_config:
        _quantize(model, quantization_config, options["dtype"])
    if trainable and recipe.adapter is not None:
        return _with_adapter(model, recipe.adapter, settings)
    return model


def with_adapter_of(model: Any, folder: str) -> Any:
    """The skeleton of a reference with the adapter of a folder on it."""
    with torch.device("meta"), lora_config(LoRA(continue_from=folder), "reference") as config:
        return get_peft_model(model, config)


def _quantize(model: Any, quantization_config: Any, dtype: torch.dtype) -> None:
    """Give the layers the 4-bit weights and the figures beside them that loading would give them."""
    from bitsandbytes.functional import create_dynamic_map, name2qmap

    quantizer = AutoHfQuantizer.from_config(quantization_config)
    quantizer.preprocess_model(model, device_map=None)
    # bitsandbytes makes this map once for the process. Made below it would be on the meta device, without numbers, for
    # every model loaded later.
    name2qmap.setdefault("dynamic", create_dynamic_map())
    for module in model.modules():
        if type(module).__name__ != "Linear4bit":
            continue
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
        module.weight._quantize("meta")
    quantizer.postprocess_model(model)


def _with_adapter(model: Any, adapter: LoRA, settings: Settings) -> Any:
    """The model with its new or continued adapter, and beside a continued one the frozen copy that is its reference."""
    if not adapter.continue_from:
        refuse_targets(model, adapter)
    with torch.device("meta"), lora_config(adapter) as config:
        config.inference_mode = False
        model = get_peft_model(model, config)
        cast_as_trl(model)
        if settings.reference == "frozen adapter":
            model.add_adapter("ref", config)
    return model

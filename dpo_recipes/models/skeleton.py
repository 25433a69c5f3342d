"""The shapes and types of a model, without a number of it."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers import AutoHfQuantizer

from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings
from .adapter import cast_as_trl, lora_config
from .loading_errors import explained
from .weights import loading_options


def skeleton(recipe: Recipe, settings: Settings, path: str, *, trainable: bool = True) -> Any:
    """What `load_weights` and TRL would make of it, adapter included, from the config alone: on the meta device."""
    adapter, options = recipe.adapter, loading_options(recipe, settings, trainable)
    revision, quantization = options.pop("revision", None), options.pop("quantization_config", None)
    if options.get("attn_implementation") != "eager":  # SDPA, which needs as much as kernels that are not there
        options.pop("attn_implementation", None)
    with explained("model", path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=recipe.trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, **options)
    if quantization:
        from bitsandbytes.functional import create_dynamic_map, name2qmap

        quantizer = AutoHfQuantizer.from_config(quantization)
        quantizer.preprocess_model(model, device_map=None)
        name2qmap.setdefault("dynamic", create_dynamic_map())  # made once for the process: let it have numbers
        for module in (m for m in model.modules() if type(m).__name__ == "Linear4bit"):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(options["dtype"])
            module.weight._quantize("meta")
        quantizer.postprocess_model(model)
    if trainable and adapter is not None:
        with torch.device("meta"), lora_config(adapter) as made:
            made.inference_mode = False
            model = get_peft_model(model, made)
            cast_as_trl(model)
            if settings.reference == "frozen adapter":
                model.add_adapter("ref", made)
    return model

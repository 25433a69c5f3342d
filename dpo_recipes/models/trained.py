"""The model that a finished run has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import RecipeError
from .loading_errors import explained
from .weights import keep_4bit_gradients_right, quantization


def load_trained(folder: Path, resolved: dict[str, Any]) -> tuple[Any, Any]:
    """(model, tokenizer) of a finished run: the base as it was trained on (4-bit for QLoRA), with the adapter on.

    `resolved` is the run's recipe.json: dotted key -> {"value", "origin"}.
    """
    model_folder = folder / "model"
    written = [(model_folder / name).is_file() for name in ("config.json", "adapter_config.json")]
    if not any(written):
        raise RecipeError(f"{model_folder} holds no model: the run has not finished.")

    values = {key: entry["value"] for key, entry in resolved.items()}
    weights_dtype = str(values["dtype"]).split()[0]  # of "bfloat16 weights, bf16 autocast"
    options: dict[str, Any] = {
        "trust_remote_code": values["trust_remote_code"],
        "dtype": getattr(torch, weights_dtype),
    }
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if values["adapter"] is None:
        return AutoModelForCausalLM.from_pretrained(model_folder, **options), tokenizer

    base = PeftConfig.from_pretrained(str(model_folder)).base_model_name_or_path
    if values["adapter"] == "QLoRA":
        options["quantization_config"] = quantization(values["adapter.double_quant"], options["dtype"])
    with explained("base model", base):
        model = AutoModelForCausalLM.from_pretrained(base, revision=values["revision"], **options)
    keep_4bit_gradients_right(model)
    return PeftModel.from_pretrained(model, model_folder), tokenizer

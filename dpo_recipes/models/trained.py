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
    """(model, tokenizer) of a finished run: the base as it was trained on (4-bit for QLoRA), with the adapter on."""
    where = folder / "model"
    if not (where / "config.json").is_file() and not (where / "adapter_config.json").is_file():
        raise RecipeError(f"{where} holds no model: the run has not finished.")
    value = {key: entry["value"] for key, entry in resolved.items()}
    dtype = getattr(torch, str(value["dtype"]).split()[0])
    options: dict[str, Any] = {"trust_remote_code": value["trust_remote_code"], "dtype": dtype}
    tokenizer = AutoTokenizer.from_pretrained(where)
    if value["adapter"] is None:
        return AutoModelForCausalLM.from_pretrained(where, **options), tokenizer
    base = PeftConfig.from_pretrained(str(where)).base_model_name_or_path
    if value["adapter"] == "QLoRA":
        options["quantization_config"] = quantization(value["adapter.double_quant"], dtype)
    with explained("base model", base):
        model = AutoModelForCausalLM.from_pretrained(base, revision=value["revision"], **options)
    keep_4bit_gradients_right(model)
    return PeftModel.from_pretrained(model, where), tokenizer

"""The model that a finished run has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..errors import RecipeError
from .adapter import put_on, refuse_other_adapter_weights
from .checkpoint import load_checkpoint
from .loading_errors import explained
from .model_folder import base_of_run, refuse_model_of_run
from .weights import keep_4bit_gradients_right, quantization


def put_trained_weights(model: Any, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Give a model as it was before training the weights of a run's model folder: its adapter's, or all of them.

    RecipeError where the folder holds none, or others than the model has.
    """
    if (folder / "adapter_config.json").is_file():
        refuse_other_adapter_weights(model, str(folder))  # which puts them in
        return
    if not (folder / "config.json").is_file():
        raise RecipeError(f"{folder} holds no model: the run has not finished.")
    dtype = next(model.parameters()).dtype
    trained = load_checkpoint(str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
    model.load_state_dict(trained.state_dict())


def load_trained(model_folder: Path, resolved: dict[str, Any]) -> tuple[Any, Any]:
    """(model, tokenizer) that a run has left: the base as it was trained on (4-bit for QLoRA), with the adapter on.

    `resolved` is the run's recipe.json: dotted key -> {"value", "origin"}.
    """
    values = {key: entry["value"] for key, entry in resolved.items()}
    refuse_model_of_run(model_folder, is_adapter=values.get("adapter") is not None)
    weights_dtype = str(values["dtype"]).split()[0]  # of "bfloat16 weights, bf16 autocast"
    options: dict[str, Any] = {
        "trust_remote_code": values["trust_remote_code"],
        "dtype": getattr(torch, weights_dtype),
    }
    with explained("tokenizer", str(model_folder)):
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if values["adapter"] is None:
        return load_checkpoint(str(model_folder), **options), tokenizer

    base = base_of_run(model_folder)
    if values["adapter"] == "QLoRA":
        options["quantization_config"] = quantization(values["adapter.double_quant"], options["dtype"])
    model = load_checkpoint(base, "base model", revision=values["revision"], **options)
    keep_4bit_gradients_right(model)
    trained = put_on(model, str(model_folder))
    refuse_other_adapter_weights(trained, str(model_folder))
    return trained, tokenizer

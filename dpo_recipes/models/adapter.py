"""LoRA adapters: a new one's configuration, and one that is continued."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig

from ..errors import RecipeError
from ..recipe.recipe import LoRA
from .loading_errors import first_line


def peft_config(adapter: LoRA | None) -> Any:
    """The LoraConfig of a new adapter; None in full fine-tuning and when an adapter is continued."""
    if adapter is None or adapter.continue_from:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM", r=adapter.r, lora_alpha=adapter.alpha or 2 * adapter.r, lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules, use_rslora=adapter.use_rslora, use_dora=adapter.use_dora,
    )  # fmt: skip


@contextmanager
def lora_config(adapter: LoRA) -> Iterator[Any]:
    """The adapter's configuration, new or of the folder it continues; what goes wrong with it becomes a RecipeError."""
    folder = os.path.expanduser(adapter.continue_from or "")
    try:
        config = PeftConfig.from_pretrained(folder) if folder else peft_config(adapter)
        if config.peft_type != "LORA":
            raise TypeError(f"it is a {config.peft_type.value} adapter")
        yield config
    except Exception as error:
        form = "It must be a folder with adapter_config.json and adapter_model.safetensors, made on the same base."
        why = f"adapter.continue_from={folder!r} holds no LoRA adapter for this model: {first_line(error)}. {form}"
        raise RecipeError(why if folder else f"This model takes no such adapter: {first_line(error)}.") from error


def cast_as_trl(model: Any) -> None:
    """Over 4-bit weights TRL trains the adapter in bf16, all but DoRA's magnitudes."""
    if getattr(model, "is_loaded_in_4bit", False):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)

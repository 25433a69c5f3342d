"""LoRA adapters: the configuration of a new one, and one that is continued.

Leans on TRL 1.16: `DPOTrainer` adds a new adapter itself, and casts what trains over 4-bit weights to bf16.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel

from ..errors import RecipeError
from ..recipe.recipe import LoRA
from .loading_errors import first_line


def peft_config(adapter: LoRA | None) -> Any:
    """The LoraConfig of a new adapter; None in full fine-tuning and when an adapter is continued."""
    if adapter is None or adapter.continue_from:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha or 2 * adapter.r,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
    )


def continue_adapter(model: Any, adapter: LoRA, path: str, say: Callable[[str], None]) -> Any:
    """The model of `path` with the recipe's start adapter on it, ready to train.

    Says so where the adapter was made on a model of another name. RecipeError where it does not fit.
    """
    folder = os.path.expanduser(str(adapter.continue_from))
    with lora_config(adapter) as config:
        model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    base = str(config.base_model_name_or_path)
    if os.path.realpath(base) != os.path.realpath(path):
        say(f"The adapter {folder} was made on {base}, and is continued on {path}: they must be the same weights.")
    cast_as_trl(model)  # before TRL copies the adapter for the reference, so that both are the same numbers
    return model


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
        reason = first_line(error)
        if folder:
            raise RecipeError(
                f"adapter.continue_from={folder!r} holds no LoRA adapter for this model: {reason}. It must be a folder "
                "with adapter_config.json and adapter_model.safetensors, made on the same base."
            ) from error
        raise RecipeError(f"This model takes no such adapter: {reason}.") from error


def cast_as_trl(model: Any) -> None:
    """Over 4-bit weights TRL trains the adapter in bf16, all but DoRA's magnitudes."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)

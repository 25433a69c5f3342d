"""What the options of a recipe ask of this machine, known before anything is loaded: packages, files, a token.

Leans on TRL 1.16: how its Trainer, which is Transformers', makes the optimizer and the schedule from DPOConfig.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import RecipeError, nearest
from ..recipe.resolve import processes
from ..recipe.trl_options import PACKAGES

# Optimizers that can be made without a model, so that it can be seen what they read.
MADE_WITHOUT_MODEL = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
# Options of which nothing is read where one process trains alone.
OF_SEVERAL_PROCESSES = (
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_static_graph",
    "ddp_timeout",
    "log_level_replica",
    "log_on_each_node",
    "save_on_each_node",
)
CONFIGURATION_FILES = ("deepspeed", "fsdp_config", "accelerator_config")  # options that may name a JSON file


def require_options(trl: Mapping[str, Any]) -> None:
    """RecipeError where an option needs a package, a file, a token or processes that are not there."""
    for option, packages in PACKAGES.items():
        values = trl.get(option)
        for value in values if isinstance(values, list) else [values]:
            if value in packages:
                _require_package(f"trl.{option}={value}", *packages[value])
    if trl.get("deepspeed"):
        _require_package("trl.deepspeed", "deepspeed", "deepspeed")
    for option in CONFIGURATION_FILES:
        _require_json_file(option, trl.get(option))
    if trl.get("fsdp"):
        raise RecipeError(
            f"trl.fsdp={trl['fsdp']!r} shards a model over several processes, which a launcher starts: delete it, and "
            "use dpo-recipes train RECIPE --launch fsdp2."
        )
    for option in OF_SEVERAL_PROCESSES:
        if option in trl and processes() == 1:
            raise RecipeError(
                f"trl.{option}={trl[option]!r} would do nothing here: it is read where several processes train "
                "together, and here is one. Delete it."
            )
    if trl.get("push_to_hub"):
        _require_token(trl.get("hub_token"))


def _require_package(shown: str, module: str, pip_name: str) -> None:
    if find_spec(module) is None:
        raise RecipeError(f"{shown} needs the package {pip_name}, which is not installed: pip install {pip_name}")


def _require_json_file(option: str, value: Any) -> None:
    """Of an option that is the path of a JSON file; JSON itself and a dict are looked at by DPOConfig."""
    if not isinstance(value, str) or value.lstrip().startswith("{"):
        return
    shown = f"trl.{option}={value}"
    try:
        json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{shown}: there is no such file in {Path.cwd()}.") from None
    except OSError as error:
        raise RecipeError(f"{shown} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise RecipeError(f"{shown} is no JSON file: {error}.") from None


def _require_token(given: str | None) -> None:
    """Known here, because after the training would be too late."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1":
        raise RecipeError(
            "trl.push_to_hub=true sends the model to the hub, and HF_HUB_OFFLINE is set. Unset one of the two."
        )
    if not (given or get_token()):
        raise RecipeError(
            "trl.push_to_hub=true sends the model to the hub, and there is no token for it: run `hf auth login`, or "
            "set HF_TOKEN."
        )


def try_options(arguments: Any, trl: Mapping[str, Any]) -> None:
    """Make optimizer and schedule for one number, as the Trainer will for the model; RecipeError where one refuses.

    `arguments` is the DPOConfig, `trl` what the recipe has set of it. An optimizer that cannot be made without a model
    is left to the Trainer.
    """
    import torch
    from transformers import Trainer, get_scheduler

    number = torch.nn.Parameter(torch.zeros(1))
    optimizer: torch.optim.Optimizer = torch.optim.SGD([number], lr=1.0)
    if arguments.optim in MADE_WITHOUT_MODEL:
        try:
            optimizer_class, numbers = Trainer.get_optimizer_cls_and_kwargs(arguments)
            optimizer = optimizer_class([number], **numbers)
        except (ValueError, TypeError, KeyError) as error:
            raise RecipeError(
                f"trl.optim={_word(arguments.optim)!r} cannot be made: {_reason(error)} Its own numbers are in "
                "trl.optim_args, as in optim_args=momentum=0.9."
            ) from error
        _refuse_unread_numbers(arguments, trl)
    if arguments.torch_compile:
        _refuse_unknown_compiler(arguments)

    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(
            f"trl.lr_scheduler_type={_word(arguments.lr_scheduler_type)!r} cannot be made: {_reason(error)} Its own "
            "numbers go into trl.lr_scheduler_kwargs, as in lr_scheduler_kwargs={'min_lr_rate': 0.1}."
        ) from error


def _refuse_unknown_compiler(arguments: Any) -> None:
    """The names that torch.compile would look up at the first step."""
    from accelerate.utils import DynamoBackend
    from torch._inductor import list_mode_options

    backends = [backend.value.lower() for backend in DynamoBackend if backend != DynamoBackend.NO]
    modes = list(list_mode_options())
    for option, value, known in (
        ("torch_compile_backend", arguments.torch_compile_backend, backends),
        ("torch_compile_mode", arguments.torch_compile_mode, modes),
    ):
        if value is not None and value.lower() not in known:
            raise RecipeError(f"trl.{option}={value!r} is not one of {', '.join(known)}.{nearest(value, known)}")


def require_device(trl: Mapping[str, Any]) -> None:
    """RecipeError where an option needs a device that this machine has not."""
    import torch

    if trl.get("activation_offloading") and torch.accelerator.current_accelerator() is None:
        raise RecipeError(
            "trl.activation_offloading=True moves activations from a GPU to the machine's own memory, and here is no "
            "GPU. Delete it."
        )


def _refuse_unread_numbers(arguments: Any, trl: Mapping[str, Any]) -> None:
    """Numbers that the optimizer is the same without: another optimizer's, or mistyped ones."""
    optimizer = _word(arguments.optim)
    for option in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if option in trl and not _is_read(arguments, option, trl[option] / 2):
            raise RecipeError(
                f"trl.{option}={trl[option]!r} would do nothing here: optim={optimizer!r} does not read it. Delete it."
            )

    parts = str(trl.get("optim_args") or "").replace(" ", "").split(",")
    for part in filter(None, parts):
        without_it = ",".join(other for other in parts if other != part)
        if not _is_read(arguments, "optim_args", without_it):
            raise RecipeError(
                f"trl.optim_args: {part} would do nothing here: optim={optimizer!r} reads no such number. Delete it."
            )


def _is_read(arguments: Any, option: str, other_value: Any) -> bool:
    """Whether the optimizer would be another one if this option had another value."""
    from transformers import Trainer

    changed = copy.copy(arguments)
    setattr(changed, option, other_value)
    return Trainer.get_optimizer_cls_and_kwargs(changed) != Trainer.get_optimizer_cls_and_kwargs(arguments)


def _word(value: Any) -> str:
    """An enum of Transformers as it is written in a recipe."""
    return str(getattr(value, "value", value))


def _reason(error: Exception) -> str:
    """A library's own sentence, with a full stop."""
    return f"{' '.join(str(error).split()).rstrip('.')}."

"""LoRA adapters: the configuration of a new one, and one that is continued.

Leans on TRL 1.16: `DPOTrainer` adds a new adapter itself, and casts what trains over 4-bit weights to bf16.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from ..errors import RecipeError, nearest
from ..recipe.adapters import LoRA
from .loading_errors import explained, reason_of
from .model_folder import refuse_adapter_folder

LINEAR = (torch.nn.Linear, Conv1D)
ADAPTABLE = (*LINEAR, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
OTHER_SENSES = re.compile(r"vision|visual|image|audio|speech")  # in the names of modules that read no text
LISTED = 12  # names of modules that a message lists


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


def refuse_targets(model: Any, adapter: LoRA) -> None:
    """RecipeError for a name in `target_modules` that adapts nothing, and for a rank that no target can use.

    PEFT asks for one match of all the names together, so that a name misspelt beside a right one is left out unsaid.
    """
    targets = adapter.target_modules
    modules = {name: module for name, module in model.named_modules() if name}
    head = model.get_output_embeddings()
    if targets == "all-linear":
        linear = [module for module in modules.values() if isinstance(module, LINEAR) and module is not head]
        _refuse_rank(adapter.r, linear)
        return

    is_pattern = isinstance(targets, str)
    adapted = []
    for target in [targets] if isinstance(targets, str) else targets:
        matches = _matches(target, modules, is_pattern)
        _refuse_target(target, matches, modules, is_pattern)
        if any(modules[name] is head for name in matches):
            raise RecipeError(
                f"adapter.target_modules={target!r} means the head too, whose weight TRL reads past any adapter. "
                "Name the other modules."
            )
        adapted += [modules[name] for name in matches]
    _refuse_rank(adapter.r, adapted)


def _matches(target: str, modules: dict[str, Any], is_pattern: bool) -> list[str]:
    """The modules that a target means to PEFT: a list holds ends of names, a text is a pattern for whole names."""
    if not is_pattern:
        return [name for name in modules if name == target or name.endswith(f".{target}")]
    try:
        return [name for name in modules if re.fullmatch(target, name)]
    except re.error as error:
        raise RecipeError(f"adapter.target_modules={target!r} is no regular expression: {error}.") from None


def _refuse_target(target: str, matches: list[str], modules: dict[str, Any], is_pattern: bool) -> None:
    adaptable = [name for name, module in modules.items() if isinstance(module, LINEAR)]
    endings = list(dict.fromkeys(name.rpartition(".")[2] for name in adaptable))
    choice = f"Its linear modules: {', '.join(endings[:LISTED])}."

    if not matches and is_pattern:
        as_list = ""
        if _matches(target, modules, is_pattern=False):
            as_list = f" As a list it names modules: adapter.target_modules=['{target}']."
        raise RecipeError(
            f"adapter.target_modules={target!r} is a regular expression for whole names, such as "
            f"{next(iter(adaptable), 'none')}, and matches none.{as_list} {choice}"
        )
    if not matches:
        experts = ""
        if any(".experts" in name for name in modules):
            experts = " The weights of its experts are in one tensor a layer, which LoRA does not take."
        raise RecipeError(
            f"adapter.target_modules names {target!r}, and the model has no such module."
            f"{nearest(target, endings)}{experts} {choice}"
        )

    untakable = [name for name in matches if not isinstance(modules[name], ADAPTABLE)]
    if untakable:
        kind = type(modules[untakable[0]]).__name__
        raise RecipeError(
            f"adapter.target_modules={target!r} means {untakable[0]}, a {kind}, and LoRA takes linear layers. {choice}"
        )
    if all(OTHER_SENSES.search(name) for name in matches):
        raise RecipeError(
            f"adapter.target_modules={target!r} is only in the part that reads no text ({matches[0]}), where nothing "
            f"is learned from text pairs. {choice}"
        )


def _refuse_rank(rank: int, adapted: list[Any]) -> None:
    """A product of two matrices has no more rank than the smaller side of the weight it is added to."""
    largest = max([_smaller_side(module) for module in adapted if isinstance(module, LINEAR)], default=rank)
    if rank > largest:
        raise RecipeError(
            f"adapter.r={rank} is above the largest rank that any adapted module can have, {largest}. "
            f"At most adapter.r={largest}; 8 to 64 are usual."
        )


def _smaller_side(module: Any) -> int:
    if isinstance(module, Conv1D):
        return min(module.weight.shape)
    return min(module.in_features, module.out_features)  # of a 4-bit layer the weight is packed


def continue_adapter(model: Any, adapter: LoRA, path: str, say: Callable[[str], None]) -> Any:
    """The model of `path` with the recipe's start adapter on it, ready to train.

    Says so where the adapter was made on a model of another name. RecipeError where it does not fit.
    """
    folder = os.path.expanduser(str(adapter.continue_from))
    with lora_config(adapter) as config:
        model = put_on(model, folder, is_trainable=True)
    refuse_other_adapter_weights(model, folder)

    base = str(config.base_model_name_or_path)
    if os.path.realpath(base) != os.path.realpath(path):
        say(f"The adapter {folder} was made on {base}, and is continued on {path}: they must be the same weights.")
    model.peft_config["default"].base_model_name_or_path = path  # what it is saved with, wherever it was made
    cast_as_trl(model)  # before TRL copies the adapter for the reference, so that both are the same numbers
    return model


def put_on(model: Any, folder: str, is_trainable: bool = False) -> Any:
    """The model with the adapter of a folder on it. What PEFT warns of is refused by `refuse_other_adapter_weights`."""
    with explained("adapter", folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        return PeftModel.from_pretrained(model, folder, is_trainable=is_trainable)


def with_adapter_in_place(model: Any, folder: str) -> Any:
    """The model itself, with layers of a folder's adapter in place of its own: TRL's head takes no PeftModel."""
    with_adapter = put_on(model, folder)
    refuse_other_adapter_weights(with_adapter, folder)
    return with_adapter.get_base_model()


def refuse_other_adapter_weights(model: Any, folder: str) -> None:
    """RecipeError where the adapter's file lacks a tensor of the adapter, or has one that nothing reads.

    PEFT warns of the first, and is silent of the second.
    """
    tensors = load_peft_weights(folder, device="cpu")
    result: Any = set_peft_model_state_dict(model, tensors)
    missing = [name for name in result.missing_keys if ".lora_" in name and ".default" in name]
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    problems = {
        "Missing from its file": missing,
        "In its file, and not read by this model": list(result.unexpected_keys),
        "NaN or Inf in its file": broken,
    }
    _refuse_problems(problems, folder, len(tensors))


def refuse_unfit_adapter_file(skeleton: Any, folder: str) -> None:
    """The same from the names in its file alone, before a weight is read; the `skeleton` has the adapter on it."""
    file = os.path.join(folder, "adapter_model.safetensors")
    if not os.path.isfile(file):  # of the hub, or in another format: it is looked at when it is loaded
        return
    with safe_open(file, framework="pt") as tensors:
        names = tensors.keys()  # the file itself is no iterable
        shapes = {name: list(tensors.get_slice(name).get_shape()) for name in names}
    in_file = {name: shape for name, shape in shapes.items() if ".lora_A." in name or ".lora_B." in name}
    wanted = {
        name.replace(".default.", "."): list(parameter.shape)
        for name, parameter in skeleton.named_parameters()
        if ".lora_A.default." in name or ".lora_B.default." in name
    }
    both = wanted.keys() & in_file.keys()
    problems = {
        "Missing from its file": wanted.keys() - in_file.keys(),
        "In its file, and not read by this model": in_file.keys() - wanted.keys(),
        "Of another shape than the model and its adapter_config.json have it": [
            f"{name} is {in_file[name]} for {wanted[name]}" for name in both if wanted[name] != in_file[name]
        ],
    }
    _refuse_problems(problems, folder, len(wanted.keys() | in_file.keys()))


def _refuse_problems(problems: Mapping[str, Collection[str]], folder: str, tensors: int) -> None:
    """RecipeError for the first problem that some of an adapter's tensors have; problem -> their names."""
    for problem, names in problems.items():
        if names:
            raise RecipeError(
                f"The adapter in {folder!r} does not fit the model, or is not whole. {problem}: {min(names)} "
                f"({len(names)} of {tensors} tensors). It must be complete, and made on the same model."
            )


@contextmanager
def lora_config(adapter: LoRA, field: str = "adapter.continue_from") -> Iterator[Any]:
    """The adapter's configuration, new or of the folder it continues; what goes wrong with it becomes a RecipeError.

    `field` of the recipe names that folder.
    """
    folder = os.path.expanduser(adapter.continue_from or "")
    if os.path.exists(folder):
        refuse_adapter_folder(folder, field)
    try:
        config = PeftConfig.from_pretrained(folder) if folder else peft_config(adapter)
        if config.peft_type != "LORA":
            raise TypeError(f"it is a {config.peft_type.value} adapter")
        yield config
    except RecipeError:
        raise
    except Exception as error:  # of PEFT, of JSON, or of the block, which puts the adapter on a model
        reason = reason_of(error)
        if folder:
            raise RecipeError(
                f"{field}={folder!r} holds no LoRA adapter for this model: {reason}. It must be a folder "
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

"""Weights read from files: all that the model has, none that nobody reads, each of its shape.

Transformers replaces a weight that the files lack by random numbers, leaves one that it does not know unread, and
warns of both in a log. Training goes on, and so does every number that it reports.

Leans on Transformers 5.23: `output_loading_info`, which leaves out what it expects to be absent, such as a tied head.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import RecipeError
from .auto_class import auto_class_of
from .loading_errors import explained

NAMED = 3  # weights of each kind that a message names


def load_checkpoint(path: str, what: str = "model", **options: Any) -> Any:
    """`from_pretrained` of the model's Auto class; RecipeError names what the files lack, or have too much."""
    with explained(what, path), without_load_report():
        loaded: Any = auto_class_of(path, **options).from_pretrained(
            path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
    model, report = loaded
    if getattr(model, "peft_config", None):
        return model  # the folder of an adapter, of which the report is; the caller refuses it
    refuse_other_weights(model, report, path)
    _refuse_other_4bit_shapes(model, path)
    return model


def refuse_unfit_files(path: str, **options: Any) -> None:
    """The same from the names and shapes in the files alone: no weight is read."""
    with explained("model", path), without_load_report():
        loaded: Any = auto_class_of(path, **options).from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, device_map="meta", **options
        )
    model, report = loaded
    refuse_other_weights(model, report, path)


# ------------------------------------------------------------------------------------------------------------- names


def refuse_other_weights(model: Any, report: dict[str, Any], path: str) -> None:
    """RecipeError where the files lack a weight of the model, have one that it does not read, or one of another shape.

    `report` is what Transformers has found: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
    """
    missing = _in_order(report["missing_keys"])
    unexpected = _in_order(report["unexpected_keys"])
    reshaped = []
    for name, of_the_file, of_the_model in sorted(report["mismatched_keys"], key=lambda entry: _natural(entry[0])):
        reshaped.append(f"{name} is {list(of_the_file)} for {list(of_the_model)}")

    differences = []
    if missing:
        differences.append(f"{_counted(missing)} missing and would be random numbers: {_first(missing)}.")
    if unexpected:
        differences.append(f"{_counted(unexpected)} in the files that the model does not read: {_first(unexpected)}.")
    if reshaped:
        differences.append(f"{_counted(reshaped)} of another shape than the model's: {_first(reshaped)}.")
    if differences:
        raise RecipeError(
            f"The weights in {path!r} are not those of its config.json. {' '.join(differences)} "
            f"{_cause(model, missing, unexpected)}"
        )


def _cause(model: Any, missing: list[str], unexpected: list[str]) -> str:
    """What it looks like, and what to do."""
    if any(".lora_" in name or ".base_layer." in name for name in unexpected):
        return (
            "They hold an adapter that was not merged: call merge_and_unload() before save_pretrained, "
            "or train the adapter on with adapter.continue_from."
        )
    prefix = _prefix(missing, unexpected)
    if prefix:
        return (
            f"The names would match without {prefix!r}: they were saved from a wrapped model. Save the model inside "
            f"it, or take {prefix!r} off every name."
        )

    layers = _layers_of(model)
    held = _layers_held(model, missing, unexpected)
    if layers and held and held != layers:
        return f"config.json says num_hidden_layers={layers}, and the files hold {held} layers: correct the wrong one."
    if missing and not unexpected and all(name.endswith(("lm_head.weight", "embed_out.weight")) for name in missing):
        return (
            "Only the head is missing. Save the whole model, not its base; or, where the head is the embedding, set "
            '"tie_word_embeddings": true in config.json.'
        )
    return (
        "Save the model again with save_pretrained, or download it whole, so that config and weights belong together."
    )


def _prefix(missing: list[str], unexpected: list[str]) -> str | None:
    """What stands before every missing name in the files, such as `module.`."""
    if not missing:
        return None
    in_files = set(unexpected)
    prefixes = {name.removesuffix(missing[0]) for name in unexpected if name.endswith(f".{missing[0]}")}
    for prefix in sorted(prefixes, key=len):
        if all(prefix + name in in_files for name in missing):
            return prefix
    return None


def _layers_of(model: Any) -> int | None:
    return getattr(model.config.get_text_config(), "num_hidden_layers", None)


def _layers_held(model: Any, missing: list[str], unexpected: list[str]) -> int | None:
    """How many layers the files hold, where whole ones and nothing else are too few or too many."""
    numbers = {_layer(name) for name in missing or unexpected}
    if not numbers or None in numbers or (missing and unexpected):
        return None
    layers = _layers_of(model)
    first = min(number for number in numbers if number is not None)
    if unexpected:
        last = max(number for number in numbers if number is not None)
        return last + 1 if first == layers else None
    of_the_last_layers = [name for name in model.state_dict() if (_layer(name) or 0) >= first]
    return first if len(of_the_last_layers) == len(missing) else None


def _layer(name: str) -> int | None:
    """The number of the layer in `model.layers.3.mlp.up_proj.weight`."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """So that layer 2 comes before layer 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _counted(names: list[str]) -> str:
    return "1 weight is" if len(names) == 1 else f"{len(names)} weights are"


def _first(names: list[str]) -> str:
    first = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        first += f" and {len(names) - NAMED} more"
    return first


# ----------------------------------------------------------------------------------------------------------- shapes


def _refuse_other_4bit_shapes(model: Any, path: str) -> None:
    """Where weights are quantised while they are loaded, Transformers compares no shapes."""
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or type(module).__name__ != "Linear4bit":
            continue
        of_the_model = [module.out_features, module.in_features]
        if list(state.shape) != of_the_model:
            raise RecipeError(
                f"The weights in {path!r} are not those of its config.json. {name}.weight is {list(state.shape)} for "
                f"{of_the_model}. Download the model whole, so that config and weights belong together."
            )


# --------------------------------------------------------------------------------------------------------------- log


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep Transformers' own table of differing weights out of the log: the message above says it."""

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)

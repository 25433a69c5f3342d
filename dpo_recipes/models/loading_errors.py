"""What goes wrong while a model, a tokenizer or an adapter is loaded, as one readable message."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RecipeError
from ..runs.unreachable import HUB_ADVICE, unreachable_reason
from .model_folder import first_names, refuse_damaged_copy, refuse_damaged_files

# What says that an attention implementation is absent or unknown; the name of a weight such as self_attn does not.
ATTENTION = re.compile(r"attn_implementation|attention implementation|flash.?att(entio)?n", re.IGNORECASE)
LONGEST_REASON = 300  # characters of a library's own message


@contextmanager
def explained(what: str, path: str) -> Iterator[None]:
    """Turn whatever a loader raises into what could not be loaded, why, and what to look at."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # of Transformers, PEFT, safetensors, the hub's client or the disk
        refuse_damaged(what, path)
        unreachable = None if os.path.isdir(path) else unreachable_reason(error)
        if unreachable:
            raise RecipeError(f"No {what} could be loaded from {path!r}: {unreachable}. {HUB_ADVICE}") from error
        reason, remedy = reason_of(error), _remedy(str(error), path)
        raise RecipeError(f"No {what} could be loaded from {path!r}: {reason}. {remedy}") from error


def refuse_damaged(what: str, path: str) -> None:
    """RecipeError that names a damaged file of a folder, or of the hub's cache, which what a library says may not."""
    if os.path.isdir(path):
        refuse_damaged_files(path, what)
        return

    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE, f"models--{path.replace('/', '--')}")
    for snapshot in repository.glob("snapshots/*"):
        refuse_damaged_copy(snapshot, what)


def _remedy(message: str, path: str) -> str:
    if "trust_remote_code" in message:
        return "The model brings its own code; read it, then set trust_remote_code=True in the recipe."
    if ATTENTION.search(message):
        return "Check attn_implementation."
    if "Unrecognized configuration class" in message:
        return "It is no causal language model: take one that writes text from left to right."
    if "does not recognize this architecture" in message:
        return "The model may be newer than the installed transformers, or its model_type in config.json misspelt."
    if "alidation error for" in message:  # of a value in a config
        return "Take the config.json that was saved with the weights."
    names = os.listdir(path) if os.path.isdir(path) else []
    if "tokenizer_config.json" in names and "tokenizer.json" not in names and "backend tokenizer" in message:
        return "It has no tokenizer.json: copy into it that of the model it was trained from."
    if os.path.isdir(path):
        contents = first_names(sorted(names))
        return f"A model folder has config.json, model.safetensors and tokenizer files; this one: {contents}."
    return "Check model= and revision=; a gated model also needs `hf auth login`."


def reason_of(error: BaseException) -> str:
    """What an error says, in one line without its full stop; its type where it says nothing.

    Of a long message the sentences from the start, as many as fit. A line that ends in a colon is followed by the
    next one, which is what it is about.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__

    reason = lines[0]
    for line in lines[1:]:
        is_unfinished = reason.endswith(":")
        if not is_unfinished and len(reason) + len(line) > LONGEST_REASON:
            break
        reason += f" {line}"
    if len(reason) > LONGEST_REASON:
        reason = reason[:LONGEST_REASON].rpartition(" ")[0] or reason[:LONGEST_REASON]
        reason += " ..."
    return reason.rstrip(".") if not reason.endswith("...") else reason

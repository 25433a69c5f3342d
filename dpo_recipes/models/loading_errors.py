"""What goes wrong while a model, a tokenizer or an adapter is loaded, as one readable message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import RecipeError

FILES_NAMED = 8  # of a folder that holds no model, enough to recognise it by
LONGEST_REASON = 300  # characters of a library's own message


@contextmanager
def explained(what: str, path: str) -> Iterator[None]:
    """Turn whatever a loader raises into what could not be loaded, why, and what to look at."""
    try:
        yield
    except Exception as error:
        reason, remedy = first_line(error), _remedy(str(error), path)
        raise RecipeError(f"No {what} could be loaded from {path!r}: {reason}. {remedy}") from error


def _remedy(message: str, path: str) -> str:
    if "trust_remote_code" in message:
        return "The model brings its own code; read it, then set trust_remote_code=True in the recipe."
    if "attn" in message or "attention" in message:
        return "Check attn_implementation."
    if os.path.isdir(path):
        contents = ", ".join(sorted(os.listdir(path))[:FILES_NAMED]) or "nothing"
        return f"A model folder has config.json, model.safetensors and tokenizer files; this one: {contents}."
    return "Check model= and revision=; a gated model also needs `hf auth login`."


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop; the error's type where there is no message."""
    lines = str(error).strip().split("\n")
    reason = lines[0].rstrip(".")[:LONGEST_REASON]
    return reason or type(error).__name__

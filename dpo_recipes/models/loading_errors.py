"""What goes wrong while a model is loaded, as one readable message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import RecipeError


@contextmanager
def explained(what: str, path: str) -> Iterator[None]:
    """Turn whatever a loader raises into what could not be loaded, why, and what to look at."""
    try:
        yield
    except Exception as error:
        remedy = "Check model= and revision=; a gated model also needs `hf auth login`."
        if "trust_remote_code" in str(error):
            remedy = "The model brings its own code; read it, then set trust_remote_code=True in the recipe."
        elif "attn" in str(error) or "attention" in str(error):
            remedy = "Check attn_implementation."
        elif os.path.isdir(path):
            found = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
            remedy = f"A model folder has config.json, model.safetensors and tokenizer files; this one: {found}."
        raise RecipeError(f"No {what} could be loaded from {path!r}: {first_line(error)}. {remedy}") from error


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:300] or type(error).__name__

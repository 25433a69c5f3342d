"""The texts on which forgetting is measured: those of a file, or the package's own."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..recipe.recipe import Recipe

OWN = "everyday.txt"  # thirty-two short paragraphs on everyday things, one a line


def unrelated_texts(recipe: Recipe) -> list[str]:
    """One text a line of the recipe's `forgetting` file, as it is or, in a .jsonl file, under "text"; else our own.

    RecipeError where the file cannot be read, or has none.
    """
    if recipe.forgetting is None:
        lines = (resources.files(__package__) / OWN).read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line]

    path = Path(os.path.expanduser(recipe.forgetting))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RecipeError(f"forgetting={recipe.forgetting!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"forgetting={recipe.forgetting!r} is no text in UTF-8.") from None

    texts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            texts.append(_of_json(line, f"{recipe.forgetting}, line {number}") if path.suffix == ".jsonl" else line)
    if not texts:
        raise RecipeError(f"forgetting={recipe.forgetting!r} holds no text: each line is one.")
    return texts


def _of_json(line: str, place: str) -> str:
    """The text of a line of a .jsonl file: a JSON string, or an object with "text"."""
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"forgetting: {place} is no JSON: {error}.") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise RecipeError(f'forgetting: {place} has no text: a line is {{"text": "..."}}.')
    return text

"""Pairs that are not to be trained on: the file that data.exclude names, one JSON object a line.

`check --pairs` writes such files. Of each line its `pair_key` counts, a hash of the pair's own text, so that a pair
stays named when rows come or go.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from ..errors import RecipeError

KEY = "pair_key"


def as_text(key: int) -> str:
    """A pair key, 64 bits, as 16 hexadecimal digits: as a number some programs would round it."""
    return f"{key % 2**64:016x}"


def read_excluded(path: str) -> np.ndarray:
    """The pair keys of a file, of type int64, each once and sorted. RecipeError for a file that names no pairs."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"data.exclude: there is no file {path}. dpo-recipes check RECIPE --pairs writes one.")
    keys = set()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            keys.add(_key_of(line, f"data.exclude: {path}, line {number}"))
    if not keys:
        raise RecipeError(f"data.exclude: {path} names no pair. Leave data.exclude out.")
    unsigned = np.array(list(keys), dtype=np.uint64)
    return np.sort(unsigned.view(np.int64))


def _key_of(line: str, where: str) -> int:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{where} is no JSON object: {error}.") from error
    key = entry.get(KEY) if isinstance(entry, dict) else None
    if not isinstance(key, str) or not re.fullmatch("[0-9a-fA-F]{16}", key):
        raise RecipeError(f"{where} has no {KEY} of 16 hexadecimal digits, as dpo-recipes check RECIPE --pairs writes.")
    return int(key, 16)

"""A part, row by row: each row as its pairs with their KEYS, or as None beside the reason to drop it."""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import Any

from ..formats.image_marks import IMAGES
from ..formats.oddities import ALL_SCORE_COLUMNS
from ..formats.pair_weights import WEIGHT
from ..formats.raw_row import Reading, may_hold_question
from ..formats.readers import FORMATS, PAIR, PASSED_ON
from ..formats.several_replies import Pairing
from ..recipe.data import Data
from ..runs.source_hash import source_hash
from .images import IMAGE_FILES, changed_since
from .parts import Part, may_be_rendered
from .read_row import KEYS, NEAR, ODD, OF_ROW, read_rows
from .rows_of_files import RAW

# Columns that nothing reads any more once the pairs are chosen. The key of a pair stays, by which it can be named.
USED_UP = ["dropped", "found", IMAGE_FILES, "prompt_key", "swapped_key", *NEAR, *ODD, *OF_ROW]


def explicit_rows(part: Part, data: Data, num_proc: int | None, seed: int) -> Any:
    """The rows of a part as pairs, or as None beside the reason to drop them, with KEYS; cached by datasets."""
    from datasets import Features, Json, Value

    raw = part.raw
    if not data.reader and RAW not in raw.column_names:
        reads = FORMATS[part.form].reads
        raw = raw.select_columns([name for name in raw.column_names if name in reads or _is_looked_at(name)])
    kind = Value("string") if part.form == "text" else Json()
    features = {
        **dict.fromkeys(PAIR, kind),
        **dict.fromkeys((*PASSED_ON, IMAGES, IMAGE_FILES), Json()),
        **dict.fromkeys((*KEYS, *NEAR, *ODD, *OF_ROW), Value("int64")),
        WEIGHT: Value("float64"),
        **dict.fromkeys(("row", "dropped", "found"), Value("string")),
    }

    def read(changed_files: list[Any]) -> Any:
        return raw.map(
            read_rows,
            batched=True,
            with_indices=True,
            fn_kwargs={**reading_arguments(part, data, seed), "reader": data.reader, "where": part.where},
            new_fingerprint=_cache_key(raw, part, data, seed, changed_files),
            features=Features(features),
            remove_columns=raw.column_names,
            desc=f"Reading {part.where}",
            num_proc=_processes(num_proc, len(raw), data),
        )

    pairs = read([])
    # What the cache knows of images holds as long as their files are what they were.
    changed_files = changed_since(pairs)
    return read(changed_files) if changed_files else pairs


def _is_looked_at(column: str) -> bool:
    """Whether a column says something of a pair, though the form does not read it."""
    return may_hold_question(column) or column in ALL_SCORE_COLUMNS or column == WEIGHT


def _cache_key(raw: Any, part: Part, data: Data, seed: int, changed_files: list[Any]) -> str:
    """The name under which datasets finds the pairs of a part again."""
    # All that decides what a row becomes. What data.parts finds of a part is in the key itself: its rows, its form.
    code = source_hash(
        "formats", "data.sources", "data.rows_of_files", "data.explicit_rows", "data.read_row", "data.images"
    )
    # What a user's function reads beside the row no cache can know: it is asked anew in every run.
    reader = secrets.token_hex() if data.reader else None
    key = [raw._fingerprint, reading_arguments(part, data, seed), code, reader, changed_files]
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def _processes(num_proc: int | None, rows: int, data: Data) -> int | None:
    """How many processes read; None for this one alone."""
    from multiprocess import get_start_method

    if get_start_method() != "fork" and (data.reader or num_proc is None):
        return None  # other ways of starting a process would run a user's script anew in each
    if num_proc is None and rows >= 2000:
        num_proc = len(os.sched_getaffinity(0))
    return num_proc if num_proc is not None and num_proc > 1 else None


def reading_arguments(part: Part, data: Data, seed: int) -> dict[str, Any]:
    """What `read_rows` needs beside the rows."""
    is_drawn = data.pairing == "best_random"
    reading = Reading(
        strict=not data.format,
        may_be_rendered=may_be_rendered(data),
        pairing=Pairing(data.pairing, seed if is_drawn else 0),
        every_turn=data.turns == "all",
    )
    return {
        "form": part.form,
        "kwargs": data.chat_template_kwargs,
        "reading": reading,
        "label": part.label,
        "spans": part.spans,
        "folders": part.folders,
    }

"""The pairs of a stream, as they are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RecipeError
from ..formats.image_marks import IMAGES
from ..formats.messages import Row
from ..recipe.data import Data
from .drop_reasons import EXCLUDED, HARMLESS, IN_EVALUATION, count_drop
from .explicit_rows import USED_UP, reading_arguments
from .keys import is_among
from .parts import Part
from .read_row import read_rows


def streamed_pairs(
    part: Part, data: Data, seed: int, barred: np.ndarray, excluded: np.ndarray, dropped: dict[str, Row]
) -> Any:
    """The pairs of a stream as they are read, none with a prompt of `barred` or a pair of `excluded`, which are keys,
    sorted.

    What is dropped is counted in `dropped`, in every epoch again, and not where a data loader reads in processes of
    its own.
    """
    lost = 0  # pairs that cannot be used, in this pass
    seen = 0
    last_number = -1

    def is_usable(row: Row) -> bool:
        nonlocal lost, seen, last_number
        if row["number"] < last_number:  # a pass begins
            lost = seen = 0
        last_number = row["number"]
        seen += 1
        if row[IMAGES]:
            raise RecipeError(
                f"{part.where}, row {row['row']} has images, and data.streaming reads text alone: images are looked at "
                "before training. Leave data.streaming out."
            )
        reason = row["dropped"]
        if not reason and is_among(row["prompt_key"], barred):
            reason = IN_EVALUATION
        if not reason and is_among(row["pair_key"], excluded):
            reason = EXCLUDED
        if not reason:
            return True

        count_drop(dropped, reason, row["row"])
        if reason not in HARMLESS:
            lost += 1
        if seen >= 100 and lost / seen > data.max_dropped:
            raise RecipeError(
                f"{part.where}: {lost} of the first {seen} rows cannot be used. The last: {reason}: "
                f"{row['found']} Correct them, or allow it with data.max_dropped."
            )
        return False

    explicit = part.raw.map(
        read_rows,
        batched=True,
        batch_size=1,
        with_indices=True,
        fn_kwargs={**reading_arguments(part, data, seed), "reader": data.reader, "where": part.where},
        remove_columns=part.raw.column_names,
    )
    return explicit.filter(is_usable).remove_columns([*USED_UP, IMAGES])

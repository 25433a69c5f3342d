"""Columns of stored pairs, some rows at a time: they are mapped from the disk, and never all of them in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

ROWS_AT_ONCE = 2**15
NAMED = 3  # rows that the report names of each kind


def batches(pairs: Any, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """(the number of the first row, the columns as a pyarrow.Table) of some rows at a time, in order."""
    first = 0
    for table in pairs.select_columns(list(columns)).with_format("arrow").iter(ROWS_AT_ONCE):
        yield first, table
        first += table.num_rows


def sha256_of(pairs: Any, columns: Sequence[str]) -> str:
    """SHA-256 of the numbers in columns of lists, in their order; nothing else of how they are stored matters."""
    digest = hashlib.sha256()
    for _, table in batches(pairs, columns):
        for column in columns:
            for part in (pc.list_value_length(table[column]), pc.list_flatten(table[column])):
                digest.update(part.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def row_names(pairs: Any, numbers: Sequence[int]) -> list[str]:
    """The names of some rows, as the report gives them."""
    if not numbers:
        return []
    return list(pairs.select_columns("row")[list(numbers)]["row"])


def counted(pairs: Any, flags: np.ndarray) -> dict[str, Any]:
    """The pairs with a flag, as the report has them: {"count", "rows"}, which names the first of them."""
    numbers = np.flatnonzero(flags)
    return {"count": len(numbers), "rows": row_names(pairs, numbers[:NAMED].tolist())}


@dataclass
class Tally:
    """How many pairs have something, and the numbers of the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, numbers: np.ndarray) -> None:
        """Count the pairs of these numbers, which come behind all that were counted before."""
        self.count += len(numbers)
        self.first += numbers[: NAMED - len(self.first)].tolist()

    def counted(self, pairs: Any) -> dict[str, Any]:
        """{"count", "rows"}, as the report has it."""
        return {"count": self.count, "rows": row_names(pairs, self.first)}


def kept_pairs(pairs: Any, is_kept: np.ndarray) -> Any:
    """The pairs with a flag. Their numbers lie on the disk, beside the pairs, where the next run finds them again."""
    if is_kept.all():
        return pairs
    key = hashlib.sha256(pairs._fingerprint.encode() + np.packbits(is_kept).tobytes())
    return pairs.filter(
        _flags,
        batched=True,
        batch_size=ROWS_AT_ONCE,
        with_indices=True,
        fn_kwargs={"is_kept": is_kept},
        new_fingerprint=key.hexdigest()[:32],
    )


def _flags(batch: Any, numbers: list[int], is_kept: np.ndarray) -> list[bool]:
    return is_kept[numbers].tolist()

"""The hashes of many rows: which stand twice, which both of two sides have, which is the n-th smallest.

They are read from where they are stored, as often as need be. A hash is as good as a draw, so that the rows whose keys
lie in a range are a fair share of all: what needs keys beside one another goes from range to range, and about
KEYS_AT_ONCE of them are in memory at once, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .batches import batches

KEYS_AT_ONCE = 2**16
MOST_RANGES = 64  # each is a pass over the column: of 100 million rows, say, the ranges are larger
DIGITS = (48, 32, 16, 0)  # where the four digits of 16 bits of a key begin
SMALLEST = -(2**63)
NO_KEYS = np.empty(0, dtype=np.int64)


@dataclass
class Keys:
    """A column of 64-bit hashes, of the rows that are used."""

    rows: Any  # datasets.Dataset
    column: str
    is_used: np.ndarray  # of bool, one a row

    def __len__(self) -> int:
        return int(np.count_nonzero(self.is_used))

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(the numbers of some used rows, their keys), in order."""
        for first, table in batches(self.rows, [self.column]):
            numbers = np.flatnonzero(self.is_used[first : first + table.num_rows])
            yield first + numbers, table[self.column].to_numpy()[numbers]

    def in_range(self, smallest: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
        """(the numbers of the used rows with a key from `smallest` to `largest`, their keys), in order."""
        numbers, keys = [NO_KEYS], [NO_KEYS]
        for numbers_of_batch, keys_of_batch in self.batches():
            lies_in = (keys_of_batch >= smallest) & (keys_of_batch <= largest)
            numbers.append(numbers_of_batch[lies_in])
            keys.append(keys_of_batch[lies_in])
        return np.concatenate(numbers), np.concatenate(keys)


def _ranges(count: int) -> Iterator[tuple[int, int]]:
    """The smallest and the largest key of each range, for so many keys."""
    ranges = min(MOST_RANGES, 1 + count // KEYS_AT_ONCE)
    bounds = [SMALLEST + number * 2**64 // ranges for number in range(ranges + 1)]
    for smallest, end in zip(bounds[:-1], bounds[1:], strict=True):
        yield smallest, end - 1


def repeated(keys: Keys) -> np.ndarray:
    """Which rows have the key of an earlier one, a flag for each row."""
    flags = np.zeros(len(keys.is_used), dtype=bool)
    for bounds in _ranges(len(keys)):
        numbers, values = keys.in_range(*bounds)
        _, first_of_each = np.unique(values, return_index=True)
        flags[np.delete(numbers, first_of_each)] = True
    return flags


def also_in(keys: Keys, others: Keys) -> np.ndarray:
    """Which rows have a key that one of the `others` has, a flag for each row."""
    flags = np.zeros(len(keys.is_used), dtype=bool)
    for bounds in _ranges(max(len(keys), len(others))):
        numbers, values = keys.in_range(*bounds)
        _, values_of_others = others.in_range(*bounds)
        flags[numbers[np.isin(values, values_of_others)]] = True
    return flags


def nth_smallest(keys: Keys, n: int) -> int:
    """The key that stands at place `n`, from 0 on, where the keys are sorted.

    Its four digits are found one after the other, from how often each occurs behind the digits that are known.
    """
    known = 0
    for shift in DIGITS:
        counts = np.zeros(2**16, dtype=np.int64)
        for _, values in keys.batches():
            unsigned = values.view(np.uint64) ^ np.uint64(2**63)  # in the order of the signed keys
            if shift < DIGITS[0]:
                unsigned = unsigned[unsigned >> np.uint64(shift + 16) == np.uint64(known)]
            digits = (unsigned >> np.uint64(shift)) & np.uint64(2**16 - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=2**16)
        digit = int(np.searchsorted(np.cumsum(counts), n, side="right"))
        n -= int(counts[:digit].sum())
        known = known << 16 | digit
    return known - 2**63


def distinct(keys: Keys) -> np.ndarray:
    """Each key once, sorted, and 8 bytes of memory each: for a stream, whose pairs come one by one."""
    return np.concatenate([np.unique(keys.in_range(*bounds)[1]) for bounds in _ranges(len(keys))])


def is_among(key: int, keys: np.ndarray) -> bool:
    """Whether a key is one of those, which are sorted."""
    place = int(np.searchsorted(keys, key))
    return place < len(keys) and bool(keys[place] == key)

"""How long all stored pairs are: twelve bytes a pair in memory, read off without their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from ..data.batches import batches
from ..data.tokenize import IDS
from ..formats.image_marks import IMAGE_TOKENS
from .pair_lengths import PairLength


class PairLengths(NamedTuple):
    """The lengths of many pairs, a number of 32 bits for each of its texts; shape (pairs,)."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def longer_rows(self) -> np.ndarray:
        return self.prompt + np.maximum(self.chosen, self.rejected)

    @property
    def read_once(self) -> np.ndarray:
        return self.prompt + self.chosen + self.rejected

    def most(self, tokens: np.ndarray, count: int) -> list[PairLength]:
        """The `count` pairs with the most `tokens`, the earlier one first among equals."""
        largest = np.argsort(-tokens, kind="stable")[:count]
        return [PairLength(*(int(column[number]) for column in self)) for number in largest]


def pair_lengths(splits: Sequence[Any], max_length: int | None) -> PairLengths:
    """The lengths of every pair of tokenised splits, one after the other, as max_length cuts it.

    The tokens of a pair's images are its prompt's.
    """
    columns: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] for _ in IDS]
    for split in splits:
        has_images = IMAGE_TOKENS in split.column_names
        for _, table in batches(split, [*IDS, IMAGE_TOKENS] if has_images else IDS):
            for column, name in zip(columns, IDS, strict=True):
                column.append(pc.list_value_length(table[name]).to_numpy().astype(np.int32))
            if has_images:
                columns[0][-1] += table[IMAGE_TOKENS].to_numpy().astype(np.int32)
    prompt, chosen, rejected = (np.concatenate(column) for column in columns)
    limit = max_length or np.iinfo(np.int32).max
    prompt = np.minimum(prompt, limit)
    room = limit - prompt
    return PairLengths(prompt, np.minimum(chosen, room), np.minimum(rejected, room))

"""The lengths of stored pairs: those of each pair as it is cut, and which pairs are the longest."""

from __future__ import annotations

import random

import datasets
import pytest

from dpo_recipes.data import batches
from dpo_recipes.formats.image_marks import IMAGE_TOKENS
from dpo_recipes.planning.pair_lengths import PairLength
from dpo_recipes.planning.stored_lengths import IDS, pair_lengths


def stored(lengths):
    columns = zip(*lengths, strict=True)
    return datasets.Dataset.from_dict(
        {name: [[7] * length for length in column] for name, column in zip(IDS, columns, strict=True)}
    )


@pytest.fixture
def lengths():
    draw = random.Random(0)
    return [PairLength(*(draw.randint(1, 9) for _ in IDS)) for _ in range(50)]


@pytest.mark.parametrize("max_length", [None, 9])
def test_they_are_those_of_each_pair_as_it_is_cut(lengths, monkeypatch, max_length):
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 8)
    split = stored(lengths)
    shuffled = split.select([*range(1, 50), 0])  # of which the file's order is not that of the pairs
    found = pair_lengths((split, shuffled), max_length)
    cut = [pair.cut(max_length) for pair in lengths]
    assert [PairLength(*map(int, row)) for row in zip(*found, strict=True)] == [*cut, *cut[1:], cut[0]]
    assert found.longer_rows.tolist()[:50] == [pair.longer_row for pair in cut]
    assert found.read_once.tolist()[:50] == [pair.read_once for pair in cut]


def test_the_tokens_of_images_are_the_prompts(lengths):
    with_images = stored(lengths).add_column(IMAGE_TOKENS, list(range(50)))
    found = pair_lengths([with_images], None)
    assert found.prompt.tolist() == [pair.prompt + number for number, pair in enumerate(lengths)]
    assert found.chosen.tolist() == [pair.chosen for pair in lengths]


def test_the_longest_come_first_and_of_equals_the_earlier_one(lengths):
    found = pair_lengths([stored(lengths)], None)
    by_length = sorted(lengths, key=lambda pair: -pair.longer_row)
    assert found.most(found.longer_rows, 7) == by_length[:7]
    assert len(found.most(found.read_once, 64)) == 50
    assert all(column.itemsize == 4 for column in found)

"""Keys of many rows, some of them at a time: the same as of all at once."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from dpo_recipes.data import batches, keys
from dpo_recipes.data.keys import Keys

ROWS = 900


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 128)
    monkeypatch.setattr(keys, "KEYS_AT_ONCE", 100)


def drawn(seed: int, values: int = 2**63) -> Keys:
    """Keys of rows of which nine in ten are used; the fewer values there are, the more often one occurs."""
    draw = np.random.default_rng(seed)
    column = draw.integers(-values, values, ROWS, dtype=np.int64)
    return Keys(datasets.Dataset.from_dict({"key": column}), "key", draw.random(ROWS) < 0.9)


def used(found: Keys) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.flatnonzero(found.is_used)
    return numbers, np.array(found.rows["key"][:])[numbers]


@pytest.mark.parametrize("values", [2**63, 200, 1])
def test_a_key_is_repeated_where_an_earlier_used_row_has_it(values):
    found = drawn(1, values)
    seen, expected = set(), np.zeros(ROWS, bool)
    for number, key in zip(*used(found), strict=True):
        expected[number] = key in seen
        seen.add(key)
    assert (keys.repeated(found) == expected).all()
    assert keys.distinct(found).tolist() == sorted(seen)


@pytest.mark.parametrize("values", [2**63, 2000])
def test_a_key_is_also_in_others_where_a_used_row_of_theirs_has_it(values):
    found, others = drawn(2, values), drawn(3, values)
    known = set(used(others)[1].tolist())
    expected = [number for number, key in zip(*used(found), strict=True) if key in known]
    assert np.flatnonzero(keys.also_in(found, others)).tolist() == expected
    assert bool(expected) == (values == 2000)
    sorted_keys = keys.distinct(others)
    assert all(keys.is_among(key, sorted_keys) == (key in known) for key in used(found)[1].tolist())
    assert not keys.is_among(5, keys.NO_KEYS)


@pytest.mark.parametrize("values", [2**63, 2**40, 200, 1])
def test_the_nth_smallest_is_that_of_the_sorted_keys(values):
    found = drawn(4, values)
    in_order = np.sort(used(found)[1])
    assert [keys.nth_smallest(found, n) for n in (0, 1, 400, len(in_order) - 1)] == in_order[[0, 1, 400, -1]].tolist()


def test_no_range_of_keys_is_left_out(monkeypatch):
    extremes = np.array([-(2**63), -1, 0, 1, 2**63 - 1], dtype=np.int64)
    found = Keys(datasets.Dataset.from_dict({"key": extremes}), "key", np.ones(5, bool))
    monkeypatch.setattr(keys, "KEYS_AT_ONCE", 1)
    assert keys.distinct(found).tolist() == extremes.tolist()
    assert [keys.nth_smallest(found, n) for n in range(5)] == extremes.tolist()

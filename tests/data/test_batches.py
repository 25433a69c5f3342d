"""Pairs that are kept by a flag: which, and what is found again."""

from __future__ import annotations

import os

import numpy as np
from making import make_pairs, write_jsonl

from dpo_recipes.data.batches import Tally, batches, counted, kept_pairs


def stored(folder):
    from datasets import load_dataset

    rows = [{"row": f"r{number}", **row} for number, row in enumerate(make_pairs(30))]
    return load_dataset("json", data_files=str(write_jsonl(folder / "a.jsonl", rows)), split="train", cache_dir=folder)


def test_kept_pairs_have_their_numbers_on_the_disk_and_are_found_again(tmp_path, monkeypatch):
    pairs = stored(tmp_path)
    flags = np.arange(30) % 3 > 0
    first = kept_pairs(pairs, flags)
    assert first["row"][:] == [f"r{number}" for number in range(30) if number % 3]
    [table, numbers] = [entry["filename"] for entry in first.cache_files]
    assert os.path.dirname(table) == os.path.dirname(numbers)

    monkeypatch.setattr("dpo_recipes.data.batches._flags", None)  # nobody asks again
    again = kept_pairs(pairs, flags.copy())
    assert again["row"][:] == first["row"][:] and again._fingerprint == first._fingerprint
    assert kept_pairs(pairs, np.ones(30, bool)) is pairs


def test_what_is_counted_names_the_first_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_recipes.data.batches.ROWS_AT_ONCE", 7)
    pairs = stored(tmp_path)
    flags = np.arange(30) % 9 == 8
    assert counted(pairs, flags) == {"count": 3, "rows": ["r8", "r17", "r26"]}
    assert counted(pairs, flags & False) == {"count": 0, "rows": []}

    tally = Tally()
    for first, table in batches(pairs, ["row"]):
        tally.add(first + np.flatnonzero([int(name[1:]) % 4 == 1 for name in table["row"].to_pylist()]))
    assert tally.counted(pairs) == {"count": 8, "rows": ["r1", "r5", "r9"]}

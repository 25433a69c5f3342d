"""A cache of rows that is damaged is named as such, and the file that it was made from is not blamed."""

from __future__ import annotations

import errno
import json

import datasets
import pytest
from making import make_pairs, write_jsonl

from dpo_recipes import RecipeError
from dpo_recipes.data.rows_cache import refuse_damaged_cache
from dpo_recipes.data.rows_of_files import rows_of_files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "rows"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def cut(name: str):
    def cut_files(cache):
        for file in cache.rglob(name):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut_files


def remove(name: str):
    def remove_files(cache):
        for file in cache.rglob(name):
            file.unlink()

    return remove_files


@pytest.mark.parametrize("damage", [cut("*.arrow"), remove("*.arrow"), cut("dataset_info.json")])
def test_of_rows_that_were_read_before(cache, tmp_path, damage):
    file = write_jsonl(tmp_path / "pairs.jsonl", make_pairs())
    rows_of_files([file])
    damage(cache)
    with pytest.raises(RecipeError) as told:
        rows_of_files([file])
    assert f"What the cache of data sets has of {file} is damaged or gone" in str(told.value)
    assert f"it is filled anew: rm -r {cache}" in str(told.value)


def test_other_errors_are_not_taken_for_it(cache):
    cache.mkdir()
    refuse_damaged_cache(OSError(errno.ENOSPC, "No space left on device", str(cache)), "pairs")
    refuse_damaged_cache(ConnectionError("Couldn't reach the hub"), "pairs")
    refuse_damaged_cache(ValueError("no rows"), "pairs")
    with pytest.raises(RecipeError):
        refuse_damaged_cache(json.JSONDecodeError("Expecting value", "", 0), "pairs")

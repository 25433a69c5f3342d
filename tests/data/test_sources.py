"""Which files make which split, what a slice selects, and that rows arrive as they were written."""

from __future__ import annotations

import shutil

import datasets
import pytest
from reading_files import NUMBERED, numbers, written

from dpo_recipes.data import preference_dataset, read_row, sources
from dpo_recipes.errors import RecipeError
from dpo_recipes.recipe.data import Data
from dpo_recipes.runs import source_hash


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("a/b", False),
        ("a", False),
        ("HuggingFaceH4/ultrafeedback_binarized", False),
        ("./a", True),
        ("/a", True),
        ("~/a", True),
        ("../a", True),
        ("a.jsonl", True),
        ("a.JSON.GZ", True),
        ("a.parquet", True),
        ("a.csv", True),
    ],
)
def test_what_is_a_path_and_what_a_name_on_the_hub(path, local):
    assert sources.is_path(path) is local


def test_the_files_of_a_folder_by_split(tmp_path):
    names = [
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
        "test.jsonl.gz",
        "README.md",
        "data/extra.jsonl",
    ]
    (tmp_path / "data").mkdir()
    for name in names:
        written(tmp_path / name)
    splits = sources.files_of(str(tmp_path))
    assert splits == {
        "extra": [tmp_path / "data" / "extra.jsonl"],
        "test": [tmp_path / "test.jsonl.gz"],
        "train": [tmp_path / name for name in names[:2]],
    }
    assert sources.files_of(str(tmp_path / "test.jsonl.gz")) == {"": [tmp_path / "test.jsonl.gz"]}
    written(tmp_path / "test.json")
    with pytest.raises(RecipeError, match=r"test\.json and test\.jsonl\.gz are not one whole split 'test'\. Keep one"):
        sources.files_of(str(tmp_path))


def test_a_split_in_parts_is_read_in_their_order(tmp_path):
    for part in (2, 0, 1):
        written(tmp_path / f"train-{part:05}-of-00003.jsonl", NUMBERED[part : part + 1])
    assert numbers(sources.pick(sources.files_of(str(tmp_path)), "train", "here")) == [0, 1, 2]


@pytest.mark.parametrize(
    "parts",
    [
        ("00000-of-00003", "00002-of-00003"),
        ("00000-of-00003", "00001-of-00003", "00002-of-00003", "00003-of-00003"),
        ("00001-of-00003",),
        ("00000-of-00002", "00000-of-00001"),
        ("00000-of-00002-0a1b", "00000-of-00002-2c3d"),
    ],
)
def test_a_split_that_lacks_a_part_is_refused(tmp_path, parts):
    for part in parts:
        written(tmp_path / f"train-{part}.jsonl")
    with pytest.raises(RecipeError, match=r"are not one whole split 'train'\. Keep one file, or all the parts"):
        sources.files_of(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("train", [*range(10)]),
        ("train[:3]", [0, 1, 2]),
        ("train[8:]", [8, 9]),
        ("train[-2:]", [8, 9]),
        ("train[:20%]", [0, 1]),
        ("train[90%:]", [9]),
        ("train[:1] + train[5:6]+test", [0, 5, *range(10)]),
    ],
)
def test_a_split_a_slice_and_a_sum_of_them(tmp_path, spec, want):
    for name in ("train", "test"):
        written(tmp_path / f"{name}.jsonl")
    assert numbers(sources.pick(sources.files_of(str(tmp_path)), spec, "here")) == want


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("trian", "here has no split 'trian'. It has: train. Did you mean 'train'?"),
        ("train[9:2]", "selects no rows"),
        ("train[20:]", "selects no rows"),
        ("train[x:]", "'train[x:]' is no split: "),
        ("train[:1", "'train[:1' is no split: "),
        ("", "here has no split ''. It has: train."),
    ],
)
def test_a_spec_that_selects_nothing_is_refused(tmp_path, spec, words):
    with pytest.raises(RecipeError) as caught:
        sources.pick(sources.files_of(str(written(tmp_path / "train.jsonl").parent)), spec, "here")
    assert words in str(caught.value)


def test_a_saved_dataset_is_read_from_where_it_lies(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_list(NUMBERED)).save_to_disk(tmp_path / "saved")
    splits = sources.files_of(str(tmp_path / "saved"))
    assert list(splits) == ["train"] and numbers(sources.pick(splits, "train[:2]", "saved")) == [0, 1]


@pytest.mark.slow
def test_only_the_code_that_reads_a_row_makes_the_cached_pairs_stale(tmp_path, monkeypatch):
    package = shutil.copytree(source_hash.PACKAGE, tmp_path / "package")
    monkeypatch.setattr(source_hash, "PACKAGE", package)
    read_anew = []

    def counted(raw, form, reading):
        read_anew.append(raw)
        return explicit_pairs(raw, form, reading)

    explicit_pairs = read_row.explicit_pairs
    monkeypatch.setattr(read_row, "explicit_pairs", counted)
    path = str(written(tmp_path / "p.jsonl"))

    def rows_read_after_a_change_of(module: str) -> int:
        with open(package / module, "a", encoding="utf-8") as file:
            file.write("# changed\n")
        source_hash.source_hash.cache_clear()
        read_anew.clear()
        preference_dataset.read(Data(path, eval=0.1), {path: 1.0})
        return len(read_anew)

    try:
        assert rows_read_after_a_change_of("data/explicit_rows.py") == len(NUMBERED)
        assert rows_read_after_a_change_of("data/read_row.py") == len(NUMBERED)
        assert rows_read_after_a_change_of("data/hold_out.py") == 0
        assert rows_read_after_a_change_of("cli.py") == 0
        assert rows_read_after_a_change_of("recipe/overrides.py") == 0
        assert rows_read_after_a_change_of("formats/readers.py") == len(NUMBERED)
        assert rows_read_after_a_change_of("formats/messages.py") == len(NUMBERED)
        assert rows_read_after_a_change_of("data/sources.py") == len(NUMBERED)
        assert rows_read_after_a_change_of("data/rows_of_files.py") == len(NUMBERED)
        assert rows_read_after_a_change_of("training/trainer.py") == 0
    finally:
        source_hash.source_hash.cache_clear()

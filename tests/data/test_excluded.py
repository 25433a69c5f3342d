"""data.exclude: the pairs that a file names are dropped and counted, and a file that names nothing real is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import make_pair, write_jsonl

from dpo_recipes import Data
from dpo_recipes.data.drop_reasons import EXCLUDED
from dpo_recipes.data.excluded import as_text, read_excluded
from dpo_recipes.data.preference_dataset import read
from dpo_recipes.errors import RecipeError


@pytest.fixture
def data(tmp_path):
    rows = [make_pair(f"q{number}", f"good {number}", f"bad {number}") for number in range(20)]
    return str(write_jsonl(tmp_path / "pairs.jsonl", rows))


def read_pairs(path: str, **fields):
    return read(Data(path, eval=0.2, **fields), {path: 1.0})


def exclude(tmp_path, pairs, extra=()) -> str:
    rows = [{"pair_key": as_text(pair["pair_key"]), "why": "label"} for pair in pairs]
    return str(write_jsonl(tmp_path / "exclude.jsonl", [*rows, *extra]))


def test_named_pairs_are_dropped_and_counted_and_the_held_out_ones_stay_the_same(data, tmp_path):
    whole = read_pairs(data)
    named = [whole.train[3], whole.train[5]]
    rest = read_pairs(data, exclude=exclude(tmp_path, named))
    assert list(rest.train["row"]) == [row for row in whole.train["row"] if row not in _rows(named)]
    assert rest.eval[:] == whole.eval[:]
    assert rest.report["train"]["dropped"][EXCLUDED] == {"count": 2, "rows": _rows(named)}
    assert rest.report["train"]["kept"] == whole.report["train"]["kept"] - 2 == len(rest.train)


def _rows(pairs) -> list[str]:
    return [pair["row"] for pair in pairs]


def test_a_pair_stays_named_when_rows_come_before_it(data, tmp_path):
    pair = read_pairs(data).train[3]
    file = exclude(tmp_path, [pair])
    longer = tmp_path / "longer.jsonl"
    first = json.dumps(make_pair("new", "good", "bad"))
    longer.write_text(first + "\n" + Path(data).read_text())
    rest = read_pairs(str(longer), exclude=file)
    [name] = rest.report["train"]["dropped"][EXCLUDED]["rows"]
    assert int(name) == int(pair["row"]) + 1


def test_names_that_are_of_no_train_pair_are_said(data, tmp_path):
    whole = read_pairs(data)
    file = exclude(tmp_path, [whole.train[0]], extra=[{"pair_key": "0" * 16}])
    assert any("names 2 pairs; 1 of them are not" in note for note in read_pairs(data, exclude=file).report["notes"])
    with pytest.raises(RecipeError, match="of the 1 pairs that .* names none is among the train pairs"):
        read_pairs(data, exclude=exclude(tmp_path, [whole.eval[0]]))
    with pytest.raises(RecipeError, match="names every train pair"):
        read_pairs(data, exclude=exclude(tmp_path, whole.train))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no pair"),
        ("{", "line 1 is no JSON object"),
        ('{"pair_key": "00ff00ff00ff00ff"}\n[1]', "line 2 has no pair_key"),
        ('{"pair_key": 12}', "line 1 has no pair_key of 16 hexadecimal digits"),
        ('{"pair_key": "xyz"}', "line 1 has no pair_key"),
        ('{"pair_key": "1' + "0" * 16 + '"}', "line 1 has no pair_key"),
        ('{"row": "3"}', "line 1 has no pair_key"),
    ],
)
def test_a_file_that_names_no_pairs_is_refused_by_line(tmp_path, text, words):
    file = tmp_path / "exclude.jsonl"
    file.write_text(text)
    with pytest.raises(RecipeError, match=words):
        read_excluded(str(file))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no file .*nowhere.jsonl. dpo-recipes check"):
        read_excluded(str(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_a_key_is_the_same_after_a_file(tmp_path, key):
    file = write_jsonl(tmp_path / "exclude.jsonl", [{"pair_key": as_text(key)}])
    assert read_excluded(str(file)).tolist() == [key]


def test_a_stream_leaves_them_out_too(data, tmp_path):
    named = read_pairs(data).train[3]
    folder = tmp_path / "splits"
    folder.mkdir()
    rows = Path(data).read_text()
    (folder / "train.jsonl").write_text(rows)
    write_jsonl(folder / "test.jsonl", [make_pair("other", "good", "bad")])
    fields = {"eval": "test", "streaming": True, "exclude": exclude(tmp_path, [named])}
    found = read(Data(str(folder), **fields), {str(folder): 1.0})
    assert named["chosen"] not in [row["chosen"] for row in found.train]
    assert found.report["train"]["dropped"][EXCLUDED]["count"] == 1

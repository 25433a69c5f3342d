"""A reader of one's own, row by row."""

from __future__ import annotations

import pytest
from making import said, user
from reading_files import pairs_of, read, refused, save, three


def swapped(row):
    if row["prompt"] == "q03":
        return None
    return {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": [said(row["chosen"])]}


def test_a_reader_of_ones_own(tmp_path):
    path = save(tmp_path / "p.jsonl", [{**row, "instruction": "x"} for row in three(30)])
    found = read(path, reader=swapped)
    assert (found.report["format"], found.text) == ("reader", False)
    assert found.report["train"]["dropped"] == {"dropped by the reader": {"count": 1, "rows": ["3"]}}
    want = {"prompt": [user("q05")], "chosen": [said("bad 5")], "rejected": [said("good 5")]}
    assert want in pairs_of(found) and len(pairs_of(found)) == 29
    assert read(path, reader=swapped, num_proc=2).report == found.report


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (lambda row: row["nothing"], "p.jsonl (train), row 0: data.reader raised KeyError: 'nothing'."),
        (lambda row: (1, 2, 3), "row 0: data.reader returned (1, 2, 3), not a dict with prompt, chosen and rejected"),
        (lambda row: {"prompt": "q", "chosen": "a"}, "row 0: data.reader returned {'prompt': 'q', 'chosen': 'a'}, not"),
        (
            lambda row: {"prompt": "q", "chosen": 1, "rejected": "b"},
            "malformed: chosen is int, not str or list or dict",
        ),
    ],
)
def test_a_reader_that_is_wrong_is_one_error(tmp_path, reader, words):
    assert words in refused(save(tmp_path / "p.jsonl", three(3)), reader=reader)


def test_a_reader_is_asked_again_in_every_run_whatever_it_closes_over(tmp_path):
    path = save(tmp_path / "a.jsonl", three(4))

    def ending(word):
        return lambda row: {**row, "chosen": row["chosen"] + word}

    for word in ("X", "Y"):
        assert all(
            row["chosen"][0]["content"].endswith(word) for row in read(path, reader=ending(word), eval=0.3).train
        )

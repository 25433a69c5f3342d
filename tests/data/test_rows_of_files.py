"""That rows arrive as they were written, whatever file they stand in."""

from __future__ import annotations

import json

from reading_files import NUMBERED, numbers, written

from dpo_recipes.data import sources
from dpo_recipes.data.rows_of_files import row_of


def test_a_space_after_a_comma_is_no_part_of_a_cell(tmp_path):
    (tmp_path / "a.csv").write_text('prompt, chosen, rejected\n"q, 0", "yes ""a"" ", no 0\n')
    (row,) = sources.pick(sources.files_of(str(tmp_path / "a.csv")), "", "a.csv")[0]
    assert row_of(row) == {"prompt": "q, 0", "chosen": 'yes "a" ', "rejected": "no 0"}


def test_rows_arrive_as_they_were_written(tmp_path):
    odd = [
        {"x": 1},
        {"x": "1"},
        {"x": None, "y": [1, "a", {}]},
        {"x": 1.5, "z": "\ud83d"},
        {"x": True},
        {"x": "\u2028"},
    ]
    path = written(tmp_path / "p.jsonl", odd)
    assert [row_of(row) for row in sources.pick({"": [path]}, "", "p")[0]] == odd
    (tmp_path / "q.json").write_text(json.dumps(odd, indent=2))
    assert [row_of(row) for row in sources.pick({"": [tmp_path / "q.json"]}, "", "q")[0]] == odd


def test_a_changed_file_is_read_anew(tmp_path):
    path = written(tmp_path / "p.jsonl")
    assert numbers(sources.pick({"": [path]}, "", "p")) == [*range(10)]
    written(path, NUMBERED[::-1])
    assert numbers(sources.pick({"": [path]}, "", "p")) == [*range(9, -1, -1)]

"""A file or folder is whole or not there."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dpo_recipes.runs import files


def test_a_file_is_written_whole_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "evaluation.json"
    files.write_json(path, {"a": 1, "words": "naïve 日本", "path": tmp_path})
    files.write_json(path, {"a": 2, "words": "naïve 日本", "path": tmp_path})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2, "words": "naïve 日本", "path": str(tmp_path)}
    assert "日本" in path.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["evaluation.json"]


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "metrics.json"
    files.write_text(path, "old")
    write_bytes = Path.write_bytes

    def half(self, data):
        write_bytes(self, data[:3])
        raise OSError(28, "No space left on device")

    def refuse(*args):
        raise OSError(5, "Input/output error")

    if failing == "write_bytes":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError):
        files.write_text(path, "new and longer")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_bytes_are_written_as_they_are(tmp_path):
    path = tmp_path / "entries.bin"
    files.write_bytes(path, b"\xff\x00\r\n")
    assert path.read_bytes() == b"\xff\x00\r\n"
    assert os.listdir(tmp_path) == ["entries.bin"]


def test_rows_are_one_json_object_a_line(tmp_path):
    files.write_jsonl(tmp_path / "samples.jsonl", [{"prompt": "a\nb"}, {"prompt": "日本", "path": tmp_path}])
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines[1] == f'{{"prompt": "日本", "path": "{tmp_path}"}}'
    assert [json.loads(line)["prompt"] for line in lines[:-1]] == ["a\nb", "日本"]
    assert lines[-1] == ""  # the last line ends as well


def test_what_json_cannot_hold_never_reaches_the_disk(tmp_path):
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", loop)
    with pytest.raises(UnicodeEncodeError):
        files.write_text(tmp_path / "a.txt", "\ud800")
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_when_it_is_full(tmp_path):
    target = tmp_path / "deep" / "model"

    def fill(folder):
        (folder / "weights").write_text("w")
        assert not target.exists()

    files.write_folder(target, fill)
    assert (target / "weights").read_text() == "w"
    assert os.listdir(target.parent) == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_while_filling_leaves_no_folder_behind(tmp_path, error):
    def fill(folder):
        (folder / "half").mkdir()
        (folder / "half" / "weights").write_text("w")
        raise error

    with pytest.raises(error):
        files.write_folder(tmp_path / "model", fill)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_does_not_end_up_in_the_folder(tmp_path):
    stale = tmp_path / f".model.{os.getpid()}.tmp"
    stale.mkdir()
    (stale / "old").write_text("x")
    files.write_folder(tmp_path / "model", lambda folder: (folder / "new").write_text("y"))
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["new"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs locks")
def test_what_another_process_had_begun_is_removed_if_that_was_killed_and_stays_while_it_writes(tmp_path):
    abandoned = tmp_path / ".model.1.tmp"
    abandoned.mkdir()
    (abandoned / "half").write_text("x")
    of_another_name = tmp_path / ".other.1.tmp"
    of_another_name.mkdir()

    def fill(folder):
        while_it_writes = folder.rename(folder.with_name(".model.2.tmp"))  # as if of another process
        files.write_folder(tmp_path / "model", lambda other: (other / "weights").write_text("second"), replace=True)
        while_it_writes.rename(folder)
        (folder / "weights").write_text("first")

    files.write_folder(tmp_path / "model", fill, replace=True)
    assert sorted(os.listdir(tmp_path)) == [".other.1.tmp", "model"]
    assert (tmp_path / "model" / "weights").read_text() == "first"


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_a_number_that_is_not_finite_is_null_on_disk_and_any_reader_takes_the_file(tmp_path):
    numbers = {"loss": math.nan, "interval": [0.5, math.inf], "deep": {"kl": -math.inf}, "fine": 0.1}
    files.write_json(tmp_path / "evaluation.json", numbers)
    files.write_jsonl(tmp_path / "samples.jsonl", [numbers])
    for name in ("evaluation.json", "samples.jsonl"):
        read = json.loads((tmp_path / name).read_text(), parse_constant=refuse)
        assert read == {"loss": None, "interval": [0.5, None], "deep": {"kl": None}, "fine": 0.1}


def test_a_number_of_numpy_stays_a_number():
    value = {"share": np.float32(0.5), "count": np.int64(3), "bad": np.float32("nan")}
    assert json.loads(files.to_json(value)) == {"share": 0.5, "count": 3, "bad": None}


def test_a_folder_takes_the_place_of_another_and_a_failure_leaves_that(tmp_path):
    place = tmp_path / "model"
    files.write_folder(place, lambda where: (where / "a").write_text("first"))
    with pytest.raises(ZeroDivisionError):
        files.write_folder(place, lambda where: (where / "b").write_text(str(1 / 0)), replace=True)
    assert [path.name for path in place.iterdir()] == ["a"]
    files.write_folder(place, lambda where: (where / "b").write_text("second"), replace=True)
    assert [path.name for path in place.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [place]


def test_what_a_killed_process_had_begun_is_removed(tmp_path):
    (tmp_path / ".model.77.tmp").mkdir()
    (tmp_path / ".data.json.77.tmp").write_text("{")
    (tmp_path / "data.json").write_text("{}")
    files.remove_temporary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


def test_a_folder_that_is_made_once_is_made_again_where_a_file_has_gone_or_been_cut(tmp_path):
    made = []

    def fill(folder: Path) -> None:
        made.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "numbers").write_text("123")

    place = tmp_path / "kept"
    file = place / "deep" / "numbers"
    files.make_once(place, fill)
    files.make_once(place, fill)
    assert len(made) == 1 and files.is_whole(place)

    file.write_text("1")
    files.make_once(place, fill)
    assert len(made) == 2 and file.read_text() == "123"
    shutil.rmtree(place / "deep")
    files.make_once(place, fill)
    assert len(made) == 3 and os.listdir(tmp_path) == ["kept"]
    (place / files.CONTENTS).unlink()
    assert files.is_whole(place)  # of a version that wrote no such list
    shutil.rmtree(place / "deep")
    assert not files.is_whole(place)

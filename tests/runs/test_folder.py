"""A run folder is made anew for each run, and reading it back names what is wrong."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dpo_recipes.errors import RecipeError
from dpo_recipes.runs import files, folder
from dpo_recipes.runs.folder import Run

# ---------------------------------------------------------------------------------------------------- a new folder


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    class Frozen:
        @staticmethod
        def now(zone):
            return datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC).astimezone(zone)

    monkeypatch.setattr(folder, "datetime", Frozen)
    names = [folder.create(tmp_path / "runs", "quick").path.name for _ in range(3)]
    assert names == ["quick-20260304-050607", "quick-20260304-050607-2", "quick-20260304-050607-3"]
    assert folder.create(tmp_path / "runs", "other").path.name == "other-20260304-050607"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_runs_that_is_a_file_is_named_with_the_way_out(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"The run folder .*/file.* cannot be made: .*--runs FOLDER"):
        folder.create(tmp_path / place, "quick")


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RecipeError, match="cannot be made: Permission denied. Choose another place with --runs FOLDER"):
        folder.create(tmp_path / "runs", "quick")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_an_error_in_words(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RecipeError, match="Permission denied"):
            folder.create(tmp_path / "runs", "quick")
    finally:
        tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------------------------ read again


def test_what_was_written_is_read_back(tmp_path):
    run = folder.create(tmp_path, "quick")
    row = {"prompt": "p", "policy": "line one\nline two\u2028three\x85four\x0bfive\x1csix"}
    files.write_jsonl(run.path / "samples.jsonl", [row, {"prompt": "q", "policy": ""}])
    files.write_jsonl(run.path / "metrics.jsonl", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("inf")}])
    values = {name: {"name": name} for name in ("recipe", "evaluation", "data", "reference")}
    for name, value in values.items():
        files.write_json(run.path / f"{name}.json", value)
    again = Run(str(run.path))
    assert again.samples == [row, {"prompt": "q", "policy": ""}]
    assert again.metrics == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]  # JSON has no infinity
    assert {name: getattr(again, name) for name in values} == values


def test_an_empty_log_is_no_row(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert Run(tmp_path).metrics == []


@pytest.mark.parametrize("name", ["recipe", "evaluation", "data", "reference", "metrics", "samples"])
def test_a_missing_file_is_named_as_not_reached(tmp_path, name):
    with pytest.raises(RecipeError, match=rf"has no {name}.json(l)?: the run has not come that far"):
        getattr(Run(tmp_path), name)


@pytest.mark.parametrize("content", [b'{"before": ', b"\xff\xfe", b""])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "evaluation.json").write_bytes(content)
    with pytest.raises(RecipeError, match="evaluation.json is damaged: ") as damaged:
        _ = Run(tmp_path).evaluation
    assert str(tmp_path) in str(damaged.value)


def test_a_line_cut_off_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n{"step": 3, "lo')
    with pytest.raises(RecipeError, match=r"metrics.jsonl is damaged: .* line 3 "):
        _ = Run(tmp_path).metrics


def test_a_folder_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "quickstart-20260304-050607").mkdir()
    (tmp_path / "quickstart-20260304-050608").write_text("a file is no run")
    with pytest.raises(
        RecipeError, match="There is no run folder .*Did you mean 'quickstart-20260304-050607'"
    ) as error:
        Run(tmp_path / "quickstart-20260304-050608")
    assert "50608'?" not in str(error.value)
    with pytest.raises(RecipeError, match="There is no run folder [^ ]*/nowhere/at_all.$"):
        Run(tmp_path / "nowhere" / "at_all")


def test_the_name_of_a_recipe_is_answered_with_its_last_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for second in (7, 9, 8):
        (tmp_path / f"runs/mine-20260304-05060{second}").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"The last run of a recipe of that name: runs/mine-20260304-050609$"):
        Run("mine")

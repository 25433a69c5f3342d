"""The verb: which runs, and where the page goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_recipes import RecipeError, report


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"beta": {"value": 0.1, "origin": "default"}}))
    return folder


def test_the_page_of_one_run_lies_in_it_and_that_of_several_beside_them(tmp_path):
    one, two = make(tmp_path / "runs" / "one"), make(tmp_path / "runs" / "two")
    assert report(one) == one / "report.html"
    assert report([one, two]) == report(tmp_path / "runs") == tmp_path / "runs" / "report.html"
    assert "2 runs" in (tmp_path / "runs" / "report.html").read_text()
    elsewhere = tmp_path / "new" / "page.html"
    assert report([one, str(one)], to=elsewhere) == elsewhere
    assert "<title>one</title>" in elsewhere.read_text()


def test_what_is_no_run_is_said_with_the_nearest_name(tmp_path):
    make(tmp_path / "quickstart-1")
    with pytest.raises(RecipeError, match="There is no run folder .*quikstart-1. Did you mean 'quickstart-1'?"):
        report(tmp_path / "quikstart-1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="it is no run"):
        report(tmp_path / "empty")


def test_a_place_that_cannot_be_written_is_one_message(tmp_path):
    run = make(tmp_path / "run")
    with pytest.raises(RecipeError, match="cannot be written: .* Choose another place with --to FILE"):
        report(run, to=run / "recipe.json" / "page.html")

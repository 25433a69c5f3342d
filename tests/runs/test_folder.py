"""A run folder is whole or not there, and reading it back names what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from dpo_recipes.errors import RecipeError
from dpo_recipes.runs import folder as rundir
from dpo_recipes.runs.folder import Run


def test_a_file_is_written_whole_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "evaluation.json"
    rundir.write_json(path, {"a": 1, "words": "naïve 日本", "path": tmp_path})
    rundir.write_json(path, {"a": 2, "words": "naïve 日本", "path": tmp_path})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2, "words": "naïve 日本", "path": str(tmp_path)}
    assert "日本" in path.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["evaluation.json"]


@pytest.mark.parametrize("failing", ["write_text", "replace"])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "metrics.json"
    rundir.write_text(path, "old")
    real = Path.write_text

    def half(self, text, **options):
        real(self, text[:3], **options)
        raise OSError(28, "No space left on device")

    def refuse(*args):
        raise OSError(5, "Input/output error")

    if failing == "write_text":
        monkeypatch.setattr(Path, "write_text", half)
    else:
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError):
        rundir.write_text(path, "new and longer")
    monkeypatch.undo()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["metrics.json"]


def test_what_json_cannot_hold_never_reaches_the_disk(tmp_path):
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError):
        rundir.write_json(tmp_path / "a.json", loop)
    with pytest.raises(UnicodeEncodeError):
        rundir.write_text(tmp_path / "a.txt", "\ud800")
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_when_it_is_full(tmp_path):
    target = tmp_path / "deep" / "model"

    def fill(folder):
        (folder / "weights").write_text("w")
        assert not target.exists()

    rundir.write_folder(target, fill)
    assert (target / "weights").read_text() == "w" and os.listdir(target.parent) == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_while_filling_leaves_no_folder_behind(tmp_path, error):
    def fill(folder):
        (folder / "half").mkdir()
        (folder / "half" / "weights").write_text("w")
        raise error

    with pytest.raises(error):
        rundir.write_folder(tmp_path / "model", fill)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_does_not_end_up_in_the_folder(tmp_path):
    stale = tmp_path / f".model.{os.getpid()}.tmp"
    stale.mkdir()
    (stale / "old").write_text("x")
    rundir.write_folder(tmp_path / "model", lambda folder: (folder / "new").write_text("y"))
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["new"]


# ---------------------------------------------------------------------------------------------------- a new folder


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    class Frozen:
        @staticmethod
        def now(zone):
            return datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC).astimezone(zone)

    monkeypatch.setattr(rundir, "datetime", Frozen)
    names = [rundir.create(tmp_path / "runs", "quick").path.name for _ in range(3)]
    assert names == ["quick-20260304-050607", "quick-20260304-050607-2", "quick-20260304-050607-3"]
    assert rundir.create(tmp_path / "runs", "other").path.name == "other-20260304-050607"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_runs_that_is_a_file_is_named_with_the_way_out(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"The run folder .*/file.* cannot be made: .*--runs FOLDER"):
        rundir.create(tmp_path / place, "quick")


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RecipeError, match="cannot be made: Permission denied. Choose another place with --runs FOLDER"):
        rundir.create(tmp_path / "runs", "quick")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_an_error_in_words(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RecipeError, match="Permission denied"):
            rundir.create(tmp_path / "runs", "quick")
    finally:
        tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------------------------ read again


def test_what_was_written_is_read_back(tmp_path):
    run = rundir.create(tmp_path, "quick")
    row = {"prompt": "p", "policy": "line one\nline two\u2028three\x85four\x0bfive\x1csix"}
    rundir.write_jsonl(run.path / "samples.jsonl", [row, {"prompt": "q", "policy": ""}])
    rundir.write_jsonl(run.path / "metrics.jsonl", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("inf")}])
    values = {name: {"name": name} for name in ("recipe", "evaluation", "data", "reference")}
    for name, value in values.items():
        rundir.write_json(run.path / f"{name}.json", value)
    again = Run(str(run.path))
    assert again.samples == [row, {"prompt": "q", "policy": ""}]
    assert again.metrics == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("inf")}]
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


# ----------------------------------------------------------------------------------------------------- environment


def test_the_environment_says_why_two_runs_may_differ():
    found = rundir.environment(7, {"kind": "cpu", "bf16": False})
    assert {name: found["versions"][name] for name in ("torch", "trl", "transformers", "peft")} == {
        name: version(name) for name in ("torch", "trl", "transformers", "peft")
    }
    assert set(found["versions"]) == set(rundir.PACKAGES)
    assert found["seed"] == 7 and found["device"] == {"kind": "cpu", "bf16": False}
    assert found["python"] == sys.version.split()[0]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["time"])).total_seconds()) < 60
    assert json.loads(json.dumps(found)) == found


def test_the_commit_is_that_of_the_working_folder_and_none_outside_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert rundir.environment(0, {})["git_commit"] is None
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert rundir.environment(0, {})["git_commit"] is None  # no commit yet
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    said = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert rundir.environment(0, {})["git_commit"] == said.stdout.strip() and len(said.stdout.strip()) == 40


def test_a_machine_without_git_or_a_package_has_none_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rundir, "PACKAGES", ("torch", "a-package-that-is-not-there"))
    found = rundir.environment(0, {})
    assert found["git_commit"] is None
    assert found["versions"] == {"torch": version("torch")}


# -------------------------------------------------------------------------------------------------------- versions


@pytest.fixture
def constraints(tmp_path, monkeypatch):
    """constraints("torch==1.0\\n") puts this file in the place of constraints.txt beside the package, as in a wheel."""

    def write(text: str) -> None:
        (tmp_path / "constraints.txt").write_text(text)
        monkeypatch.setattr(rundir, "__file__", str(tmp_path / "runs" / "folder.py"))

    return write


def test_the_tested_versions_are_those_of_the_checkout():
    found = rundir.versions()
    assert found.name == "versions" and found.level in ("pass", "warn")
    assert all(f"{name} " in found.text for name in rundir.installed()) or found.level == "warn"


def test_the_same_versions_pass_and_a_build_of_them_is_the_same(constraints, monkeypatch):
    monkeypatch.setattr(rundir, "installed", lambda: {"dpo-recipes": "0.1", "torch": "2.13.0+cu130", "trl": "1.16.0"})
    constraints("# tested\ntorch==2.13.0\ntrl==1.16.0\nnumpy==2.0\n")
    assert rundir.versions() == ("pass", "versions", "as tested: dpo-recipes 0.1, torch 2.13.0+cu130, trl 1.16.0")


def test_versions_that_differ_are_all_named_with_the_way_to_the_tested_ones(constraints, monkeypatch):
    monkeypatch.setattr(rundir, "installed", lambda: {"torch": "2.12.0", "trl": "1.16.0", "peft": "0.22"})
    constraints("torch==2.13.0\ntrl==1.16.0\npeft==0.21.2\n")
    text = "torch 2.12.0, tested 2.13.0; peft 0.22, tested 0.21.2. To have the tested ones: "
    assert rundir.versions() == ("warn", "versions", text + "pip install -c constraints.txt")


def test_a_package_that_is_not_installed_does_not_differ(constraints, monkeypatch):
    monkeypatch.setattr(rundir, "PACKAGES", ("torch", "a-package-that-is-not-there"))
    constraints(f"torch=={version('torch').split('+')[0]}\na-package-that-is-not-there==1.0\n")
    assert rundir.versions().level == "pass"

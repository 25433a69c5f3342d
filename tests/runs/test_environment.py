"""What is said of the machine and its versions."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version

import pytest

from dpo_recipes.runs import environment


def test_the_environment_says_why_two_runs_may_differ():
    values = environment.environment(7, {"kind": "cpu", "bf16": False})

    assert set(values["versions"]) == set(environment.PACKAGES)
    for package in ("torch", "trl", "transformers", "peft"):
        assert values["versions"][package] == version(package)
    assert values["seed"] == 7
    assert values["device"] == {"kind": "cpu", "bf16": False}
    assert values["python"] == sys.version.split()[0]
    age = datetime.now(UTC) - datetime.fromisoformat(values["time"])
    assert abs(age.total_seconds()) < 60
    assert json.loads(json.dumps(values)) == values


def test_the_commit_is_that_of_the_working_folder_and_none_outside_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.environment(0, {})["git_commit"] is None

    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment.environment(0, {})["git_commit"] is None  # no commit yet

    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment.environment(0, {})["git_commit"] == head
    assert len(head) == 40


def test_a_machine_without_git_or_a_package_has_none_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "a-package-that-is-not-there"))
    values = environment.environment(0, {})
    assert values["git_commit"] is None
    assert values["versions"] == {"torch": version("torch")}


# -------------------------------------------------------------------------------------------------------- versions


@pytest.fixture
def constraints(tmp_path, monkeypatch):
    """constraints("torch==1.0\\n") puts this file in the place of constraints.txt beside the package, as in a wheel."""

    def write(text: str) -> None:
        (tmp_path / "constraints.txt").write_text(text)
        monkeypatch.setattr(environment, "PACKAGE", tmp_path)

    return write


def test_the_tested_versions_are_those_of_the_checkout():
    finding = environment.versions()
    assert finding.name == "versions"
    assert finding.level in ("pass", "warn")
    if finding.level == "pass":
        for package in environment.installed():
            assert f"{package} " in finding.text


def test_the_same_versions_pass_and_a_build_of_them_is_the_same(constraints, monkeypatch):
    monkeypatch.setattr(
        environment, "installed", lambda: {"dpo-recipes": "0.1", "torch": "2.13.0+cu130", "trl": "1.16.0"}
    )
    constraints("# tested\ntorch==2.13.0\ntrl==1.16.0\nnumpy==2.0\n")
    assert environment.versions() == ("pass", "versions", "as tested: dpo-recipes 0.1, torch 2.13.0+cu130, trl 1.16.0")


def test_versions_that_differ_are_all_named_with_the_way_to_the_tested_ones(constraints, monkeypatch):
    monkeypatch.setattr(environment, "installed", lambda: {"torch": "2.12.0", "trl": "1.16.0", "peft": "0.22"})
    constraints("torch==2.13.0\ntrl==1.16.0\npeft==0.21.2\n")
    text = "torch 2.12.0, tested 2.13.0; peft 0.22, tested 0.21.2. To have the tested ones: "
    assert environment.versions() == ("warn", "versions", text + "pip install -c constraints.txt")


def test_a_package_that_is_not_installed_does_not_differ(constraints, monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "a-package-that-is-not-there"))
    constraints(f"torch=={version('torch').split('+')[0]}\na-package-that-is-not-there==1.0\n")
    assert environment.versions().level == "pass"

"""Why runs may differ: each cause by name, what changes a result the most first, and nothing that is the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from dpo_recipes import Run
from dpo_recipes.runs.causes import causes

FILES = {
    "data.json": {"path": "pairs.jsonl", "fingerprint": "a" * 64, "template_sha256": "b" * 64, "train": {"kept": 90}},
    "reference.json": {"model": "org/model", "revision": None, "kind": "adapter off", "fingerprint": "c" * 64},
    "recipe.json": {
        "model": "org/model",
        "data.path": "pairs.jsonl",
        "loss": "sigmoid",
        "beta": 0.1,
        "seed": 42,
        "pair_sharing": "auto",
    },
    "environment.json": {
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "python": "3.11.7",
        "platform": "Linux",
        "git_commit": None,
        "device": {"kind": "cpu", "processes": 1},
        "time": "2026-01-01T00:00:00+00:00",
    },
}


@pytest.fixture
def written(tmp_path):
    """written(name, **changes) -> a run folder; a change is named after its file and key, as data__fingerprint."""

    def write(name: str, **changes) -> Run:
        files = copy.deepcopy(FILES)
        for key, value in changes.items():
            file, _, inner = key.partition("__")
            files[f"{file}.json"][inner.replace("__", ".")] = value
        folder = Path(tmp_path / name)
        folder.mkdir()
        recipe = {key: {"value": value, "origin": "default"} for key, value in files["recipe.json"].items()}
        for file, content in {**files, "recipe.json": recipe}.items():
            (folder / file).write_text(json.dumps(content), "utf-8")
        return Run(folder)

    return write


def test_the_same_run_twice_has_no_cause(written):
    assert causes([written("a"), written("b", environment__time="2026-02-02T00:00:00+00:00")]) == []


def test_every_cause_is_named_and_the_strongest_stands_first(written):
    other = written(
        "b",
        data__fingerprint="d" * 64,
        data__path="others.jsonl",
        data__template_sha256="e" * 64,
        reference__model="org/other",
        reference__fingerprint="f" * 64,
        recipe__data__path="others.jsonl",
        recipe__beta=0.5,
        recipe__loss="ipo",
        recipe__seed=1,
        recipe__pair_sharing="off",
        recipe__model="org/other",
        environment__python="3.12.0",
        environment__platform="Darwin",
    )
    found = causes([written("a"), other])
    assert [(cause.kind, cause.name) for cause in found] == [
        ("pairs", "which pairs"),
        ("template", "chat template"),
        ("start", "model"),
        ("reference", "reference"),
        ("recipe", "data.path"),
        ("recipe", "loss"),
        ("recipe", "beta"),
        ("seed", "seed"),
        ("versions", "python"),
        ("machine", "platform"),
        ("machine", "pair_sharing"),
    ]
    values = {cause.name: cause.values for cause in found}
    assert values["which pairs"] == ("90 of pairs.jsonl", "90 of others.jsonl")
    assert values["beta"] == (0.1, 0.5) and values["model"] == ("org/model", "org/other")
    assert values["reference"] == ("adapter off (cccccccc)", "adapter off (ffffffff)")


def test_the_same_pairs_under_another_name_are_the_same_pairs(written):
    assert causes([written("a"), written("b", data__path="copy.jsonl", recipe__data__path="copy.jsonl")]) == []


def test_other_pairs_under_the_same_name_are_told_apart_by_their_hash(written):
    [cause] = causes([written("a"), written("b", data__fingerprint="d" * 64)])
    assert cause.values == ("90 of pairs.jsonl (aaaaaaaa)", "90 of pairs.jsonl (dddddddd)")


def test_a_value_that_one_recipe_has_alone_is_none_in_the_other(written):
    [cause] = causes([written("a"), written("b", recipe__trl__max_steps=5), written("c")])
    assert cause.name == "trl.max_steps" and cause.values == (None, 5, None)

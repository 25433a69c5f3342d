"""What there is of a run to be shown: every file that is written already, of one that still goes too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..runs.folder import Run
from .text import plain


@dataclass
class Contents:
    """The files of a run folder as values; empty where one is not written yet."""

    name: str  # of the folder
    path: Path = Path()
    recipe: dict[str, dict[str, Any]] = field(default_factory=dict)  # dotted key -> {"value", "origin"}
    reference: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trl: dict[str, Any] = field(default_factory=dict)  # the final DPOConfig
    metrics: list[dict[str, Any]] = field(default_factory=list)
    observations: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def before(self) -> dict[str, Any]:
        return self.evaluation.get("before", {})

    @property
    def after(self) -> dict[str, Any]:
        return self.evaluation.get("after", {})

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The rows of training steps."""
        return [row for row in self.metrics if "loss" in row]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of held-out pairs."""
        return [row for row in self.metrics if "eval_loss" in row]

    @property
    def has_trained(self) -> bool:
        """Whether training came to its end; what is measured after it may still be missing."""
        return any("train_runtime" in row for row in self.metrics)

    def value(self, key: str) -> Any:
        """A value of the resolved recipe; None where it is not known."""
        return self.recipe.get(key, {}).get("value")


def contents(path: Path | str) -> Contents:
    """All that a run folder holds by now. RecipeError where it is none, or holds a file that is damaged."""
    run = Run(path)
    if not (run.path / "recipe.json").exists():
        raise RecipeError(f"{run.path} holds no recipe.json, which a run writes before its first step: it is no run.")
    rows = _lines_so_far(run.path / "metrics.jsonl")
    return Contents(
        name=run.path.resolve().name,
        path=run.path,
        recipe=_json(run.path / "recipe.json"),
        reference=_json(run.path / "reference.json"),
        environment=_json(run.path / "environment.json"),
        data=_json(run.path / "data.json"),
        trl=_json(run.path / "trl.json"),
        metrics=[row for row in rows if "rule" not in row],
        observations=[row for row in rows if "rule" in row],
        evaluation=_json(run.path / "evaluation.json"),
        samples=_lines_so_far(run.path / "samples.jsonl"),
    )


def labels(runs: Sequence[Contents]) -> list[str]:
    """What tells runs apart: the few values that differ, or else their names."""
    keys = _differing_keys(runs)
    names = [", ".join(f"{key.rpartition('.')[2]} {_value(run, key)}" for key in keys) for run in runs]
    if not keys or len(keys) > 3 or len(set(names)) < len(runs) or max(map(len, names)) > 40:
        return [run.name for run in runs]
    return names


def _differing_keys(runs: Sequence[Contents]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    return [key for key in keys if len({_value(run, key) for run in runs}) > 1]


def _value(run: Contents, key: str) -> str:
    return plain(run.recipe[key]["value"]) if key in run.recipe else "not set"


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path} is damaged: {error}.") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path} is damaged: it holds no object.")
    return value


def _lines_so_far(path: Path) -> list[dict[str, Any]]:
    """The rows of a file to which lines are still being added: a last line without its end is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RecipeError(f"{path} is damaged in line {number}: {error}.") from None
    return rows

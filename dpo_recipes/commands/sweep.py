"""A recipe trained with every combination of some values: one table, and what each has cost in KL."""

from __future__ import annotations

import gc
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import RecipeError, UsageError
from ..recipe.grid import grid
from ..recipe.overrides import apply
from ..recipe.recipe import Recipe
from ..recipe.resolve import here, resolve
from ..result_tables import sweep_table
from ..runs import files
from ..runs.folder import Run
from ..runs.rebuilt import differences
from ..sentences import print_line
from .train import train

FILE = "sweep.json"
# What the table shows, where runs have it: name in evaluation.json.
MEASURED = ("rewards/accuracies", "kl", "reward", "win_rate", "best_reward_at_kl")


def sweep(
    recipe: Recipe,
    assignments: Sequence[str],
    *,
    to: Path | str,
    seeds: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """{"rows", "failed"}: a run for each combination of `key=value,value`, in the folder `to`, and what came of them.

    Pairs are prepared, and reference log-probabilities computed, once for all runs that have the same. A run that
    fails is reported and the others go on. Called again it trains what has failed or is missing. A row has the
    `changes` of one combination, the `name` of those that are not in all, its `runs`, and of each metric the mean, with
    the 95 % interval over `seeds` or, of one run, its own. RecipeError where a combination is no recipe, before
    anything is trained, or where `to` holds a run of other values.
    """
    console = console or Console(quiet=True)
    folder = Path(to)
    combinations = grid(assignments, seeds)
    recipes = [apply(recipe, changes) for changes in combinations]
    for each in recipes:
        resolve(each, here())
    done = _done_before(folder)
    for each, changes in zip(recipes, combinations, strict=True):
        _refuse_run_of_other_values(each, _finished(folder, done, changes))

    for number, (each, changes) in enumerate(zip(recipes, combinations, strict=True), 1):
        name = " ".join(changes)
        print_line(console, f"Run {number} of {len(combinations)}: {name}")
        finished = _finished(folder, done, changes)
        if finished is not None:
            print_line(console, f"It is done: {finished.path}")
            continue
        try:
            done[name] = {"run": train(each, runs=folder, console=console).path.name}
        except KeyboardInterrupt as stopped:
            stopped.add_note("The same command trains what is missing.")
            raise
        except Exception as error:  # one run that fails must not cost the others
            message = str(error) if isinstance(error, RecipeError) else f"{type(error).__name__}: {error}"
            done[name] = {"failed": message}
            print_line(console, f"It failed: {message}")
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / FILE, done)
        gc.collect()  # a trainer and its model refer to each other

    rows, failed = _rows(folder, done, combinations)
    console.print(sweep_table(rows))
    for name, message in failed.items():
        print_line(console, f"Failed: {name}: {message}")
    return {"rows": rows, "failed": failed}


def _done_before(folder: Path) -> dict[str, dict[str, str]]:
    """Changes of a combination, as they are typed -> {"run": its folder} or {"failed": why}."""
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{file} is damaged: {error}. Delete it, and every run is trained again.") from None


def _finished(folder: Path, done: dict[str, dict[str, str]], changes: list[str]) -> Run | None:
    """The run of a combination, where there is one that has come to its end."""
    name = done.get(" ".join(changes), {}).get("run")
    if name is None or not (folder / name).is_dir():
        return None
    run = Run(folder / name)
    return run if run.is_finished else None


def _refuse_run_of_other_values(recipe: Recipe, run: Run | None) -> None:
    """A recipe file may have been changed since: then the runs of one table would not belong together."""
    if run is None:
        return
    for key, (then, now) in differences(run, recipe).items():
        raise UsageError(
            f"{run.path} was trained with {key}={then}, where the recipe has {now} now. Choose another folder with "
            "--to, or delete this one."
        )


def _rows(
    folder: Path, done: dict[str, dict[str, str]], combinations: list[list[str]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(a row for each combination but for its seed, changes of a run that failed -> why)."""
    in_all = set.intersection(*(set(changes) for changes in combinations))
    runs: dict[str, list[Run]] = {}
    failed: dict[str, str] = {}
    for changes in combinations:
        run = _finished(folder, done, changes)
        if run is None:
            failed[" ".join(changes)] = done[" ".join(changes)].get("failed", "it has not come to its end")
            continue
        apart_from_seed = [change for change in changes if not change.startswith("seed=")]
        runs.setdefault(" ".join(apart_from_seed) or "every seed", []).append(run)
    rows = []
    for changes_of_row, of_one_row in runs.items():
        named = [change for change in changes_of_row.split(" ") if change not in in_all]
        rows.append(
            {
                "name": " ".join(named) or changes_of_row,
                "changes": changes_of_row,
                "runs": [str(run.path) for run in of_one_row],
                **_numbers(of_one_row),
            }
        )
    return rows, failed


def _numbers(runs: list[Run]) -> dict[str, dict[str, float | None]]:
    """Name -> {"mean", "low", "high"} of each metric that all runs have; low and high are None where nothing tells."""
    afters = [run.evaluation["after"] for run in runs]
    numbers: dict[str, dict[str, float | None]] = {}
    for name in MEASURED:
        values = [after[name] for after in afters if after.get(name) is not None]
        if len(values) < len(runs):
            continue
        low, high = _interval(name, values, afters)
        numbers[name] = {"mean": statistics.fmean(values), "low": low, "high": high}
    return numbers


def _interval(name: str, values: list[float], afters: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean over seeds, Student's t; of one run alone its own, over its pairs or prompts."""
    from ..evaluation.intervals import Z, students_t

    if len(values) > 1:
        half_width = students_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    elif afters[0].get(f"{name}_stderr") is not None:
        half_width = Z * afters[0][f"{name}_stderr"]
    else:
        low, high = afters[0].get(f"{name}_interval") or (None, None)
        return low, high
    mean = statistics.fmean(values)
    return mean - half_width, mean + half_width

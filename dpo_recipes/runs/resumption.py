"""A run that goes on: which it is, what must be as it was when it began, and which of its log stays."""

from __future__ import annotations

import ast
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RecipeError, UsageError, nearest
from ..losses.plugins import PLUGIN_LOSSES
from ..recipe import catalogue
from ..recipe.recipe import Recipe
from .checkpoint_folders import damage, step_of, whole_checkpoints
from .environment import installed
from .folder import PAGE, Run
from .rebuilt import FOLDER_NAME, assignments, differences

# The variable that holds the words of --launch, for the processes that it starts.
LAUNCHED_WITH = "DPO_RECIPES_LAUNCHED_WITH"

LAST = "last"  # in place of a run folder: the last one that has not finished

# What may have been changed since without any effect on how the run is trained.
WITHOUT_EFFECT = (
    "reward",
    "measures",
    "answers",
    "answers_temperature",
    "forgetting",
    "forgetting_limit",
    "data.max_dropped",
    "data.allow",
    "data.reference",
    "micro_batch_size",
    "rules.",
    "trl.save_",
    "trl.eval_",
    "trl.logging_",
    "trl.report_to",
    "trl.run_name",
    "trl.dataloader_",
)
# What the checkpoint brings, or what the order of the pairs was drawn from: a new value would do nothing, or harm.
FIXED = (
    "model",
    "revision",
    "adapter",
    "global_batch_size",
    "learning_rate",
    "seed",
    "trl.adam_",
    "trl.optim",
    "trl.weight_decay",
    "trl.data_seed",
    "trl.train_sampling_strategy",
)


def unfinished(resume: Run | Path | str, runs: Path, recipe: Recipe) -> Run:
    """The run that goes on: the one that is named, or for "last" the last unfinished one of this recipe in `runs`.

    One that has finished is unfinished still where it was stopped before its page was written, or with checkpoints
    that nobody has asked for. UsageError where there is none, or where nothing is left to be done.
    """
    name = recipe.name
    if resume != LAST:
        run = resume if isinstance(resume, Run) else Run(resume)
        if run.is_finished and not has_an_end_to_come(run, recipe):
            raise UsageError(f"{run.path} has finished: there is nothing to go on with.")
        return run

    of_this_recipe = _runs_of(name, runs)
    waiting = [run for run in of_this_recipe if _is_to_go_on(run, recipe) and not run.is_in_use]
    if not waiting:
        found = "all that there are have finished, or are being trained" if of_this_recipe else "there is none"
        raise UsageError(
            f"No run of {name} in {runs} can go on: {found}. Without --resume a new one begins; one that lies "
            "elsewhere is named, --resume FOLDER."
        )
    return max(waiting, key=_time_of_start)


def only_run(runs: Path, recipe: Recipe) -> Path | None:
    """The one run of a recipe that a folder is to hold: the last unfinished one, else the last; None without any.

    RecipeError where a process is training in it.
    """
    of_this_recipe = _runs_of(recipe.name, runs)
    if not of_this_recipe:
        return None
    unfinished_ones = [run for run in of_this_recipe if _is_to_go_on(run, recipe)]
    run = max(unfinished_ones or of_this_recipe, key=_time_of_start)
    if run.is_in_use:
        raise RecipeError(f"Another process is training in {run.path}.")
    return run.path


def _runs_of(name: str, runs: Path) -> list[Run]:
    """The runs of a recipe in a folder of them."""
    of_this_recipe = []
    for path in runs.glob("*/"):
        named = FOLDER_NAME.fullmatch(path.name)
        if named and named["recipe"] == name:
            of_this_recipe.append(Run(path))
    return of_this_recipe


def _is_to_go_on(run: Run, recipe: Recipe) -> bool:
    return not run.is_finished or has_an_end_to_come(run, recipe)


def has_an_end_to_come(run: Run, recipe: Recipe) -> bool:
    """Whether a run that has its answers was stopped before its page was written or its checkpoints were removed."""
    has_page = (run.path / PAGE).exists()
    keeps_checkpoints = recipe.checkpoints_are_paced and (run.path / "checkpoints").exists()
    return not has_page or keeps_checkpoints


def _time_of_start(run: Run) -> tuple[str, int]:
    """What the name of its folder says of it: the second, and which run of that second it was."""
    named = FOLDER_NAME.fullmatch(run.path.name)
    assert named is not None
    return named["time"], int(named["attempt"] or 1)


def command(run: Run, recipe: Recipe) -> str:
    """What a shell is given to go on with a run, or Python, where the recipe is a value without a file."""
    if recipe.source is None:
        return f"train(recipe, resume={str(run.path)!r})"
    name = recipe.name
    if catalogue.recipe_files().get(name) != recipe.source:
        name = str(recipe.source)
    changes = assignments(run.recipe) if (run.path / "recipe.json").exists() else []
    launched = shlex.split(os.environ.get(LAUNCHED_WITH, ""))
    return shlex.join(["dpo-recipes", "train", name, *changes, "--resume", str(run.path), *launched])


class Checkpoint(NamedTuple):
    """From where a run goes on."""

    path: Path
    step: int


def last_checkpoint(run: Run, say: Callable[[str], None]) -> Checkpoint | None:
    """The last whole checkpoint of a run; None where there is none, so that it begins anew. What is damaged is said."""
    for path in whole_checkpoints(run.path / "checkpoints"):
        words = damage(path)
        if words is None:
            return Checkpoint(path, step_of(path))
        say(f"{path} is passed over, as it is damaged: {words}.")
    return None


def in_words(run: Run, last: Checkpoint | None, changes: Changes, processes: int) -> str:
    """Where a run goes on, in how many processes, if these are others than it was in, and with what changes."""
    if last is None:
        words = f"{run.path} has no whole checkpoint: it begins anew."
    else:
        words = f"{run.path} goes on after step {last.step:,}."
        if changes.processes not in (None, processes):
            were = "one process" if changes.processes == 1 else f"{changes.processes} processes"
            words += f" It was in {were} and is in {processes} now; a step has the same pairs."
    if changes.seen:
        words += f" Changed since it began, as allowed: {'; '.join(changes.seen.values())}."
    return words


class Changes:
    """What differs between a run and what would go on with it: refused by name, but for what is allowed by name."""

    def __init__(self, run: Run | None, allowed: Iterable[str]):
        """Of a new run, `run` is None, and nothing differs."""
        self.run = run if run is not None and (run.path / "recipe.json").exists() else None
        self.allowed = set(allowed)
        self.seen: dict[str, str] = {}  # name -> what has changed, of what was allowed
        self.processes: int | None = None  # that the run was in; None where nobody knows
        if self.run is not None:
            self.processes = self.run.environment["device"].get("processes")
        if run is None and self.allowed:
            raise UsageError("--allow-change belongs to --resume, which is not given.")

    def refuse_of_recipe(self, recipe: Recipe) -> None:
        """RecipeError for what has changed of the recipe and of the installed versions."""
        if self.run is None:
            return
        if recipe.trl.get("save_only_model"):
            raise RecipeError(
                f"{self.run.path} cannot go on: by trl.save_only_model its checkpoints hold the model alone, without "
                "the state of the optimizer. Begin a new run, without --resume and without that option."
            )
        self._refuse(changes_of_values(self.run, recipe))

    def refuse_of_pairs(self, report: Mapping[str, Any]) -> None:
        """RecipeError for another chat template or other pairs."""
        if self.run is not None:
            self._refuse(changes_of_pairs(self.run, report))

    def refuse_of_reference(self, who: Mapping[str, Any]) -> None:
        """RecipeError for a reference of other weights."""
        if self.run is not None:
            self._refuse(changes_of_reference(self.run, who))

    def refuse_unknown(self) -> None:
        """UsageError for a name that was allowed to change and that nothing has: a typo, or no change at all."""
        for name in sorted(self.allowed - self.seen.keys()):
            raise UsageError(f"--allow-change {name}: nothing of that name has changed.{nearest(name, self.seen)}")

    def _refuse(self, changed: Mapping[str, str]) -> None:
        assert self.run is not None
        for name in sorted(changed.keys() & self.allowed):
            if name.startswith(FIXED):
                raise RecipeError(
                    f"--allow-change {name}: {changed[name]}, and no value of it but the old one can act in this run. "
                    "Begin a new run, without --resume."
                )
            self.seen[name] = changed[name]
        refused = {name: words for name, words in changed.items() if name not in self.allowed}
        if not refused:
            return
        advice = "Undo that, or begin a new run, without --resume."
        if not any(name.startswith(FIXED) for name in refused):
            options = " ".join(f"--allow-change {shlex.quote(name)}" for name in refused)
            advice += f" If it is meant for the rest of this run: {options}"
        raise RecipeError(f"{self.run.path} cannot go on as it began: {'; '.join(refused.values())}. {advice}")


def changes_of_values(run: Run, recipe: Recipe) -> dict[str, str]:
    """Name -> what has changed of the recipe's values and functions, and of the installed versions."""
    changed = {}
    for key, (then, now) in differences(run, recipe).items():
        if not key.startswith(WITHOUT_EFFECT):
            changed[key] = f"{key} was {then!r} and is {now!r} now"

    versions_then, versions_now = run.environment["versions"], installed()
    for package in sorted({*versions_then, *versions_now} - {"dpo-recipes"}):
        then, now = versions_then.get(package, "not installed"), versions_now.get(package, "not installed")
        if then != now:
            changed[package] = f"{package} was {then} and is {now} now"

    if _trains_with_functions(recipe) and _functions_differ(run.path / "recipe.py", recipe.source):
        changed["functions"] = f"the functions of {recipe.source} are not those that the run began with"
    return changed


def changes_of_pairs(run: Run, report: Mapping[str, Any]) -> dict[str, str]:
    """The same of the chat template and of the pairs, by data.json of the run and the report of today."""
    changed = {}
    if run.data.get("template_sha256") != report.get("template_sha256"):
        changed["template"] = "the chat template renders otherwise than it did"
    for split in ("train", "eval"):
        then, now = run.data[split].get("sha256"), report[split].get("sha256")
        if then != now:
            changed[f"{split} pairs"] = f"the {split} pairs are not those that the run began with"
    return changed


def changes_of_reference(run: Run, who: Mapping[str, Any]) -> dict[str, str]:
    """The same of the reference's weights, by reference.json of the run."""
    if run.reference.get("fingerprint") == who["fingerprint"]:
        return {}
    return {"reference": f"the reference's weights are not those that the run began with, {run.reference['reference']}"}


def _trains_with_functions(recipe: Recipe) -> bool:
    """Whether functions of the recipe file take part in training; a reward, for one, does not."""
    own_losses = recipe.plugins.keys() - PLUGIN_LOSSES.keys()
    return bool(own_losses or recipe.data.reader or recipe.prepare)


def _functions_differ(then: Path, now: Path | None) -> bool:
    """Whether two recipe files differ in more than comments, docstrings, layout and the value of `recipe`."""
    if now is None or not then.exists():
        return False
    return _code_of(then) != _code_of(now)


def _code_of(file: Path) -> list[str]:
    """The statements of a recipe file but for `recipe = ...`, as text without comments."""
    statements = []
    for statement in ast.parse(file.read_bytes()).body:
        names = [target.id for target in getattr(statement, "targets", []) if isinstance(target, ast.Name)]
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if names != ["recipe"] and not is_docstring:
            statements.append(ast.unparse(statement))
    return statements


def rows_until(run: Run, step: int) -> list[dict[str, Any]]:
    """The rows of a run's log up to a step, without how it ended: what lies behind it will be written again."""
    file = run.path / "metrics.jsonl"
    if not step or not file.exists():
        return []
    whole_lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # behind the last line break one was cut short
    rows = []
    for line in whole_lines:
        row = json.loads(line)
        is_of_the_end = "train_runtime" in row or row.get("rule") == "stopped"
        if row["step"] <= step and not is_of_the_end:
            rows.append(row)
    return rows

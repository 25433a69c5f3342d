"""The folder of a run while it is trained, and what an error leaves of it and says of that."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import RecipeError
from ..recipe.recipe import Recipe
from . import files
from .checkpoint_folders import remove_unfinished
from .folder import Run, create, in_use
from .full_memory import is_out_of_memory
from .resumption import command
from .unreachable import unreachable_reason
from .unwritable import unwritable_place, unwritable_reason


@contextlib.contextmanager
def run_folder(recipe: Recipe, runs: Path, stopped: Run | None) -> Iterator[Run]:
    """The folder of a run that goes on, or a new one, which is taken away again where the run stops before anything is
    in it that anyone could miss."""
    run = stopped or create(runs, recipe.name)
    with in_use(run):
        remove_unfinished(run.path / "checkpoints")
        files.remove_temporary(run.path)
        with _what_is_left_told(recipe, run, is_new=stopped is None):
            yield run


@contextlib.contextmanager
def _what_is_left_told(recipe: Recipe, run: Run, is_new: bool) -> Iterator[None]:
    """An error says what it leaves of the run, and how that goes on; of a new one without anything, nothing stays."""
    log = run.path / "metrics.jsonl"
    log_before = log.stat().st_mtime_ns if log.exists() else None
    try:
        yield
    except BaseException as error:  # Ctrl-C too
        remove_unfinished(run.path / "checkpoints")
        has_logged = log.exists() and log.stat().st_mtime_ns != log_before
        if has_logged and isinstance(error, RecipeError):
            with contextlib.suppress(OSError, RecipeError):  # a full disk may be why
                _record_stop(run, str(error))
        with contextlib.suppress(OSError):
            (run.path / "checkpoints").rmdir()  # the Trainer makes the folder beforehand
        has_checkpoints = (run.path / "checkpoints").exists()
        has_model = run.model_folder.exists()  # saved after someone has removed all else
        is_refused = isinstance(error, RecipeError) and not is_new and not has_logged  # and the run is as it was
        if is_new and not has_logged and not has_checkpoints and not has_model:
            shutil.rmtree(run.path, ignore_errors=True)
        elif not is_refused:
            if has_model:
                error.add_note(f"The trained model is in {run.model_folder}.")
            else:
                error.add_note(f"What there is of the run stays in {run.path}.")
            error.add_note(f"To go on with it: {command(run, recipe)}")
        _explain_full_memory(error, recipe.name)
        _explain_unwritable(error, run.path, is_new)
        _explain_broken_stream(error, recipe)
        raise


def _record_stop(run: Run, reason: str) -> None:
    """Let the log of a run end with why it was stopped, unless a rule has written that it stops it."""
    if any(row["level"] == "stop" for row in run.observations):
        return
    step = max(row["step"] for row in run.metrics)
    row = {"step": step, "rule": "stopped", "level": "stop", "seen": reason, "advice": ""}
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write(files.to_json(row) + "\n")


def _explain_full_memory(error: BaseException, name: str) -> None:
    """RecipeError for an error of torch that says that a GPU's memory, or this machine's, does not suffice."""
    if not is_out_of_memory(error):
        return
    first_sentence = str(error).partition(". ")[0].splitlines()[0].rstrip(".")
    left_behind = "".join(f" {note}" for note in getattr(error, "__notes__", []))
    raise RecipeError(
        f"There is not enough memory: {first_sentence}. `dpo-recipes check {name}`, with the same changes behind it, "
        f"counts what a step needs without loading a weight, and lists what to change, the best first.{left_behind}"
    ) from error


def _explain_unwritable(error: BaseException, run_path: Path, is_new: bool) -> None:
    """RecipeError for an error that says that something cannot be written, whichever library says it."""
    reason = unwritable_reason(error)
    if reason is None or isinstance(error, RecipeError) or not isinstance(error, Exception):
        return
    model = run_path / "model"
    saved = f" The trained model is in {model}." if model.is_dir() else ""
    advice = "Make room, or choose another place with --runs FOLDER."
    if not is_new:  # which has its place
        advice = "Make room, or let it be written again, and give the same command."
    raise RecipeError(f"{unwritable_place(error) or run_path} cannot be written: {reason}.{saved} {advice}") from error


def _explain_broken_stream(error: BaseException, recipe: Recipe) -> None:
    """RecipeError where rows that are read from the hub while they are trained on have broken off."""
    if not recipe.data.streaming or isinstance(error, RecipeError):
        return
    reason = unreachable_reason(error)
    if reason is None:
        return
    left_behind = "".join(f" {note}" for note in getattr(error, "__notes__", []))
    raise RecipeError(
        f"The rows of {recipe.data.name} broke off: {reason}. Connect, and run again; without data.streaming all rows "
        f"come before the first step.{left_behind}"
    ) from error

"""What is used elsewhere: a finished run's model, or the run itself, for TRL alone or as a job elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import UsageError, nearest
from ..recipe import catalogue
from ..recipe.overrides import apply
from ..recipe.recipe import Recipe
from ..runs import files
from ..runs.folder import Run

if TYPE_CHECKING:
    from ..exports.job import Job

WHAT = (
    "--merged is one plain model, the adapter in the weights of its base; --dial 0.5 is half the way from the "
    "reference to the policy; --trl is a script that trains the same with TRL alone; --to is a file that trains it "
    "on a cluster or in a cloud"
)


def export(
    run: Run | Recipe | Path | str,
    *,
    dial: float | None = None,
    merged: bool = False,
    dtype: str | None = None,
    trl: bool = False,
    job: Job | None = None,
    out: Path | str | None = None,
    changes: Sequence[str] = (),
    push: str | None = None,
    public: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write what a run gives for use elsewhere into the new folder `out`; returns what its export.json holds.

    `dial`: the model that is nearest to decoding with the beta dial there, a LoRA adapter or a whole model as the run's
    own. `merged`: the adapter in the weights of its base, for whatever loads Transformers' models, in the type in which
    the base is stored or in `dtype`: bfloat16, float16, or float32, which takes nothing of it away. Of both, what was
    written is loaded once more and gives the log-probabilities that it should, or there is no folder. `trl`: the pairs
    and a plain script that train the same with TRL alone, also of a recipe that has not been run, with `changes` to it.
    `job`: the file that trains the run, or a recipe with `changes`, on a cluster or in a cloud; `out` is then a new
    file, or None, as the text is returned in any case. Nothing is submitted.
    `push`: the model goes to this new repository of the hub as well, private unless `public`.

    UsageError for what is asked for wrongly, RecipeError where the run has no such model.
    """
    # Imported here: it brings what reads pairs and models.
    from ..exports.folders import refuse_existing
    from ..exports.push import push as send
    from ..exports.push import refuse_push

    console = console or Console(quiet=True)
    _refuse_other_than_one(dial, merged, trl, job)
    _refuse_dtype(dtype, merged)
    if job is not None:
        _refuse_idle_push(push, public, "--to writes a file that trains one elsewhere")
        return _export_job(_run_or_recipe(run, changes), changes, job, out)
    if out is None:
        raise UsageError("Name the new folder that is to be written: --out FOLDER.")
    folder = Path(out)
    if dial is not None:
        from ..exports.dialled import refuse_factor

        refuse_factor(dial)
    refuse_existing(folder)
    if trl:
        _refuse_idle_push(push, public, "--trl writes a script and the pairs: send those yourself")
        from ..exports.trl_run import export_trl, recipe_and_run

        recipe, of_run = recipe_and_run(_run_or_recipe(run, changes))
        return export_trl(recipe, of_run, folder, console)

    _refuse_idle_push(push, public)
    finished = _run(run)
    if changes:
        raise UsageError(
            f"{changes[0]}: a finished run is exported as it is. Changes go with --trl or --to and a recipe."
        )
    if push is not None:
        refuse_push(push)
    place = Path(push) if push is not None else folder  # where the card says that the model is
    if dial is not None:
        from ..exports.dialled import export_dialled

        result = export_dialled(finished, dial, folder, console, place)
    else:
        from ..exports.merged import export_merged

        result = export_merged(finished, folder, console, place, dtype)
    if push is not None:
        result["pushed"] = send(folder, push, public=public, console=console)
    return result


def _export_job(named: Run | Recipe, changes: Sequence[str], job: Job, out: Path | str | None) -> dict[str, Any]:
    from ..exports.folders import refuse_existing
    from ..exports.job import task_of
    from ..exports.job_files import job_file

    if out is not None:
        refuse_existing(Path(out), "--out FILE")
    task = task_of(named, changes, job)
    text = job_file(task, job)
    if out is not None:
        files.write_text(Path(out), text)
    return {
        "run": str(named.path) if isinstance(named, Run) else None,
        "recipe": task.recipe,
        "job": job.platform,
        "name": task.name,
        "file": None if out is None else str(out),
        "text": text,
    }


def _refuse_idle_push(push: str | None, public: bool, why_not: str | None = None) -> None:
    """`why_not`: what is exported in place of a model."""
    if public and push is None:
        raise UsageError("--public says who sees what --push sends, and nothing is sent: add --push ORG/NAME.")
    if push is not None and why_not is not None:
        raise UsageError(f"--push sends a model, and {why_not}.")


def _refuse_other_than_one(dial: float | None, merged: bool, trl: bool, job: Job | None) -> None:
    asked = {"--dial": dial is not None, "--merged": merged, "--trl": trl, "--to": job is not None}
    options = [option for option, is_asked in asked.items() if is_asked]
    if not options:
        raise UsageError(f"Say what is to be exported: {WHAT}.")
    if len(options) > 1:
        raise UsageError(f"{' and '.join(options)}: one of them, each writes something of its own.")


def _refuse_dtype(dtype: str | None, merged: bool) -> None:
    if dtype is None:
        return
    if not merged:
        raise UsageError("--dtype is that of the weights of --merged, which is not asked for.")
    from ..exports.merged import DTYPES

    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype!r}: one of {', '.join(DTYPES)}.{nearest(dtype, DTYPES)}")


def _run(run: Run | Recipe | Path | str) -> Run:
    if isinstance(run, Recipe):
        raise UsageError(
            "A recipe that has not been run has no model to export: train it, or export it with --trl or --to."
        )
    return run if isinstance(run, Run) else Run(run)


def _run_or_recipe(named: Run | Recipe | Path | str, changes: Sequence[str]) -> Run | Recipe:
    """A run by its folder, a recipe by its name or its file."""
    if isinstance(named, Run) or (not isinstance(named, Recipe) and Path(named).is_dir()):
        if changes:
            raise UsageError(f"{changes[0]}: a finished run is exported as it was trained. Changes go with a recipe.")
        return named if isinstance(named, Run) else Run(named)
    recipe = named if isinstance(named, Recipe) else catalogue.load(named)
    return apply(recipe, changes)

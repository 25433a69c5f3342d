"""A finished run, or any policy beside its reference, measured: the numbers of held-out pairs and of answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from ..errors import RecipeError, UsageError, stop_at_fails
from ..models.model_folder import base_of_adapter, refuse_model_of_run
from ..progress import Stage
from ..recipe.adapters import LoRA
from ..recipe.data import Data
from ..recipe.judges import JudgeEndpoint, RewardModel
from ..recipe.overrides import apply
from ..recipe.recipe import Recipe
from ..run_page.page import write_report
from ..runs import files, folder
from ..runs.rebuilt import recipe_of
from ..training.checked_pairs import are_other_pairs
from ..training.same_weights import refuse_changed_models
from ..training.session import LOOKS_ONLY, Session
from ..training.with_images import refuse_images

if TYPE_CHECKING:
    from ..losses.pair_logps import PairLogps
    from ..training.trainer import RecipeTrainer

# What of a run's data stays where others take their place: how conversations are written out, and what is allowed.
KEPT_OF_DATA = ("chat_template", "chat_template_kwargs", "template_date", "system", "allow", "max_dropped")
# What a recipe says of the measuring alone, so that a finished run may be asked otherwise.
OF_THE_MEASURE = ("answers", "answers_temperature", "forgetting", "forgetting_limit")


class Subject(NamedTuple):
    """What is measured."""

    recipe: Recipe
    run: folder.Run | None  # whose trained weights are the policy; None: the recipe's model is the policy itself
    all_held_out: bool  # whether all pairs of the data are held out
    to: Path | None  # where the files go

    @property
    def trained(self) -> Path | None:
        """The folder of the weights that the run has trained."""
        return None if self.run is None else self.run.model_folder


def evaluate(
    run: folder.Run | Path | str | None = None,
    *,
    policy: str | None = None,
    reference: str | None = None,
    data: str | None = None,
    changes: Sequence[str] = (),
    reward: Callable[[str, str], float] | RewardModel | JudgeEndpoint | None = None,
    dial: Sequence[float] = (),
    to: Path | str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """{"policy", "reference", "before", "after", "samples"}: a run's numbers, as `train` measures them at its end.

    They go into evaluation.json, samples.jsonl and pairs.jsonl of the run folder. Or of `policy` and `reference`, each
    a folder or a hub id, on the pairs of `data`: then `before` are the reference's, and the files go to `to`, where
    that is given; so do those of a run on other `data` than its own. `changes` are KEY=VALUE of the recipe, `reward` is
    one in place of its own. With factors of the beta `dial` there is also "dial": what other betas would have given, a
    row each. RecipeError where something cannot be had, or would be measured as what it is not.
    """
    console = console or Console()
    where = None if to is None else Path(to)
    if run is not None and policy is None and reference is None:
        subject = _of_run(run if isinstance(run, folder.Run) else folder.Run(run), data, changes, where)
    elif run is None and policy is not None and data is not None:
        subject = _of_folders(policy, reference, data, changes, where)
    else:
        raise UsageError(
            "Name a run folder, as in `dpo-recipes evaluate runs/NAME`, or two models and pairs: `dpo-recipes evaluate "
            "--policy FOLDER --reference MODEL --data FILE`."
        )
    if reward is not None:
        subject = subject._replace(recipe=subject.recipe.evolve(reward=reward))
    if where is not None:
        where.mkdir(parents=True, exist_ok=True)

    session = Session(subject.recipe, console)
    with Stage(console, "Checking the model's files"):
        session.check_model()
    session.read_pairs(all_held_out=subject.all_held_out)
    if dial:
        refuse_images(session, "evaluate --dial", "it samples answers")
    stop_at_fails([finding for finding in session.findings if finding.name.startswith(("eval ", "positions"))])
    if subject.run is not None and not subject.all_held_out:
        _refuse_other_pairs(subject.run, session)
    with tempfile.TemporaryDirectory() as scratch:
        return _measured(subject, session, Path(scratch), dial)


# ---------------------------------------------------------------------------------------------------- what is measured


def _of_run(run: folder.Run, data: str | None, changes: Sequence[str], to: Path | None) -> Subject:
    """A run, on its own held-out pairs or on others."""
    recipe = recipe_of(run)
    for change in changes:
        if change.partition("=")[0] not in OF_THE_MEASURE:
            raise UsageError(
                f"{change!r}: a run is measured as it was trained, and {run.path} says how. What can be changed: "
                f"{', '.join(OF_THE_MEASURE)}."
            )
    recipe = apply(recipe, changes)
    if recipe.trl.get("sync_ref_model"):
        raise RecipeError(
            f"The reference of {run.path} moved while it trained, and is not kept. To compare the model with the "
            f"weights it started from: dpo-recipes evaluate --policy {run.model_folder} --reference {recipe.model} "
            "--data FILE"
        )
    refuse_model_of_run(run.model_folder, is_adapter=recipe.adapter is not None)
    if data is None:
        return Subject(recipe, run, all_held_out=False, to=to or run.path)

    kept = {name: getattr(recipe.data, name) for name in KEPT_OF_DATA if name in recipe.data.given}
    return Subject(recipe.evolve(data=Data(data, **kept)), run, all_held_out=True, to=to)


def _of_folders(policy: str, reference: str | None, data: str, changes: Sequence[str], to: Path | None) -> Subject:
    """Any two models that read the same tokens."""
    base = base_of_adapter(policy)
    adapter = None if base is None else LoRA(continue_from=policy)
    compared_with = reference or base
    if compared_with is None:
        raise UsageError(f"{policy} is a whole model: say with --reference what it is to be compared with.")
    recipe = Recipe(model=base or policy, adapter=adapter, reference=compared_with, data=Data(data))
    recipe = recipe.from_where(called="evaluate")
    return Subject(apply(recipe, changes), run=None, all_held_out=True, to=to)


def _refuse_other_pairs(run: folder.Run, session: Session) -> None:
    """RecipeError where a run's own held-out pairs are others today: some of them may have been trained on."""
    if are_other_pairs(session, run, "eval"):
        raise RecipeError(
            f"{run.path} cannot be measured again on its own held-out pairs: the eval pairs are not those that it had. "
            f"Put back what they were made from, or name pairs to measure it on: dpo-recipes evaluate {run.path} "
            "--data FILE"
        )


# ------------------------------------------------------------------------------------------------------ how it is done


def _measured(subject: Subject, session: Session, scratch: Path, factors: Sequence[float]) -> dict[str, Any]:
    """The numbers of a policy and its reference, written where they belong."""
    console = session.console
    with Stage(console, "Loading TRL"):
        from ..evaluation.beyond_pairs import beyond_pairs
        from ..evaluation.dial import dial
        from ..evaluation.forgetting import over_budget
        from ..evaluation.pair_numbers import pair_rows
        from ..evaluation.rehearsal import rehearsed
        from ..models.trained import put_trained_weights

    recipe = session.recipe
    positions = session.positions()
    scores = rehearsed(recipe, session.eval, positions)
    stop_at_fails(scores)
    session.say_warnings(scores)

    # A trainer as it was before training, of which the held-out pairs alone are read
    looking = session.on_pairs(session.eval.select([0]), session.eval)
    trainer = looking.make_trainer(scratch, [], **LOOKS_ONLY)
    first = None
    if subject.run is not None:
        refuse_changed_models(subject.run, looking)
    if subject.trained is not None:
        before, first = _pair_numbers(trainer, None)
        with Stage(console, "Loading the trained weights"):
            put_trained_weights(trainer.model, subject.trained, trust_remote_code=recipe.trust_remote_code)
        trainer.is_trained = True
        after, last = _pair_numbers(trainer, first)
    else:
        before, after, last = _beside_its_reference(trainer)

    samples, more = beyond_pairs(recipe, trainer, looking.reference, positions, console)
    before.update(more.before)
    after.update(more.after)
    numbers: dict[str, Any] = {"before": before, "after": after}
    if factors:
        with trainer.accelerator.autocast():
            numbers["dial"] = dial(recipe, trainer, looking.reference, positions, factors, console)

    if subject.to is not None:
        files.write_jsonl(subject.to / "pairs.jsonl", pair_rows(trainer, last))
        files.write_jsonl(subject.to / "samples.jsonl", samples)
        files.write_json(subject.to / "evaluation.json", numbers | {"pair_sharing": trainer.pair_reading()})
        if (subject.to / "recipe.json").exists():  # of a run, whose page shows these numbers
            write_report(subject.to)
    return {
        "policy": str(subject.trained or (recipe.adapter.continue_from if recipe.adapter else recipe.model)),
        "reference": session.settings.reference if subject.trained else recipe.reference,
        **numbers,
        "samples": samples,
        "written": None if subject.to is None else str(subject.to),
        "over_budget": over_budget(recipe, after),
    }


def _pair_numbers(trainer: RecipeTrainer, first: PairLogps | None) -> tuple[dict[str, Any], PairLogps]:
    from ..evaluation.pair_numbers import measure_pairs

    return measure_pairs(trainer, first)


def _beside_its_reference(trainer: RecipeTrainer) -> tuple[dict[str, Any], dict[str, Any], PairLogps]:
    """(numbers of the reference, numbers of the policy, its pairs), of a policy whose start is not known."""
    from ..evaluation.pair_numbers import as_its_reference, numbers_of

    trainer.is_trained = True
    metrics, pairs = trainer.held_out()
    start = as_its_reference(pairs)
    return numbers_of(trainer, {}, start, start), numbers_of(trainer, metrics, pairs, start), pairs

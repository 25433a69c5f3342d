"""The spine: a recipe becomes a finished run folder. Read it from top to bottom."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..data.sources import is_path
from ..errors import RecipeError, UsageError, stop_at_fails
from ..evaluation.closing_table import compared
from ..evaluation.held_out import METRICS, SPREADS
from ..guard.losses import loss_findings
from ..guard.own_rules import rule_findings
from ..planning.chosen_settings import adopt, adopt_of
from ..progress import Stage, TrainingBar
from ..recipe.as_python import as_python
from ..recipe.choices import without_choices
from ..recipe.origins import values_with_origins
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, here, resolve
from ..recipe.unusual import unusual_findings
from ..result_tables import comparison_table, observations_table
from ..run_page.page import write_report
from ..runs import environment, files, folder, resumption
from ..runs.model_card import model_card
from ..runs.unfinished import run_folder
from ..sentences import print_line
from ..terminal import data_table
from ..training import engine, processes, saved_model
from ..training.checked_pairs import hash_pairs
from ..training.in_words import amounts, policy_and_reference
from ..training.same_weights import weights_of
from ..training.session import Session

if TYPE_CHECKING:
    from ..training.trainer import RecipeTrainer


def train(
    recipe: Recipe,
    *,
    runs: Path | str = "runs",
    resume: folder.Run | Path | str | None = None,
    once: bool = False,
    allow_change: Sequence[str] = (),
    console: Console | None = None,
) -> folder.Run:
    """Train a recipe; returns its finished run folder: the model, the numbers before and after, the answers.

    With `resume`, an unfinished run folder, that run goes on from its last whole checkpoint, and its finished weights
    are those of a run that was never stopped. What of recipe, pairs, template, reference and versions is not as it was
    is refused by name, unless `allow_change` names it.

    With `once`, for a job that may be started again, `runs` is to hold one run of the recipe: it is begun where there
    is none, gone on with where it was stopped, and given back as it is where it has finished.

    Where a launcher has started several processes, each of them is to call this: they train together, and the main
    one prints and writes.

    Raises RecipeError with one readable message for whatever is the user's to fix; nothing is left half-written.
    """
    console = processes.console_here(console or Console())
    _come_together(recipe, console)
    stopped = _run_that_is_there(resume, once, Path(runs), recipe)
    if stopped is not None and stopped.is_finished:
        if once and not resumption.has_an_end_to_come(stopped, recipe):
            print_line(console, f"{stopped.path} has finished: nothing is left to be done.")
            return stopped
        return _close_finished(stopped, recipe, console) if processes.is_main() else stopped
    changes = resumption.Changes(stopped, allow_change)
    changes.refuse_of_recipe(recipe)
    own_functions = loss_findings(recipe) + rule_findings(recipe)
    stop_at_fails(own_functions)
    session = Session(recipe, console, with_others=True)
    session.say_warnings(unusual_findings(recipe) + own_functions)
    with Stage(console, "Checking the model's files"):
        session.check_model()
    # These import torch and TRL: what could be refused without them is refused by now.
    with Stage(console, "Loading TRL"):
        from ..evaluation.beyond_pairs import beyond_pairs
        from ..evaluation.forgetting import over_budget
        from ..evaluation.pair_numbers import at_its_start, measure_pairs, pair_rows
        from ..evaluation.rehearsal import rehearsed
        from ..guard.judge import Judge, Observation
        from ..planning.process import reset_peak_on
        from ..training.checkpoints import Checkpoints
        from ..training.metrics_log import MetricsLog
        from ..training.trackers import Trackers

    reset_peak_on(session.device.kind)  # this process may have trained something else before
    shown_while_training = {metric.name: metric.short for metric in METRICS if metric.short}
    bar = TrainingBar(console, shown_while_training)
    trackers = Trackers(session.say)
    with (
        _run_and_place(recipe, Path(runs), stopped) as (run, place),
        contextlib.closing(bar),
        contextlib.closing(trackers),
    ):
        # The options, the pairs, and the trainer that takes them
        session.try_options()
        processes.main_first(session.read_pairs)
        _show_pairs(session)
        hash_pairs(session)
        changes.refuse_of_pairs(session.report)
        positions = session.positions()
        scores = rehearsed(recipe, session.eval, positions)
        stop_at_fails(scores)
        session.say_warnings(scores)
        log = MetricsLog(place / "metrics.jsonl", bar)

        def tell(observation: Observation) -> None:
            log.observed(observation._asdict())
            session.say(observation.sentence())
            trackers.findings(judge.observations)

        if changes.run is None:
            adopt(session)
        else:
            adopt_of(session, changes.run)
        recipe = session.recipe
        judge = Judge(recipe, session.settings, len(session.eval), tell)
        checkpoints = Checkpoints(recipe.checkpoints_are_paced, session.say)
        trainer = session.make_trainer(run.path / "checkpoints", [log, judge, checkpoints])
        trackers.follow(trainer, place)
        who = policy_and_reference(trainer)
        who["weights"] = processes.from_main(lambda: weights_of(session))
        changes.refuse_of_reference(who)
        changes.refuse_unknown()
        since = processes.from_main(lambda: resumption.last_checkpoint(run, session.say))
        _describe(place, trainer, session, who)
        session.say(f"Policy: {who['policy']}. Reference: {who['reference']}.")
        if trainer.reference_cache:
            session.say(trainer.reference_in_words())
        session.say(amounts(trainer))

        # Before training, which is measured again of a run that goes on: its reference is the recipe's, as it was
        kept = resumption.rows_until(run, since.step if since else 0)
        log.go_on(kept)
        is_whole = engine.reads_before_training(trainer)
        before, first = measure_pairs(trainer) if is_whole else ({}, None)
        judge.go_on(kept)
        if stopped:
            session.say(resumption.in_words(run, since, changes, session.device.processes))

        # Training. Of a stream, the drops are known only when it has been read.
        if recipe.data.streaming:
            session.report["train"]["dropped"].clear()  # what was read to look at it is read again
        with saved_model.kept_when_disk_is_full(run, trainer, session.tokenizer):
            with checkpoints.stopping_after_the_step():
                trainer.train(resume_from_checkpoint=str(since.path) if since else None)
            bar.close()
            session.say(log.closing_words)
            # The model first: whatever goes wrong from here on, the training is not lost.
            with Stage(console, "Writing the model"):
                model = place / "model"  # one may be there, of a run that was stopped behind its training
                save = functools.partial(saved_model.save_model, trainer=trainer, tokenizer=session.tokenizer)
                files.write_folder(model, save, replace=True)
        if recipe.data.streaming:
            files.write_json(run.path / "data.json", session.report)
            console.print(data_table(session.report))

        # After training: the numbers, then the answers, which may fail in the recipe's own reward
        after, last = measure_pairs(trainer, first)
        processes.leave()
        if not processes.is_main():
            return run
        if first is None:
            before, after = at_its_start(trainer, after, last)
        files.write_jsonl(run.path / "pairs.jsonl", pair_rows(trainer, last))
        _write_results(run, session, who, trainer.pair_reading(), before, after)

        samples: list[dict[str, Any]] = []
        if engine.divides_weights(trainer):
            session.say(
                "Answers and unrelated text are not read here, as each process holds a part of the weights. To have "
                f"them: dpo-recipes evaluate {run.path}"
            )
        else:
            samples, more = beyond_pairs(recipe, trainer, session.reference, positions, console)
            before.update(more.before)
            after.update(more.after)
            _write_results(run, session, who, trainer.pair_reading(), before, after)
        files.write_jsonl(run.path / "samples.jsonl", samples)  # last: a run that has them is finished
        _close(run, recipe)
        trackers.samples(samples)
        trackers.held_out(
            compared(before, after), {name: value for name, value in after.items() if not name.endswith(SPREADS)}
        )

    console.print(comparison_table(after["pairs"], compared(before, after)))
    if judge.observations:
        console.print(observations_table(judge.observations))
    holds = "the model, the numbers and the answers" if samples else "the model and the numbers"
    session.say(f"{run.path} holds {holds}; its report.html shows them.")
    too_far = over_budget(recipe, after)
    if too_far:
        raise RecipeError(too_far)
    return run


def _come_together(recipe: Recipe, console: Console) -> None:
    """Where a launcher has started several processes, make them one group; what cannot work is refused before."""
    engine.refuse_lost_processes()
    device = Device() if recipe.trl.get("use_cpu") else here()
    if device.processes == 1:
        engine.refuse_fsdp_on_a_cpu(recipe, device.kind)
        return
    engine.refuse_engine(recipe, engine.engine_here(recipe), device.kind)
    engine.refuse_other_precision(resolve(recipe, device))
    with Stage(console, "Waiting for the other processes"):
        processes.join(recipe, device)


def _run_that_is_there(
    resume: folder.Run | Path | str | None, once: bool, runs: Path, recipe: Recipe
) -> folder.Run | None:
    """The run that goes on, or has finished already where one is enough; None where a new one begins.

    The main process finds it, as by then it may be in use.
    """
    if once and resume is not None:
        raise UsageError("--once goes on with a run by itself: leave --resume out.")
    if once:
        found = processes.from_main(lambda: resumption.only_run(runs, recipe))
    elif resume is not None:
        found = processes.from_main(lambda: resumption.unfinished(resume, runs, recipe).path)
    else:
        return None
    return None if found is None else _folder_here(found)


def _folder_here(path: Path) -> folder.Run:
    """The folder of a run as this process sees it: another machine may have no disk in common with the main one."""
    if not processes.is_main():
        path.mkdir(parents=True, exist_ok=True)
    return folder.Run(path)


@contextlib.contextmanager
def _run_and_place(recipe: Recipe, runs: Path, stopped: folder.Run | None) -> Iterator[tuple[folder.Run, Path]]:
    """The run, whose folder the main process makes and holds, and where this process writes its files."""
    if processes.is_main():
        with run_folder(recipe, runs, stopped) as run:
            processes.from_main(lambda: run.path)
            yield run, run.path
        return
    run = _folder_here(processes.from_main(lambda: runs))
    with processes.place_to_write(run.path) as place:
        yield run, place


def _close(run: folder.Run, recipe: Recipe) -> None:
    """What is left to do for a run that has its answers: the page, and checkpoints that nobody has asked for go."""
    write_report(run.path)
    if recipe.checkpoints_are_paced:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def _close_finished(run: folder.Run, recipe: Recipe, console: Console) -> folder.Run:
    """The same of a run that was killed in between; nothing is trained or measured again."""
    from ..evaluation.forgetting import over_budget

    with folder.in_use(run):
        files.remove_temporary(run.path)
        _close(run, recipe)
    before, after = run.evaluation["before"], run.evaluation["after"]
    console.print(comparison_table(after["pairs"], compared(before, after)))
    words = (
        f"{run.path} was trained and measured already, and was stopped before its end. Its report.html is written now"
    )
    if recipe.checkpoints_are_paced:
        words += ", and its checkpoints, which nobody has asked for, are removed"
    print_line(console, f"{words}.")
    too_far = over_budget(recipe, after)
    if too_far:
        raise RecipeError(too_far)
    return run


def _show_pairs(session: Session) -> None:
    """Print the data report and what a reader of the log should know of it; RecipeError where a finding is a fail."""
    session.console.print(data_table(session.report))
    for finding in session.findings:
        if finding.level == "pass" and finding.name in ("pairs", "system", "weights", "images"):
            session.say(finding.text)
    session.say_warnings(session.findings)
    stop_at_fails(session.findings)


def _describe(place: Path, trainer: RecipeTrainer, session: Session, who: dict[str, Any]) -> None:
    """Write everything about a run that is known before its first step."""
    recipe = trainer.recipe
    # Of a value made in Python, a file that makes the same one
    source = recipe.source.read_text(encoding="utf-8") if recipe.source else as_python(without_choices(recipe))
    files.write_text(place / "recipe.py", source)
    files.write_json(place / "trl.json", trainer.args.to_dict())
    files.write_json(place / "environment.json", environment.environment(recipe.seed, vars(session.device)))
    files.write_json(place / "data.json", session.report)
    files.write_json(place / "reference.json", who)

    values = {}
    for field, (value, origin) in values_with_origins(recipe, trainer.settings).items():
        values[field] = {"value": value, "origin": origin}
        if field in recipe.reasons:
            values[field]["reason"] = recipe.reasons[field]
    files.write_json(place / "recipe.json", values)  # last: of a run that has it, what goes on is held against them all


def _write_results(
    run: folder.Run,
    session: Session,
    who: dict[str, Any],
    reading: dict[str, Any],
    before: dict[str, Any],
    after: dict[str, Any],
) -> None:
    """The numbers before and after training: as values, and in the model card for a reader."""
    files.write_json(run.path / "evaluation.json", {"before": before, "after": after, "pair_sharing": reading})
    card = model_card(
        session.recipe,
        session.settings,
        base=session.model_path,
        base_is_on_the_hub=not _is_folder(session.model_path),
        folder=run.model_folder,
        who=who,
        data=session.report,
        reading=reading,
        versions=environment.installed(),
        pairs=after["pairs"],
        results=compared(before, after),
        observations=run.observations,
        auto_class=session.auto_class,
    )
    files.write_text(run.model_folder / "README.md", card)


def _is_folder(model: str) -> bool:
    """Whether a model's name is that of a folder here, and not of a model on the hub."""
    return is_path(model) or Path(model).exists()

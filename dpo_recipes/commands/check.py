"""Everything that can be known before training, as one list of findings; with `run`, real steps beside the plan."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import Finding, RecipeError, UsageError
from ..evaluation.rehearsal import questions, rehearsed
from ..guard.losses import loss_findings
from ..guard.own_rules import rule_findings
from ..planning.amounts import device_memory, format_memory, parse_memory
from ..planning.chosen_settings import adopt
from ..planning.engines import launch
from ..planning.planned_run import add_plan, add_plan_of_shape, steps_in_words
from ..planning.visible_differences import visible
from ..recipe.recipe import Recipe
from ..recipe.resolve import here
from ..recipe.unusual import unusual_findings
from ..runs import environment, files
from ..training.session import Session
from ..training.with_images import refuse_images


def check(
    recipe: Recipe,
    *,
    gpu: str | None = None,
    num_processes: int | None = None,
    engine: str | None = None,
    run: bool = False,
    pairs: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """{"findings", "data", "plan", "evaluation", "run", "pairs"}: what was found, in order, and the numbers behind it.

    `gpu`: memory to plan for, such as "24GB"; None: of the device that is there. `num_processes`: plan for one of so
    many devices, over which `engine` (ddp, fsdp2, zero2, zero3; None: ddp) spreads the run. `pairs`: the file to write
    into which pairs to look at, as data.exclude takes it; the recipe trains on each half of its pairs for that. What
    cannot work is a finding here, not an error, and what depends on it is skipped. UsageError where `gpu` is no amount
    of memory, where processes, engine and device do not go together, or where the file is there already.
    """
    if pairs is not None and pairs.exists():
        raise UsageError(f"{pairs} is there already. Remove it, or name another: --to FILE")
    gpu_memory = parse_memory(gpu) if gpu else None
    spread = launch(num_processes, engine)
    on_gpu = gpu_memory is not None or (here().kind == "cuda" and not recipe.trl.get("use_cpu"))
    if spread is not None and not on_gpu:
        raise UsageError(
            f"--num-processes {spread.num_processes} plans for as many GPUs, and here is none: say how much memory "
            "each has, as in --gpu 24GB."
        )
    findings: list[Finding] = []
    result: dict[str, Any] = dict.fromkeys(["findings", "data", "plan", "evaluation", "run", "pairs"])
    result["findings"] = findings

    findings.append(environment.versions())
    findings.append(_check_values(recipe))
    findings += unusual_findings(recipe)
    findings += loss_findings(recipe)
    findings += rule_findings(recipe)

    # The model, without which nothing else can be looked at
    try:
        session = Session(recipe, console or Console(quiet=True))
        session.try_options()
    except RecipeError as error:
        findings.append(Finding("fail", "model", str(error)))
        findings.append(Finding("skipped", "pairs", "it needs the model, which failed"))
        if gpu_memory is None or not add_plan_of_shape(recipe, gpu_memory, spread, result, console):
            findings.append(Finding("skipped", "plan", "it needs the model, which failed"))
        if run:
            findings.append(Finding("skipped", "run", "it needs the pairs, which failed"))
        return result
    model_finding = _check_model(session, here=gpu is None)
    findings.append(model_finding)

    model_failed = model_finding.level == "fail"
    positions = None if model_failed else session.positions()
    _check_pairs(session, result, positions)
    _check_what_can_be_seen(session, result, positions)
    if model_failed:
        findings.append(Finding("skipped", "plan", "it needs the model, which failed"))
        if run:
            findings.append(Finding("skipped", "run", "it needs the model, which failed"))
        return result
    recipe = session.recipe  # which pairs with images have decided a part of
    if pairs is not None:
        refuse_images(session, "check --pairs", "it compares pairs by their tokens")
    if run or pairs is not None:
        adopt(session, tell=False)  # for this machine, which need not be the one that is planned for
    add_plan(session, recipe, gpu_memory, spread, result)
    findings += _sharing_findings(session)
    if run:
        _check_real_steps(session, result)
    if pairs is not None:
        _name_suspect_pairs(session, result, pairs)
    return result


def _check_values(recipe: Recipe) -> Finding:
    """The values, which loading the recipe has checked already."""
    fields, options = len(recipe.given), len(recipe.trl)
    text = f"{fields} fields and {options} options of DPOConfig are set; each of them acts"
    return Finding("pass", "recipe", text)


def _check_model(session: Session, here: bool) -> Finding:
    """Model, adapter and reference, as far as their configurations and the names in their files tell."""
    recipe = session.recipe
    try:
        session.check_model(here=here)
    except RecipeError as error:
        return Finding("fail", "model", str(error))
    model, data = recipe.in_words(recipe.model), recipe.in_words(recipe.data.name)
    return Finding("pass", "model", f"{model} and {data} are at hand")


# ----------------------------------------------------------------------------------------------------------- the pairs


def _check_pairs(session: Session, result: dict[str, Any], positions: int | None) -> None:
    """Read, tokenise and judge the pairs, as training does; `positions`: tokens that the model reaches, where known."""
    try:
        session.read_pairs()
    except RecipeError as error:
        result["findings"].append(Finding("fail", "pairs", str(error)))
        return
    result["data"] = session.report
    result["findings"] += session.findings

    result["findings"] += _reference_findings(session)
    result["findings"] += rehearsed(session.recipe, session.eval, positions)


def _reference_findings(session: Session) -> list[Finding]:
    """Whether data.reference has these pairs, cut in the same places; the model itself is asked when a run begins."""
    recipe = session.recipe
    if recipe.data.reference is None:
        return []
    from ..training.published_reference import Published

    published = Published(recipe.data.reference)
    try:
        for split, pairs in (("train", session.train), ("eval", session.eval)):
            published.find(pairs, split, recipe.max_length, recipe.trl.get("ld_alpha"))
    except RecipeError as error:
        return [Finding("fail", "reference", str(error))]
    text = f"{published.name} has all pairs; a run computes some of them again before it believes it"
    return [Finding("pass", "reference", text)]


def _check_what_can_be_seen(session: Session, result: dict[str, Any], positions: int | None) -> None:
    """The smallest differences that the evaluation after training can show, from how many pairs and prompts it has."""
    report = result["data"]
    if report is None or not report.get("eval", {}).get("kept"):
        return
    pairs = report["eval"]["kept"]
    of_pairs = visible(pairs)
    result["evaluation"] = {"pairs": of_pairs}
    result["findings"].append(Finding("info", "evaluation", _visible_in_words("accuracy", of_pairs, "held-out pairs")))

    if session.recipe.reward:
        asked = questions(session.recipe, session.eval, positions)
        of_prompts = visible(len(asked.prompts))
        result["evaluation"]["prompts"] = of_prompts
        result["findings"].append(Finding("info", "answers", _visible_in_words("win rate", of_prompts, "prompts")))


def _visible_in_words(what: str, numbers: dict[str, Any], whose: str) -> str:
    """What so many pairs or prompts can show, and how many would show two points; `numbers` are from `visible`."""

    def seen(name: str) -> str:
        value = numbers[name]
        return "none at all" if value is None else f"{100 * value:.0f} points and more"

    return (
        f"{numbers['count']:,} {whose}. Of differences in {what} between two runs they show: {seen('paired')}, where "
        f"both runs have the same {whose} and one in five comes out differently; {seen('unpaired')}, where each has "
        f"others. 2 points are seen with {numbers['needed_paired']:,} or {numbers['needed_unpaired']:,} of them."
    )


def _sharing_findings(session: Session) -> list[Finding]:
    """Whether each pair will be read once, as far as the model's configuration tells; nothing where that is off."""
    from ..planning.memory import skeletons
    from ..shared_prefix.forward import read_twice
    from ..training.pair_reading import why_read_twice

    recipe = session.recipe
    if recipe.pair_sharing == "off":
        return []
    for model in skeletons(session, recipe, session.settings):
        reason = None if model is None else why_read_twice(model, has_images=session.has_images)
        if reason is None:
            continue
        if recipe.pair_sharing == "require":
            text = (
                f"pair_sharing=require, and pairs cannot be read once: {reason}. pair_sharing=auto reads them as TRL "
                "does."
            )
            return [Finding("fail", "pair sharing", text)]
        return [Finding("info", "pair sharing", read_twice(reason, session.cost_of_reading_twice()))]
    text = "Each pair is read once; on the first batch that is compared with TRL's own forward"
    return [Finding("pass", "pair sharing", text)]


# ---------------------------------------------------------------------------------------------------------- real steps


def _check_real_steps(session: Session, result: dict[str, Any]) -> None:
    """A step on the longest pairs, where policy and reference must agree; timed ones; the longest evaluation batch."""
    findings, plan = result["findings"], result["plan"]
    if result["data"] is None:
        findings.append(Finding("skipped", "run", "it needs the pairs, which failed"))
        return
    if session.recipe.data.streaming or not len(session.train):
        findings.append(Finding("skipped", "run", "There are no stored pairs to try."))
        return
    device, memory = session.device.kind, device_memory(session.device.kind)
    if plan and plan["here"] > memory:
        needed = f"It needs {format_memory(plan['here'])}, and the {device} has {format_memory(memory)}."
        findings.append(Finding("skipped", "run", needed))
        return

    # Imported here: it brings bitsandbytes, which announces at import what the session has silenced by now.
    from ..planning.trial_steps import try_steps

    try:
        trial = try_steps(session)
    except RecipeError as error:
        findings.append(Finding("fail", "run", str(error)))
        return
    except Exception as error:  # a plugin loss's, a library's or the device's: a trial is there to find it
        findings.append(Finding("fail", "run", f"{type(error).__name__}: {error}"))
        return

    steps = plan["steps"] if plan else 0
    seconds = steps * trial.seconds_per_step
    result["run"] = {"peak": trial.peak, "seconds_per_step": trial.seconds_per_step, "seconds": seconds}

    if trial.same_start:
        known_loss = ", and the loss has its known value" if trial.known_loss else ""
        findings.append(Finding("pass", "step 0", f"policy and reference agree{known_loss}"))
    counted = "reserved by torch" if device == "cuda" else "resident, as the operating system counts"
    planned = f"planned {format_memory(plan['here'])}" if plan else "not planned"
    findings.append(Finding("info", "peak memory", f"{format_memory(trial.peak)} {counted}; {planned}"))
    take = "takes" if steps == 1 else "take"
    whole_run = f"{steps_in_words(steps)} {take} {timedelta(seconds=round(seconds))}, without evaluation and answers"
    if session.settings.precompute:
        whole_run += ", and without the reference's own pass, of which later runs find what this one computes"
    findings.append(Finding("info", "time", f"{trial.seconds_per_step:.3g} s a step; {whole_run}"))


# ------------------------------------------------------------------------------------------------------- suspect pairs

NAMED = 0.05  # share of the train pairs that each of the two scores names


def _name_suspect_pairs(session: Session, result: dict[str, Any], file: Path) -> None:
    """Write which pairs to look at, by two scores; what they are worth is in the README."""
    findings = result["findings"]
    failed = [finding.name for finding in findings if finding.level == "fail"]
    if failed:
        findings.append(Finding("skipped", "suspect pairs", f"first mend what failed: {', '.join(failed)}"))
        return
    if session.recipe.data.streaming:
        findings.append(Finding("skipped", "suspect pairs", "A stream is not scored: its pairs are not all at hand."))
        return

    from ..planning.suspect_pairs import named, score_pairs

    try:
        with tempfile.TemporaryDirectory() as folder:
            scores = score_pairs(session, Path(folder))
    except RecipeError as error:
        findings.append(Finding("fail", "suspect pairs", str(error)))
        return
    lines = named(session, scores, NAMED)
    files.write_jsonl(file, lines)

    count = len(session.train)
    against = int((scores.label > 0).sum())
    result["pairs"] = {"file": str(file), "named": len(lines), "against_their_label": against, "scored": count}
    findings.append(
        Finding(
            "info",
            "suspect pairs",
            f"{against:,} of {count:,} pairs are ranked against their label by a model that was trained on the others. "
            f"{file} names {len(lines):,}: the {NAMED:.0%} whose label is doubted most, and the {NAMED:.0%} whose "
            f"answers are most alike to the model. Read them; data.exclude={file} leaves them out.",
        )
    )

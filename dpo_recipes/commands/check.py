"""Everything that can be known before training, as one list of findings; with `run`, real steps beside the plan."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import Finding, RecipeError, UsageError
from ..evaluation.rehearsal import questions, rehearsed
from ..guard.losses import loss_findings
from ..guard.own_rules import rule_findings
from ..planning.amounts import USABLE, device_memory, format_memory, parse_memory
from ..planning.chosen_settings import MOST_PAIRS, adopt, choose, of_session
from ..planning.engines import ENGINES, Launch, launch, notes, plan_on_engine
from ..planning.pair_lengths import PairLength, longest_pair
from ..planning.visible_differences import visible
from ..planning.ways_out import WayOut, ways_out
from ..progress import Stage
from ..recipe.choices import with_choices
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, here, resolve
from ..recipe.unusual import unusual_findings
from ..runs import environment, files
from ..training import length
from ..training.session import Session

if TYPE_CHECKING:
    from ..planning.memory import Plan


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
    if run or pairs is not None:
        adopt(session, tell=False)  # for this machine, which need not be the one that is planned for
    _check_plan(session, recipe, gpu_memory, spread, result)
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


# ------------------------------------------------------------------------------------------------------------ the plan


def _check_plan(
    session: Session, given: Recipe, gpu_memory: int | None, spread: Launch | None, result: dict[str, Any]
) -> None:
    """Parameters, memory and, where it does not fit, the ways out; steps and tokens.

    Without its pairs, a recipe with a `max_length` is planned too.
    """
    from ..planning.memory import Unplannable, largest_pairs  # which brings torch, here and below

    findings = result["findings"]
    report = result["data"] or {}
    train_report = report.get("train", {})

    if gpu_memory is None:
        device, memory = session.device, device_memory(session.device.kind)
    else:
        device, memory = Device("cuda", bf16=True), gpu_memory
    if spread is not None:
        device = dataclasses.replace(device, processes=spread.num_processes)

    try:
        with Stage(session.console, "Planning on fake tensors"):
            recipe = _with_chosen_settings(session, given, device, spread, memory, findings)
            pairs = largest_pairs(session, report, most=MOST_PAIRS)
            plan = _plan(session, recipe, device, spread, memory, pairs, train_pairs=train_report.get("kept", 0))
    except Unplannable as reason:
        findings.append(Finding("skipped", "plan", str(reason)))
        return
    except RecipeError as error:
        findings.append(Finding("fail", "plan", str(error)))
        return

    result["plan"] = plan
    findings.append(Finding("info", "parameters", f"{plan['trainable']:,} of {plan['total']:,} train"))
    in_16_bits = resolve(recipe, device).autocast is not None
    findings.append(_memory_finding(plan, device, in_16_bits))
    if spread is not None:
        findings.append(_processes_finding(recipe, device, spread))
    if train_report.get("padded_tokens"):  # of a stream nothing is counted beforehand
        findings.append(_tokens_finding(train_report, plan["steps"]))


def _with_chosen_settings(
    session: Session, given: Recipe, device: Device, spread: Launch | None, memory: int, findings: list[Finding]
) -> Recipe:
    """The recipe with what a run on the device would choose; a finding says what, and why."""
    planned = None
    if spread is not None:
        planned = functools.partial(_plan_of_one_of_several, session, device, spread)
    chosen = choose(given, of_session(session, device, memory, planned))
    said = [f"{choice.key}={str(choice.value).lower()} ({choice.reason})" for choice in chosen.choices]
    if chosen.left:
        said.append(chosen.left)
    if said:
        findings.append(Finding("info", "chosen", "; ".join(said)))
    else:
        findings.append(Finding("pass", "chosen", "the recipe leaves nothing to be chosen for the device"))
    return with_choices(given, chosen.choices)


def _plan_of_one_of_several(session: Session, device: Device, spread: Launch, recipe: Recipe) -> Plan:
    from ..planning.memory import largest_pairs

    pairs = largest_pairs(session, session.report, most=MOST_PAIRS)
    return plan_on_engine(session, device, pairs, recipe, spread.engine)


def _plan(
    session: Session,
    recipe: Recipe,
    device: Device,
    spread: Launch | None,
    memory: int,
    pairs: list[PairLength],
    train_pairs: int,
) -> dict[str, Any]:
    """The plan for the largest pairs on a device of so many bytes, and what to change where it does not fit.

    The fields of `Plan`, of one device where a run is `spread` over several; and beside them `num_processes` and
    `engine`; `here`, the peak on this machine's own device, which is what real steps can be compared with; `memory`, in
    bytes; whether it `fits`; `tokens`; the `steps` of the whole run; and `ways_out`, the best first.
    """
    from ..planning.memory import plan_for

    def planned(recipe: Recipe) -> Plan:
        if spread is None:
            return plan_for(session, device, pairs, recipe)
        return plan_on_engine(session, device, pairs, recipe, spread.engine)

    plan = planned(recipe)
    usable = USABLE * memory
    fits = plan.peak < usable

    tokens = longest_pair(pairs)
    ways: list[WayOut] = []
    if not fits:
        ways = ways_out(
            recipe,
            plan.peak,
            int(usable),
            planned,
            tokens,
            on_cpu=device.kind == "cpu",
            launches=_other_launches(session, recipe, device, spread, pairs),
        )

    plan_here = plan if device == session.device else plan_for(session, session.device, pairs, session.recipe)
    return vars(plan) | {
        "num_processes": 1 if spread is None else spread.num_processes,
        "engine": None if spread is None else spread.engine,
        "here": plan_here.peak,
        "memory": memory,
        "fits": fits,
        "tokens": tokens,
        "steps": length.steps(session.recipe, train_pairs),
        "chosen": [{"key": key, "reason": reason} for key, reason in recipe.reasons.items()],
        "ways_out": [way._asdict() for way in ways],
    }


def _other_launches(
    session: Session, recipe: Recipe, device: Device, spread: Launch | None, pairs: list[PairLength]
) -> dict[str, Callable[[], Plan]]:
    """The other engines on as many devices, and the same engine on twice as many.

    None where one process was asked for: training is refused with several, so that they are no way out unasked.
    """
    if spread is None:
        return {}

    def planned(other: Launch) -> Plan:
        device_of_other = dataclasses.replace(device, processes=other.num_processes)
        return plan_on_engine(session, device_of_other, pairs, recipe, other.engine)

    launches: dict[str, Callable[[], Plan]] = {}
    for engine in ENGINES:
        if engine != spread.engine:
            launches[f"--engine {engine}"] = functools.partial(planned, spread._replace(engine=engine))
    twice = 2 * spread.num_processes
    launches[f"--num-processes {twice}"] = functools.partial(planned, spread._replace(num_processes=twice))
    return launches


def _memory_finding(plan: dict[str, Any], device: Device, in_16_bits: bool) -> Finding:
    """What the worst moment needs, part by part; where that is too much, the ways out."""
    from ..planning.memory import PARTS

    peak, memory = format_memory(plan["peak"]), format_memory(plan["memory"])
    where = f"on {device.kind}"
    if plan["engine"]:
        where = f"on each of {plan['num_processes']} devices under {plan['engine']}"
    shown = [f"{part} {format_memory(plan[part])}" for part in PARTS if plan[part] >= LEAST_SHOWN]
    parts = f": {', '.join(shown)}" if shown else ""
    needs = f"{peak} of {memory} {where}, {MOMENTS[plan['moment']]}{parts}."
    if in_16_bits and device.kind == "cpu":  # measured: 0.8 GB after 28 lengths, of which each took less than the last
        needs += (
            " In 16 bits a CPU's matrix library keeps more for each new length of a row, up to 0.8 GB where measured."
        )
    if plan["fits"]:
        return Finding("info", "memory", needs)

    if not plan["ways_out"]:
        return Finding("fail", "memory", f"{needs} It does not fit. No field is left to change.")
    ways = "; ".join(_way_out_in_words(way) for way in plan["ways_out"])
    return Finding("fail", "memory", f"{needs} It does not fit. Ways out, the best first: {ways}.")


LEAST_SHOWN = 50_000  # bytes of a part: fewer would read 0.0 MB


def _processes_finding(recipe: Recipe, device: Device, spread: Launch) -> Finding:
    """What is divided over the devices, what is not, and how far this can be trusted."""
    settings = resolve(recipe, device)
    sentences = [
        f"{recipe.global_batch_size} pairs a step = {settings.micro_batch_size} pairs x {settings.accumulation} "
        f"accumulation x {spread.num_processes} processes. Under {spread.engine}: {ENGINES[spread.engine].words}.",
        *notes(recipe, spread.engine, settings.accumulation),
        "Planned by formula, and not compared with runs on several GPUs. This version trains in one process.",
    ]
    return Finding("info", "processes", " ".join(sentences))


MOMENTS = {
    "loading": "while the weights are read",
    "reference": "in a pass of the reference",
    "evaluation": "in an evaluation",
    "step": "in a step",
}


def _way_out_in_words(way: dict[str, Any]) -> str:
    text = f"{way['change']} saves {format_memory(way['saves'])} and leaves {format_memory(way['peak'])}"
    if way["same_maths"]:
        text += ", at the same maths"
    if not way["fits"]:
        text += ", not enough"
    return text


def _tokens_finding(train_report: dict[str, Any], steps: int) -> Finding:
    """Steps, and the tokens of an epoch: alone, as TRL pads them, and with each prompt read once for both sides."""
    real, padded, shared = (train_report[name] for name in ("real_tokens", "padded_tokens", "shared_tokens"))
    padding = 1 - real / padded
    text = (
        f"{_steps(steps)}; {real:,} tokens an epoch, {padded:,} as TRL pads them ({padding:.0%} padding), "
        f"{shared:,} with each prompt read once"
    )
    return Finding("info", "tokens", text)


def _sharing_findings(session: Session) -> list[Finding]:
    """Whether each pair will be read once, as far as the model's configuration tells; nothing where that is off."""
    from ..models.base_model import without_adapters
    from ..planning.memory import skeletons
    from ..shared_prefix.forward import read_twice, why_not

    recipe = session.recipe
    if recipe.pair_sharing == "off":
        return []
    for model in skeletons(session, recipe, session.settings):
        reason = None if model is None else why_not(without_adapters(model))
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


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


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
    whole_run = f"{_steps(steps)} {take} {timedelta(seconds=round(seconds))}, without evaluation and answers"
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

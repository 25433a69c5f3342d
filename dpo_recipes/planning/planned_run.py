"""The plan of a run as `check` tells it: parameters, memory and the ways out, processes, steps and tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import Finding, RecipeError
from ..progress import Stage
from ..recipe.choices import with_choices
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, resolve
from ..training import length
from ..training.session import Session
from .amounts import USABLE, device_memory, format_memory
from .chosen_settings import MOST_PAIRS, choose, of_session
from .engines import ENGINES, Launch, notes, plan_on_engine
from .from_shape import session_of_shape
from .pair_lengths import PairLength, longest_pair
from .ways_out import WayOut, ways_out

if TYPE_CHECKING:
    from .memory import Plan

LEAST_SHOWN = 50_000  # bytes of a part: fewer would read 0.0 MB
MOMENTS = {
    "loading": "while the weights are read",
    "reference": "in a pass of the reference",
    "evaluation": "in an evaluation",
    "step": "in a step",
}

OF_IMAGES = (
    "Not counted: what the part that reads images needs for its pixels and its activations, which comes on top. "
    "check --run tries a few real steps."
)


def add_plan(
    session: Session, given: Recipe, gpu_memory: int | None, spread: Launch | None, result: dict[str, Any]
) -> None:
    """Parameters, memory and, where it does not fit, the ways out; steps and tokens.

    Without its pairs, a recipe with a `max_length` is planned too.
    """
    from .memory import Unplannable, largest_pairs  # which brings torch, here and below

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
    findings.append(_memory_finding(plan, device, resolve(recipe, device).in_16_bits))
    if session.has_images:
        findings.append(Finding("info", "memory", OF_IMAGES))
    if spread is not None:
        findings.append(_processes_finding(recipe, device, spread))
    if train_report.get("padded_tokens"):  # of a stream nothing is counted beforehand
        findings.append(_tokens_finding(train_report, plan["steps"]))


def add_plan_of_shape(
    recipe: Recipe, gpu_memory: int, spread: Launch | None, result: dict[str, Any], console: Console | None
) -> bool:
    """The same of a model of which nothing is at hand but its shape; whether that is known, and so planned."""
    device = Device("cuda", bf16=True, processes=1 if spread is None else spread.num_processes)
    try:
        with session_of_shape(recipe, console or Console(quiet=True), device) as session:
            if session is None:
                return False
            text = (
                f"The plan is made of the known shape of {recipe.model} alone, for pairs that fill "
                f"max_length={recipe.max_length}."
            )
            result["findings"].append(Finding("info", "shape", text))
            add_plan(session, recipe, gpu_memory, spread, result)
    except RecipeError as error:
        result["findings"].append(Finding("fail", "plan", str(error)))
    return True


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
    from .memory import largest_pairs

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
    from .memory import plan_for

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
    from .memory import PARTS

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


def _processes_finding(recipe: Recipe, device: Device, spread: Launch) -> Finding:
    """What is divided over the devices, what is not, and how far this can be trusted."""
    settings = resolve(recipe, device)
    sentences = [
        f"{recipe.global_batch_size} pairs a step = {settings.micro_batch_size} pairs x {settings.accumulation} "
        f"accumulation x {spread.num_processes} processes. Under {spread.engine}: {ENGINES[spread.engine].words}.",
        *notes(recipe, spread.engine, settings.accumulation),
        "Planned by formula, and not compared with runs on several GPUs. "
        f"To train so: dpo-recipes train {recipe.name} --launch {spread.engine} --num-processes {spread.num_processes}",
    ]
    return Finding("info", "processes", " ".join(sentences))


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
        f"{steps_in_words(steps)}; {real:,} tokens an epoch, {padded:,} as TRL pads them ({padding:.0%} padding), "
        f"{shared:,} with each prompt read once"
    )
    return Finding("info", "tokens", text)


def steps_in_words(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"

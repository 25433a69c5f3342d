"""Everything that can be known before training, as one list of findings; with `run`, real steps beside the plan."""

import functools
import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console

from ..errors import Finding, RecipeError
from ..losses.conformance import conformance
from ..planning.memory import (
    PARTS,
    USABLE,
    Unplannable,
    device_memory,
    format_memory,
    longest_pair,
    parse_memory,
    plan_for,
)
from ..planning.trial_steps import try_steps
from ..planning.ways_out import ways_out
from ..recipe.recipe import PREPARED, Recipe
from ..recipe.resolve import Device
from ..runs import environment
from ..training.session import Session


def check(
    recipe: Recipe, *, gpu: str | None = None, run: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """{"findings", "data", "plan", "run"}: what was found, in order, and the numbers that it was found from.

    `gpu`: memory to plan for, such as "24GB"; None: of the device that is there. What cannot work is a finding here,
    not an error, and what depends on it is skipped.
    """
    found = [environment.versions(), *_recipe(recipe)]
    result: dict[str, Any] = {"findings": found, "data": None, "plan": None, "run": None}
    memory, done, start = parse_memory(gpu) if gpu else None, {""}, list[Session]()

    def begin() -> Iterator[Finding]:
        start.append(Session(recipe, console or Console(quiet=True)))
        names = f"{recipe.model} and {recipe.data.name}".replace(f"{PREPARED}/", f"{recipe.name}'s own ")
        yield Finding("pass", "model", f"{names} are at hand")

    def pairs() -> Iterator[Finding]:
        start[0].read_pairs()
        result["data"] = start[0].report
        yield from start[0].findings

    stages: list[tuple[str, str, Callable[[], Iterator[Finding]]]] = [
        ("model", "", begin), ("pairs", "model", pairs), ("plan", "model", lambda: _plan(start[0], memory, result)),
        ("run", "pairs", lambda: _run(start[0], result)),
    ]  # fmt: skip
    for name, needs, stage in stages if run else stages[:-1]:
        try:
            found += stage() if needs in done else [Finding("skipped", name, f"it needs the {needs}, which failed")]
            done.add(name if needs in done else "")
        except Unplannable as error:
            found.append(Finding("skipped", name, str(error)))
        except Exception as error:  # of a trial: a plugin loss's, a library's, the device's
            if not (known := isinstance(error, RecipeError)) and name != "run":
                raise
            found.append(Finding("fail", name, str(error) if known else f"{type(error).__name__}: {error}"))
    return result


def _recipe(recipe: Recipe) -> Iterator[Finding]:
    """The values, which loading has checked already, and every plugin loss in the conformance kit."""
    given = f"{len(recipe.given)} fields and {len(recipe.trl)} options of DPOConfig are set; each of them acts"
    yield Finding("pass", "recipe", given)
    for name, (function, _) in recipe.plugins.items():
        wrong = "; ".join(conformance(function, beta=recipe.beta, **recipe.numbers(function)))
        yield Finding("fail" if wrong else "pass", f"loss {name}", wrong or "passes the conformance kit")


def _plan(start: Session, memory: int | None, result: dict[str, Any]) -> Iterator[Finding]:
    """Parameters, memory and, where it does not fit, the ways out; steps and tokens."""
    recipe, train = start.recipe, (result["data"] or {}).get("train", {})
    tokens = longest_pair(start, result["data"] or {})
    device = Device("cuda", bf16=True) if memory else start.device
    memory = memory or device_memory(device.kind)

    with start.console.status("planning on fake tensors"):
        planned = functools.partial(plan_for, start, device, tokens)
        found = planned(recipe)
        fits, room = found.peak < USABLE * memory, int(USABLE * memory)
        ways = [] if fits else list(ways_out(recipe, room, planned, tokens))
        here = found if device == start.device else plan_for(start, start.device, tokens, recipe)  # what `run` measures
    steps = math.ceil(recipe.num_train_epochs * math.ceil(train.get("kept", 0) / recipe.global_batch_size))
    steps = max(recipe.trl.get("max_steps", 0), 0) or steps
    outs = []
    for change, way in ways:
        enough = "" if way.peak < USABLE * memory else ", not enough"
        outs.append(f"{change} ({format_memory(way.peak)}{enough})")
    also = {"here": here.peak, "memory": memory, "fits": fits, "tokens": tokens, "steps": steps, "ways_out": outs}
    result["plan"] = vars(found) | also
    yield Finding("pass", "parameters", f"{found.trainable:,} of {found.total:,} train")
    each = ", ".join(f"{part} {format_memory(size)}" for part in PARTS if (size := getattr(found, part)))
    at = f"in a{'n' * (found.moment == 'evaluation')} {found.moment}"
    text = f"{format_memory(found.peak)} of {format_memory(memory)} on {device.kind}, {at}: {each}."
    out = f" It does not fit. {'In this order: ' * bool(outs)}{'; '.join(outs) or 'No field is left to change'}."
    yield Finding("pass" if fits else "fail", "memory", text if fits else text + out)
    if padded := train.get("padded_tokens"):
        words = f"{steps:,} steps; {(real := train['real_tokens']):,} tokens an epoch, {padded:,} as TRL pads them"
        more = f"({1 - real / padded:.0%} padding), {train['shared_tokens']:,} with each prompt read once"
        yield Finding("pass", "tokens", f"{words} {more}")


def _run(start: Session, result: dict[str, Any]) -> Iterator[Finding]:
    """A step on the longest pairs, where policy and reference must agree; timed ones; the longest evaluation batch."""
    if start.recipe.data.streaming or not len(start.train):
        raise Unplannable("There are no stored pairs to try.")
    planned, here = result["plan"], device_memory(start.device.kind)
    if planned and planned["here"] > here:
        needed = format_memory(planned["here"])
        raise Unplannable(f"It needs {needed}, and the {start.device.kind} has {format_memory(here)}.")
    trial = try_steps(start)
    seconds, steps = trial.seconds_per_step, planned["steps"] if planned else 0
    result["run"] = {"peak": trial.peak, "seconds_per_step": seconds, "seconds": steps * seconds}
    if trial.same_start:
        known = ", and the loss has its known value" if trial.known_loss else ""
        yield Finding("pass", "step 0", f"policy and reference agree{known}")
    expected = format_memory(planned["here"]) if planned else "nothing"
    yield Finding("pass", "peak memory", f"{format_memory(trial.peak)}; planned {expected}")
    whole = f"{steps:,} steps take {timedelta(seconds=round(steps * seconds))}, without evaluation and answers"
    yield Finding("pass", "time", f"{seconds:.3g} s a step; {whole}")

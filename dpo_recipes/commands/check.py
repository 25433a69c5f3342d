"""Everything that can be known before training, as one list of findings; with `run`, real steps beside the plan."""

import copy
import functools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..errors import Finding, RecipeError
from ..losses.conformance import conformance
from ..planning.memory import PARTS, Plan, Unplannable, measured_peak, parse_memory, plan, ways_out
from ..recipe.recipe import PREPARED, Recipe
from ..recipe.resolve import Device, resolve
from ..runs import environment
from ..training.session import Start

TIMED = 3  # steps on pairs as they come, after a first one on the longest
ROOM = 0.95  # of a device's memory may be planned for: the rest is the driver's, the kernels' and lost in fragments


def check(
    recipe: Recipe, *, gpu: str | None = None, run: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """{"findings", "data", "plan", "run"}: what was found, in order, and the numbers that it was found from.

    `gpu`: memory to plan for, such as "24GB"; None: of the device that is there. What cannot work is a finding here,
    not an error, and what depends on it is skipped.
    """
    found = [environment.versions(), *_recipe(recipe)]
    result: dict[str, Any] = {"findings": found, "data": None, "plan": None, "run": None}
    memory, done, start = parse_memory(gpu) if gpu else None, {""}, list[Start]()

    def begin() -> Iterator[Finding]:
        start.append(Start(recipe, console or Console(quiet=True)))
        names = f"{recipe.model} and {recipe.data.name}".replace(f"{PREPARED}/", f"{recipe.name}'s own ")
        yield Finding("pass", "model", f"{names} are at hand")

    def pairs() -> Iterator[Finding]:
        start[0].pairs()
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


def _plan(start: Start, memory: int | None, result: dict[str, Any]) -> Iterator[Finding]:
    """Parameters, memory and, where it does not fit, the ways out; steps and tokens."""
    recipe, train = start.recipe, (result["data"] or {}).get("train", {})
    known = max([2, *start.train["length"], *start.eval["length"]]) if "tokens" in train else 2**60
    if (tokens := min(known, recipe.max_length or 2**60)) == 2**60:
        raise Unplannable("Neither the pairs nor max_length say how long a pair can be.")
    device = Device("cuda", bf16=True) if memory else start.device
    memory = memory or _memory(device.kind)

    with start.console.status("planning on fake tensors"):
        planned = functools.partial(_planned, start, device, tokens)
        found = planned(recipe)
        fits, room = found.peak < ROOM * memory, int(ROOM * memory)
        ways = [] if fits else list(ways_out(recipe, room, planned, tokens))
        here = found if device == start.device else _planned(start, start.device, tokens, recipe)  # what `run` measures
    steps = math.ceil(recipe.num_train_epochs * math.ceil(train.get("kept", 0) / recipe.global_batch_size))
    steps = max(recipe.trl.get("max_steps", 0), 0) or steps
    outs = [f"{change} ({_gb(way.peak)}{', not enough' * (way.peak >= ROOM * memory)})" for change, way in ways]
    also = {"here": here.peak, "memory": memory, "fits": fits, "tokens": tokens, "steps": steps, "ways_out": outs}
    result["plan"] = vars(found) | also
    yield Finding("pass", "parameters", f"{found.trainable:,} of {found.total:,} train")
    each = ", ".join(f"{part} {_gb(size)}" for part in PARTS if (size := getattr(found, part)))
    at = f"in a{'n' * (found.moment == 'evaluation')} {found.moment}"
    text = f"{_gb(found.peak)} of {_gb(memory)} on {device.kind}, {at}: {each}."
    out = f" It does not fit. {'In this order: ' * bool(outs)}{'; '.join(outs) or 'No field is left to change'}."
    yield Finding("pass" if fits else "fail", "memory", text if fits else text + out)
    if padded := train.get("padded_tokens"):
        words = f"{steps:,} steps; {(real := train['real_tokens']):,} tokens an epoch, {padded:,} as TRL pads them"
        more = f"({1 - real / padded:.0%} padding), {train['shared_tokens']:,} with each prompt read once"
        yield Finding("pass", "tokens", f"{words} {more}")


def _planned(start: Start, device: Device, tokens: int, recipe: Recipe) -> Plan:
    from ..models import weights as model

    settings, other = resolve(recipe, device), start.reference_path or start.model_path
    own = settings.reference in ("other model", "moving copy")
    second = model.skeleton(recipe, settings, other, trainable=False) if own else None
    policy = model.skeleton(recipe, settings, start.model_path)
    return plan(policy, recipe, settings, tokens=min(tokens, recipe.max_length or tokens), second=second)


def _memory(kind: str) -> int:
    """Bytes of the device that is there."""
    if kind != "cuda":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.cuda.get_device_properties(0).total_memory


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _run(start: Start, result: dict[str, Any]) -> Iterator[Finding]:
    """A step on the longest pairs, where policy and reference must agree; timed ones; the longest evaluation batch."""
    from transformers import TrainerCallback

    if start.recipe.data.streaming or not len(start.train):
        raise Unplannable("There are no stored pairs to try.")
    planned, here = result["plan"], _memory(start.device.kind)
    if planned and planned["here"] > here:
        raise Unplannable(f"It needs {_gb(planned['here'])}, and the {start.device.kind} has {_gb(here)}.")
    a_step, once, times = start.recipe.global_batch_size, copy.copy(start), list[float]()
    a_pass = start.recipe.trl.get("per_device_eval_batch_size", start.settings.micro_batch_size)
    longest, held = (np.argsort(-np.array(p["length"]), kind="stable").tolist() for p in (start.train, start.eval))
    once.train = start.train.select([*longest[:a_step], *range(min(len(longest), TIMED * a_step))])
    once.eval = start.eval.select(held[:a_pass])

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] += time.perf_counter()

    plain = {"max_steps": 1 + TIMED, "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False,
             "report_to": "none", "push_to_hub": False, "train_sampling_strategy": "sequential"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = once.trainer(Path(folder), [Clock()], **plain)
        resident = [t for m in (trainer.model, trainer.ref_model) if m for t in (*m.parameters(), *m.buffers())]
        peak = measured_peak(lambda: (trainer.train(), trainer.evaluate()), resident)
    seconds, steps = statistics.median(times[1:]), planned["steps"] if planned else 0
    result["run"] = {"peak": peak, "seconds_per_step": seconds, "seconds": steps * seconds}
    if trainer.health.same_start:
        known = ", and the loss has its known value" if trainer.health.declared is not None else ""
        yield Finding("pass", "step 0", f"policy and reference agree{known}")
    yield Finding("pass", "peak memory", f"{_gb(peak)}; planned {_gb(planned['here']) if planned else 'nothing'}")
    whole = f"{steps:,} steps take {timedelta(seconds=round(steps * seconds))}, without evaluation and answers"
    yield Finding("pass", "time", f"{seconds:.3g} s a step; {whole}")

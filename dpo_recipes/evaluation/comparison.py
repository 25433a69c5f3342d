"""How much one run is better than another: differences on the same pairs and prompts, with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import RecipeError
from ..runs.folder import Run
from .held_out import METRICS, Metric
from .intervals import Z, paired_difference

Row = dict[str, Any]


class Paired(NamedTuple):
    """A metric of which a run's files hold the numbers of each pair or prompt."""

    name: str  # in evaluation.json
    file: str  # "pairs" or "samples"
    value: Callable[[Row], float]


class RunDifference(NamedTuple):
    """By how much a metric of a run is above that of the run it is compared with."""

    metric: str
    difference: float
    low: float  # of the 95 % interval
    high: float
    paired: bool  # measured on the same pairs or prompts, of which what is hard for one is hard for the other
    size: int | None  # how many of these; None where each run has its own


def _ranked_as_labelled(row: Row) -> float:
    margin = row["chosen_logratio"] - row["rejected_logratio"]
    if margin == 0:
        return 0.5
    return float(margin > 0)


def _policy_reward(row: Row) -> float:
    return row["policy_reward"]


def _win_rate(row: Row) -> float:
    return row["win_rate"]


def _kl(row: Row) -> float:
    return row["kl"]


def _tokens(row: Row) -> float:
    return row["policy_tokens"]


PAIRED = (
    Paired("rewards/accuracies", "pairs", _ranked_as_labelled),
    Paired("reward", "samples", _policy_reward),
    Paired("win_rate", "samples", _win_rate),
    Paired("kl", "samples", _kl),
    Paired("answers/tokens", "samples", _tokens),
)


def run_differences(run: Run, baseline: Run) -> list[RunDifference]:
    """Each metric that both runs have, in the order of METRICS, as `run` minus `baseline` after training.

    On the pairs and prompts that both have, where the folders tell them apart; else from the two intervals, as of
    independent samples. A metric without an interval has no difference that says anything, and is left out.
    """
    after, other = run.evaluation["after"], baseline.evaluation["after"]
    known = {paired.name: paired for paired in PAIRED}
    differences: list[RunDifference] = []
    for metric in METRICS:
        if not metric.in_table or metric.name not in after or metric.name not in other:
            continue
        found = None
        if metric.name == "rewards/margins" and run.recipe["beta"] != baseline.recipe["beta"]:
            continue  # which are multiples of another beta
        if metric.name in known:
            found = _on_the_same(run, baseline, known[metric.name])
        found = found or _of_independent(metric, after, other)
        if found is not None:
            differences.append(found)
    return differences


class Measured(NamedTuple):
    """The number of a pair or of a prompt, and the prompt, within which pairs may depend on each other."""

    number: float
    prompt: Any


def _on_the_same(run: Run, baseline: Run, paired: Paired) -> RunDifference | None:
    """The difference on the pairs or prompts that both runs have; None where there are none."""
    try:
        first = _measured(run, paired)
        second = _measured(baseline, paired)
    except RecipeError:  # a run of an older version has no such file
        return None
    both = [key for key in first if key in second]
    if not both:
        return None
    value, low, high = paired_difference(
        [first[key].number for key in both],
        [second[key].number for key in both],
        [first[key].prompt for key in both],
    )
    return RunDifference(paired.name, value, low, high, paired=True, size=len(both))


def _measured(run: Run, paired: Paired) -> dict[str, Measured]:
    """What identifies a pair or a prompt -> its number; nothing of rows that have none."""
    if paired.file == "samples":
        keys_and_rows = [(json.dumps(row["prompt"], sort_keys=True), row) for row in run.samples]
    else:
        # Rows of the same place may be of other data.
        data = run.data.get("fingerprint") or run.data.get("path")
        keys_and_rows = []
        for row in run.pairs:
            key = json.dumps([data, row["row"], row["chosen_tokens"], row["rejected_tokens"]])
            keys_and_rows.append((key, row))

    measured: dict[str, Measured] = {}
    for key, row in keys_and_rows:
        try:
            prompt = key if paired.file == "samples" else row["prompt"]
            measured[key] = Measured(paired.value(row), prompt)
        except (KeyError, TypeError):  # no such number, as without a reward
            continue
    return measured


def _of_independent(metric: Metric, after: dict[str, Any], other: dict[str, Any]) -> RunDifference | None:
    """The difference of two means whose errors are known, as if nothing tied the samples together."""
    errors = [_standard_error(metric, numbers) for numbers in (after, other)]
    if None in errors or after[metric.name] is None or other[metric.name] is None:
        return None
    value = after[metric.name] - other[metric.name]
    half_width = Z * math.hypot(*(error for error in errors if error is not None))
    return RunDifference(metric.name, value, value - half_width, value + half_width, paired=False, size=None)


def _standard_error(metric: Metric, numbers: dict[str, Any]) -> float | None:
    error = numbers.get(f"{metric.name}_stderr")
    if error is not None:
        return error
    interval = numbers.get(f"{metric.name}_interval")
    if interval is None or None in interval:
        return None
    low, high = interval
    return (high - low) / (2 * Z)

"""Intervals and errors of what an evaluation measures: shares, means over prompts, and differences pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

Z = 1.959964  # standard errors on either side of a mean that hold 95 % of a normal distribution


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (1927); both may be fractional, as a tie counts half."""
    proportion = successes / trials
    centre = proportion + Z * Z / (2 * trials)
    # Rounding may leave a proportion of 1 just above it.
    variance = max(0.0, proportion * (1 - proportion)) / trials
    half_width = Z * math.sqrt(variance + Z * Z / (4 * trials * trials))
    scale = 1 + Z * Z / trials
    # Rounding may leave the ends of an interval at 0 or 1 just outside.
    low = max(0.0, (centre - half_width) / scale)
    high = min(1.0, (centre + half_width) / scale)
    return low, high


def share_interval(outcomes: torch.Tensor, groups: Sequence[Any]) -> tuple[float, float]:
    """The 95 % interval of a share: Wilson's, on as many trials as the outcomes are worth.

    `outcomes`, of shape (n,), are 0, 1 or, for a tie, 1/2. Those of one group, such as the pairs of one prompt, tend to
    agree, and are worth fewer than there are: see `effective_trials`.
    """
    share = outcomes.double().mean().item()
    trials = effective_trials(outcomes, groups)
    return wilson(share * trials, trials)


def effective_trials(outcomes: torch.Tensor, groups: Sequence[Any]) -> float:
    """How many independent outcomes tell as much as these, of which those of one group may depend on each other.

    The variance of a binomial share over the variance that the groups show, times the number of outcomes (Korn and
    Graubard, Survey Methodology 24, 1998), and never more than there are. Where all outcomes are equal no variance is
    seen, and a group counts as one.
    """
    values = outcomes.double()
    count = len(values)
    numbers = _numbered(groups)
    group_count = int(numbers.max().item()) + 1
    share = values.mean().item()
    if group_count == count:
        return float(count)
    if share in (0.0, 1.0) or group_count == 1:
        return float(group_count)

    variance = _variance_of_mean(values, numbers, group_count)
    if variance == 0.0:
        return float(count)
    return min(float(count), max(1.0, share * (1 - share) / variance))


def grouped_error(values: torch.Tensor, groups: Sequence[Any]) -> float | None:
    """The standard error of the mean of `values`, shape (n,), of which those of one group may depend on each other.

    With a group for each value it is the usual one; None where there is one group alone.
    """
    numbers = _numbered(groups)
    group_count = int(numbers.max().item()) + 1
    if group_count == 1:
        return None
    return math.sqrt(_variance_of_mean(values.double(), numbers, group_count))


def _variance_of_mean(values: torch.Tensor, numbers: torch.Tensor, group_count: int) -> float:
    """The variance of a mean from the sums of its deviations in each group, which are independent of each other."""
    deviations = values - values.mean()
    sums = torch.zeros(group_count, dtype=torch.float64).index_add(0, numbers, deviations)
    return group_count / (group_count - 1) * sums.square().sum().item() / len(values) ** 2


def _numbered(groups: Sequence[Any]) -> torch.Tensor:
    """The groups as numbers from 0, in the order in which they come."""
    known: dict[Any, int] = {}
    for group in groups:
        known.setdefault(group, len(known))
    return torch.tensor([known[group] for group in groups], dtype=torch.long)


class Part(NamedTuple):
    """A share that is one term of a weighted sum of shares."""

    weight: float
    outcomes: torch.Tensor  # shape (n,)
    groups: Sequence[Any]


def weighted_share(parts: Sequence[Part]) -> tuple[float, tuple[float, float]]:
    """(sum of weight times share, its 95 % interval), of shares that are measured on different pairs.

    The interval joins those of the shares by their distances from them, which keeps it in [0, 1] and right near its
    ends: MOVER, Zou and Donner, Statistics in Medicine 27 (2008).
    """
    value = below = above = 0.0
    for part in parts:
        share = part.outcomes.double().mean().item()
        low, high = share_interval(part.outcomes, part.groups)
        value += part.weight * share
        below += (part.weight * (share - low)) ** 2
        above += (part.weight * (high - share)) ** 2
    return value, (max(0.0, value - math.sqrt(below)), min(1.0, value + math.sqrt(above)))


def mean_and_error(name: str, values: torch.Tensor) -> dict[str, float]:
    """The mean of `values`, of shape (prompts, samples), and its standard error over prompts."""
    means = values.double().mean(dim=1)
    correction = 1 if len(means) > 1 else 0  # one prompt alone has an error of 0
    error = means.std(correction=correction) / math.sqrt(len(means))
    return {name: means.mean().item(), f"{name}_stderr": error.item()}


class Difference(NamedTuple):
    """The mean of first minus second over the same prompts or pairs, and its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], groups: Sequence[Any] | None = None
) -> Difference:
    """How much more the first is than the second, each measured on the same prompts or pairs, in the same order.

    What makes a prompt hard is hard for both, and cancels: the interval is of the differences, with Student's t. Pairs
    of one group, such as those of one prompt, may depend on each other; None: each is its own. One group alone tells
    nothing of the spread: its interval is not finite.
    """
    differences = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    value = differences.mean().item()
    group_of_each = range(len(differences)) if groups is None else groups
    error = grouped_error(differences, group_of_each)
    if error is None:
        return Difference(value, -math.inf, math.inf)
    half_width = students_t(len(set(group_of_each)) - 1) * error
    return Difference(value, value - half_width, value + half_width)


def students_t(freedom: int) -> float:
    """The 97.5 % point of Student's t distribution with so many degrees of freedom.

    Exact for 1 and 2; above, the expansion around the normal point (Abramowitz and Stegun, 26.7.5), within 0.6 %.
    """
    if freedom == 1:
        return 12.706205
    if freedom == 2:
        return 4.302653
    terms = [
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    ]
    return sum(term / freedom**power for power, term in enumerate(terms))

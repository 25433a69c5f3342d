"""How the policy ranks held-out pairs: ties, calibration, and what is left when length tells nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..losses.pair_logps import PairLogps
from .intervals import Part, weighted_share

BINS = 10  # of confidences from 0.5 to 1


def outcomes(pairs: PairLogps, start: PairLogps, same_start: bool) -> torch.Tensor:
    """1 for a pair that is ranked as labelled, 0 for one the other way round, 1/2 for a tie: float64 of shape (pairs,).

    Where the reference is the policy's start, h is 0 before training up to rounding: pairs that are no further from 0
    than the largest of that rounding are ties, before training and after.
    """
    tie = 0.0
    if same_start:
        tie = start.h.abs().max().item()
    is_tied = pairs.h.abs() <= tie
    return torch.where(is_tied, 0.5, (pairs.h > tie).double())


def calibration(pairs: PairLogps, beta: float, won: torch.Tensor) -> tuple[float, float, list[dict[str, Any]]]:
    """(expected calibration error, what chance alone would make of it, the reliability table).

    DPO's own model of preferences says that the side it ranks higher is the chosen one with probability
    sigmoid(beta |h|) (2305.18290, eq. 1 and 5), between 0.5 and 1. In each of ten bins of that confidence, the error is
    the distance of its mean from the share of pairs that are ranked as labelled; the expected calibration error is
    their mean, weighted by pairs (1706.04599, eq. 3). A policy that is right about its confidence still shows one, as
    shares of few pairs scatter: sum over bins of pairs / all * sqrt(2 / pi) * the standard error of the bin's share.
    """
    confidence = torch.sigmoid(beta * pairs.h.abs())
    edges = torch.linspace(0.5, 1.0, BINS + 1, dtype=torch.float64)
    places = torch.bucketize(confidence, edges[1:-1], right=True)

    error = by_chance = 0.0
    table = []
    for place in range(BINS):
        is_here = places == place
        count = int(is_here.sum())
        if not count:
            continue
        mean_confidence = confidence[is_here].mean().item()
        share = won[is_here].mean().item()
        variance = (confidence[is_here] * (1 - confidence[is_here])).mean().item() / count
        weight = count / len(confidence)
        error += weight * abs(share - mean_confidence)
        by_chance += weight * math.sqrt(2 / math.pi * variance)
        table.append({"confidence": mean_confidence, "ranked_as_labelled": share, "pairs": count})
    return error, by_chance, table


def length_controlled(
    pairs: PairLogps, won: torch.Tensor, groups: Sequence[Any]
) -> tuple[float, tuple[float, float]] | None:
    """(the accuracy where length tells nothing, its 95 % interval); None where one side is always the longer one.

    The accuracy among pairs whose chosen side is longer and among those whose rejected side is longer count the same,
    however many there are of each; pairs of equal lengths count by their number. To prefer the longer side always, or
    the shorter one, is then right in 50 % of the pairs with a longer side: direct standardisation, by strata.
    """
    longer = (pairs.chosen_tokens - pairs.rejected_tokens).sign()
    strata = {sign: (longer == sign).nonzero().flatten() for sign in (1, -1, 0)}
    if not len(strata[1]) or not len(strata[-1]):
        return None

    share_of_equal = len(strata[0]) / len(won)
    weights = {1: (1 - share_of_equal) / 2, -1: (1 - share_of_equal) / 2, 0: share_of_equal}
    parts = []
    for sign, numbers in strata.items():
        if len(numbers):
            of_stratum = [groups[number] for number in numbers.tolist()]
            parts.append(Part(weights[sign], won[numbers], of_stratum))
    return weighted_share(parts)

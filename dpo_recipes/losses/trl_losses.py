"""TRL's fifteen losses: all that is known of one stands in its row, and whatever asks about a loss reads it there.

Leans on TRL 1.16: the formulas of `DPOTrainer._compute_loss`, and what `DPOTrainer.__init__` refuses beside a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

LN2 = math.log(2)
SFT = "sft"  # the one of them that a field of its own adds to any other


class Usual(NamedTuple):
    """The values of a number that are not remarked on, wider than those published, and what is published, in words."""

    least: float
    most: float
    published: str


# Most losses are published with 0.01 to 0.1. The widest is DPO itself: 0.01 in Zephyr and SimPO, 5 in the DPO paper.
USUAL_BETA = Usual(0.005, 10, "0.01 to 5")


@dataclass(frozen=True, kw_only=True)
class TrlLoss:
    """One loss that TRL computes. A default is what holds for most of them; a row writes what is special to it."""

    name: str  # TRL's `loss_type`
    paper: str | None  # arXiv number
    # (beta, label_smoothing) -> the value where policy and reference agree, both log-ratios 0; None where it has none
    at_start: Callable[[float, float], float] | None
    reads: tuple[str, ...] = ()  # DPOConfig options that act in some of TRL's losses, and in this one
    takes_f_divergence: bool = False  # f_divergence_type: TRL refuses it beside a loss that does not take it
    takes_weighting: bool = True  # use_weighting, so too
    needs_label_smoothing: bool = False  # above 0, or its formula takes the logarithm of 0
    couples_pairs: bool = False  # a pair's loss depends on the other pairs of its micro-batch, which decides the maths
    compares: bool = True  # policy with reference, so that beta acts
    usual_beta: Usual = USUAL_BETA


# The values at the start, each a function of (beta, label_smoothing).


def _ln2(beta: float, label_smoothing: float) -> float:
    """-logsigmoid(0); where labels are smoothed, the two halves weigh 1 in all."""
    return LN2


def _two_ln2(beta: float, label_smoothing: float) -> float:
    return 2 * LN2


def _one(beta: float, label_smoothing: float) -> float:
    """relu(1 - 0), or sigmoid(0) + sigmoid(0)."""
    return 1.0


def _ipo(beta: float, label_smoothing: float) -> float:
    return 1 / (2 * beta) ** 2


def _exo(beta: float, label_smoothing: float) -> float:
    """The KL divergence of (1/2, 1/2) from (1 - e, e)."""
    return -LN2 - 0.5 * (math.log1p(-label_smoothing) + math.log(label_smoothing))


def _sppo(beta: float, label_smoothing: float) -> float:
    """Two squared errors of 1 / (2 beta)."""
    return 0.5 / beta**2


def _discopop(beta: float, label_smoothing: float) -> float:
    """Half of the logistic loss, ln 2, and half of the exponential one, 1, whatever discopop_tau is."""
    return 0.5 * LN2 + 0.5


_ROWS = (
    TrlLoss(
        name="sigmoid",
        paper="2305.18290",
        at_start=_ln2,
        takes_f_divergence=True,
    ),
    TrlLoss(
        name="hinge",
        paper="2305.10425",
        at_start=_one,
        takes_f_divergence=True,
    ),
    TrlLoss(
        name="ipo",  # of log-ratios per token
        paper="2310.12036",
        at_start=_ipo,
        takes_f_divergence=True,
    ),
    TrlLoss(
        name="exo_pair",
        paper="2402.00856",
        at_start=_exo,
        reads=("label_smoothing",),
        takes_f_divergence=True,
        needs_label_smoothing=True,
    ),
    TrlLoss(
        name="nca_pair",
        paper="2402.05369",
        at_start=_two_ln2,
    ),
    TrlLoss(
        name="robust",
        paper="2403.00409",
        at_start=_ln2,
        reads=("label_smoothing",),
        takes_f_divergence=True,
    ),
    TrlLoss(
        name="bco_pair",
        paper="2404.04656",
        at_start=_two_ln2,
    ),
    TrlLoss(
        name="sppo_hard",
        paper="2405.00675",
        at_start=_sppo,
        usual_beta=Usual(0.0005, 10, "0.001"),
    ),
    TrlLoss(
        name="aot",  # sorts the log-ratios of a micro-batch
        paper="2406.05882",
        at_start=_ln2,
        reads=("label_smoothing",),
        takes_weighting=False,
        couples_pairs=True,
    ),
    TrlLoss(
        name="aot_unpaired",
        paper="2406.05882",
        at_start=_ln2,
        reads=("label_smoothing",),
        takes_weighting=False,
        couples_pairs=True,
    ),
    TrlLoss(
        name="apo_zero",
        paper="2408.06266",
        at_start=_one,
    ),
    TrlLoss(
        name="apo_down",
        paper="2408.06266",
        at_start=_one,
    ),
    TrlLoss(
        name="discopop",
        paper="2406.08414",
        at_start=_discopop,
        reads=("discopop_tau",),
        takes_f_divergence=True,
    ),
    TrlLoss(
        name=SFT,  # the likelihood of the chosen side, averaged over the tokens of a micro-batch
        paper=None,
        at_start=None,  # as it does not compare
        takes_f_divergence=True,
        couples_pairs=True,
        compares=False,
    ),
    TrlLoss(
        name="sigmoid_norm",  # of log-ratios per token
        paper="2411.15124",  # length-normalised DPO, of Tulu 3
        at_start=_ln2,
        takes_f_divergence=True,
        usual_beta=Usual(0.5, 50, "5 in Tulu 3, and 2 to 10 in SimPO, whose margin is one per token too"),
    ),
)

# Name, as in a recipe and in TRL's `loss_type` -> all that is known of the loss.
TRL_LOSSES: dict[str, TrlLoss] = {loss.name: loss for loss in _ROWS}

# Names, for those who ask about several losses at once.
COUPLED_LOSSES = frozenset(loss.name for loss in _ROWS if loss.couples_pairs)
F_DIVERGENCE_LOSSES = frozenset(loss.name for loss in _ROWS if loss.takes_f_divergence)
UNWEIGHTED_LOSSES = frozenset(loss.name for loss in _ROWS if not loss.takes_weighting)
SMOOTHED_LOSSES = frozenset(loss.name for loss in _ROWS if loss.needs_label_smoothing)
LIKELIHOOD_LOSSES = frozenset(loss.name for loss in _ROWS if not loss.compares)


def readers_of(option: str) -> frozenset[str]:
    """The losses that read a DPOConfig option which acts in some of them; empty for any other option."""
    return frozenset(loss.name for loss in _ROWS if option in loss.reads)

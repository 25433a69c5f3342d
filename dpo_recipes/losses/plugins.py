"""Plugin losses: the losses that TRL lacks, pure functions of `PairLogps`, each with its equation and paper.

A recipe file may define its own: `loss(pairs, *, beta, **its_own_numbers) -> Tensor of shape (pairs,)`. torch is
imported inside the functions only, so that naming a loss does not pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .pair_logps import PairLogps

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[..., "Tensor"]


def cdpo(pairs: PairLogps, *, beta: float, label_smoothing: float = 0.1) -> Tensor:
    """Conservative DPO: -(1-e) logsigmoid(beta h) - e logsigmoid(-beta h), labels flipped with probability e.

    Mitchell, "A note on DPO with noisy preferences & relationship to IPO" (2023), eq. 3; e in [0, 0.5).
    TRL's `sigmoid` read `label_smoothing` so until 0.28 and ignores it since 0.29.
    """
    from torch.nn.functional import logsigmoid

    return -(1 - label_smoothing) * logsigmoid(beta * pairs.h) - label_smoothing * logsigmoid(-beta * pairs.h)


def ipo_sum(pairs: PairLogps, *, beta: float) -> Tensor:
    """IPO on summed log-ratios: (h - 1/(2 beta))^2. Azar et al. (2310.12036), eq. 17, with tau = beta.

    TRL's `ipo` divides each log-ratio by the completion length first, so a beta tuned for one is wrong for the other:
    here the target margin is 1/(2 beta) nats for the whole completion, there for each token.
    """
    return (pairs.h - 1 / (2 * beta)) ** 2


def reference_free(pairs: PairLogps, *, beta: float) -> Tensor:
    """-logsigmoid(beta (log pi(chosen) - log pi(rejected))): DPO with a uniform reference.

    The `reference_free` option of the DPO paper's own code (eric-mitchell/direct-preference-optimization,
    `preference_loss`), which TRL dropped. The reference is still read for the metrics, not for the loss.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (pairs.policy_chosen - pairs.policy_rejected))


# Name in a recipe -> the loss.
PLUGIN_LOSSES: dict[str, Loss] = {
    "cdpo": cdpo,
    "ipo_sum": ipo_sum,
    "reference_free": reference_free,
}


# The value where policy and reference agree, at h = 0. A loss of one's own declares it as its attribute `at_start`: a
# function of beta and the loss's own numbers. `reference_free` declares none, as its value there depends on the policy.


def _cdpo_at_start(beta: float, **numbers: Any) -> float:
    return math.log(2)


def _ipo_sum_at_start(beta: float, **numbers: Any) -> float:
    return 1 / (2 * beta) ** 2


def _declare(loss: Any, at_start: Callable[..., float]) -> None:
    loss.at_start = at_start


_declare(cdpo, at_start=_cdpo_at_start)
_declare(ipo_sum, at_start=_ipo_sum_at_start)

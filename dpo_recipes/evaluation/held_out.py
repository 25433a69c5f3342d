"""Held-out numbers with intervals, and the one table of metrics that every view of them reads."""

import math
from typing import Any

from ..losses.pair_logps import PairLogps

Numbers = dict[str, Any]
Z = 1.959964  # 95 %


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (1927); `successes` may be fractional, as a tie counts half."""
    p = successes / trials
    centre, scale = p + Z * Z / (2 * trials), 1 + Z * Z / trials
    spread = Z * math.sqrt(p * (1 - p) / trials + Z * Z / (4 * trials * trials))
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def held_out(metrics: Numbers, pairs: PairLogps, beta: float, start: PairLogps, same_start: bool = True) -> Numbers:
    """TRL's metrics over all held-out pairs, with a Wilson interval, standard errors and changes since `start`.

    Ties count half. Where the reference is the policy's start, h there is rounding, and pairs within its largest tie.
    """
    n, margins, noise = len(pairs.h), beta * pairs.h, start.h.abs().max() if same_start else 0.0
    wins = (pairs.h > noise).sum().item() + (pairs.h.abs() <= noise).sum().item() / 2
    found: Numbers = {
        "pairs": n, "loss": metrics["loss"],
        "rewards/accuracies": wins / n, "rewards/accuracies_interval": list(wilson(wins, n)),
        "rewards/margins": margins.mean().item(),
        "rewards/margins_stderr": margins.std().item() / math.sqrt(n) if n > 1 else None,
    }  # fmt: skip
    for side in ("chosen", "rejected"):
        policy, tokens = getattr(pairs, f"policy_{side}"), getattr(pairs, f"{side}_tokens")
        moved = policy.sum() - getattr(start, f"policy_{side}").sum()
        found[f"rewards/{side}"] = beta * getattr(pairs, f"{side}_logratios").mean().item()
        found[f"logps/{side}"] = policy.mean().item()
        found[f"logps/{side}_change_per_token"] = (moved / tokens.sum()).item()
    carried = ("logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "aux_loss")
    return found | {name: metrics[name] for name in carried if name in metrics}

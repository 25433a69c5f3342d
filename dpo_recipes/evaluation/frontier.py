"""The best reward that is possible at a KL."""

from __future__ import annotations

import math

import torch

from ..errors import RecipeError

# Ends of the search for log(1/b): there b is so large that rewards do not matter, and so small that only the highest
# reward does. Sixty halvings of it leave nothing that float64 could tell apart.
LOWEST, HIGHEST, HALVINGS = -30.0, 30.0, 60


def best_reward_at_kl(rewards: list[list[float]] | torch.Tensor, kl: float) -> float:
    """The highest expected reward that a policy can have within `kl` nats of the reference, averaged over prompts.

    `rewards`, of shape (prompts, samples), are those of the reference's own samples. The optimum of E[r] under a bound
    on the mean KL is pi* = pi_ref exp(r/b) / Z (2305.18290, eq. 4); its reward and KL follow from the samples with
    weights proportional to exp(r/b), and b is found by bisection so that the mean KL is `kl`. Biased downwards, as the
    value is concave in the sampled distribution. From n samples no KL above log(n) can be seen; beyond the mean of
    log(n / samples with the highest reward) the result is the mean highest reward.
    """
    sampled = torch.as_tensor(rewards, dtype=torch.float64)
    if not sampled.numel() or kl < 0:
        raise RecipeError(f"No best reward at kl={kl}: it takes a KL of 0 or more, and samples of each prompt.")

    low, high = LOWEST, HIGHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        _, kl_at_middle = _tilted(sampled, middle)
        if kl_at_middle < kl:
            low = middle
        else:
            high = middle
    best_reward, _ = _tilted(sampled, low)
    return best_reward


def _tilted(rewards: torch.Tensor, log_inverse: float) -> tuple[float, float]:
    """Mean reward and mean KL to the reference, in nats, of pi_ref exp(r/b) / Z, at log(1/b)."""
    log_p = (math.exp(log_inverse) * rewards).log_softmax(-1)  # of each sample, which the reference gives 1/n
    p = log_p.exp()
    mean_reward = (p * rewards).sum(-1).mean()
    mean_kl = (p * (log_p + math.log(rewards.shape[1]))).sum(-1).mean()
    return mean_reward.item(), mean_kl.item()

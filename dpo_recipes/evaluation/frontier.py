"""The best reward that is possible at a KL."""

import math

import torch

from ..errors import RecipeError


def best_reward_at_kl(rewards: list[list[float]] | torch.Tensor, kl: float) -> float:
    """The highest expected reward that a policy can have within `kl` nats of the reference, averaged over prompts.

    `rewards`, of shape (prompts, samples), are those of the reference's own samples. The optimum of E[r] under a bound
    on the mean KL is pi* = pi_ref exp(r/b) / Z (2305.18290, eq. 4); its reward and KL follow from the samples with
    weights proportional to exp(r/b), and b is found by bisection so that the mean KL is `kl`. Biased downwards, as the
    value is concave in the sampled distribution. From n samples no KL above log(n) can be seen; beyond the mean of
    log(n / samples with the highest reward) the result is the mean highest reward.
    """
    r = torch.as_tensor(rewards, dtype=torch.float64)
    if not r.numel() or kl < 0:
        raise RecipeError(f"No best reward at kl={kl}: it takes a KL of 0 or more, and samples of each prompt.")

    def tilted(log_inverse: float) -> torch.Tensor:
        """Mean reward and mean KL of pi_ref exp(r/b) / Z, at log(1/b)."""
        log_p = (math.exp(log_inverse) * r).log_softmax(-1)
        return (log_p.exp() * torch.stack([r, log_p + math.log(r.shape[1])])).sum(-1).mean(-1)

    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tilted(middle)[1] < kl else (low, middle)
    return tilted(low)[0].item()

"""The best reward at a KL where it is known in closed form, and at its ends."""

import math
import random

import pytest

from dpo_recipes.errors import RecipeError
from dpo_recipes.evaluation.frontier import best_reward_at_kl


def kl_of_a_bent_coin(p: float) -> float:
    """Nats between a coin that shows heads with probability p and a fair one."""
    return math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("p", [0.5, 0.75, 0.95])
def test_best_reward_of_a_coin_at_the_kl_of_a_bent_coin(p):
    # Rewards 0 and 1, half each: being right with probability p has reward p and this KL, and nothing does better.
    rewards = [[0.0, 1.0] * 6] * 3
    assert best_reward_at_kl(rewards, kl_of_a_bent_coin(p)) == pytest.approx(p, abs=1e-6)


def test_best_reward_spends_one_budget_over_all_prompts():
    # A prompt whose rewards are all equal cannot use its share; the mean KL over both prompts is what is bounded.
    p = 0.9
    mean_kl = (kl_of_a_bent_coin(p) + 0.0) / 2
    assert best_reward_at_kl([[0.0, 1.0], [0.3, 0.3]], mean_kl) == pytest.approx((p + 0.3) / 2, abs=1e-6)


def test_best_reward_recovers_the_gaussian_law():
    # For r ~ N(0, 1), exp(r / b) tilts to N(1/b, 1): reward 1/b at KL 1 / 2b^2, that is sqrt(2 KL).
    draw = random.Random(0)
    rewards = []
    for _ in range(10):
        rewards.append([draw.gauss(0, 1) for _ in range(4000)])
    for kl in (0.02, 0.125, 0.5):
        assert best_reward_at_kl(rewards, kl) == pytest.approx(math.sqrt(2 * kl), rel=0.03)


def test_best_reward_ends_and_edges():
    rewards = [[0.0, 1.0, 5.0], [2.0, 2.0, -4.0]]
    mean, mean_of_the_highest = 1.0, 3.5
    assert best_reward_at_kl(rewards, 0.0) == pytest.approx(mean, abs=1e-6)
    assert best_reward_at_kl(rewards, 100.0) == mean_of_the_highest
    at_growing_kl = [best_reward_at_kl(rewards, k / 20) for k in range(20)]
    assert at_growing_kl == sorted(at_growing_kl) and at_growing_kl[-1] <= mean_of_the_highest
    assert best_reward_at_kl([[1000.0, -1000.0]], 0.3) > 0  # no overflow


def test_a_best_reward_needs_samples_and_a_kl_of_0_or_more():
    for empty in ([], [[]]):
        with pytest.raises(RecipeError):
            best_reward_at_kl(empty, 0.1)
    with pytest.raises(RecipeError, match="kl=-1"):
        best_reward_at_kl([[0.0, 1.0]], -1)

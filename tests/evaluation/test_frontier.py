"""The best reward at a KL where it is known in closed form, and at its ends."""

import math
import random

import pytest

from dpo_recipes.errors import RecipeError
from dpo_recipes.evaluation.frontier import best_reward_at_kl


@pytest.mark.parametrize("p", [0.5, 0.75, 0.95])
def test_best_reward_of_a_coin_at_the_kl_of_a_bent_coin(p):
    # Rewards 0 and 1, half each: being right with probability p has reward p and this KL, and nothing does better.
    kl = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert best_reward_at_kl([[0.0, 1.0] * 6] * 3, kl) == pytest.approx(p, abs=1e-6)


def test_best_reward_spends_one_budget_over_all_prompts():
    # A prompt whose rewards are all equal cannot use its share; the mean KL over both prompts is what is bounded.
    p = 0.9
    kl = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert best_reward_at_kl([[0.0, 1.0], [0.3, 0.3]], kl / 2) == pytest.approx((p + 0.3) / 2, abs=1e-6)


def test_best_reward_recovers_the_gaussian_law():
    # For r ~ N(0, 1), exp(r / b) tilts to N(1/b, 1): reward 1/b at KL 1 / 2b^2, that is sqrt(2 KL).
    draw = random.Random(0)
    rewards = [[draw.gauss(0, 1) for _ in range(4000)] for _ in range(10)]
    for kl in (0.02, 0.125, 0.5):
        assert best_reward_at_kl(rewards, kl) == pytest.approx(math.sqrt(2 * kl), rel=0.03)


def test_best_reward_ends_and_edges():
    rows = [[0.0, 1.0, 5.0], [2.0, 2.0, -4.0]]
    assert best_reward_at_kl(rows, 0.0) == pytest.approx(1.0, abs=1e-6)
    assert best_reward_at_kl(rows, 100.0) == 3.5
    grid = [best_reward_at_kl(rows, k / 20) for k in range(20)]
    assert grid == sorted(grid) and grid[-1] <= 3.5
    assert best_reward_at_kl([[1000.0, -1000.0]], 0.3) > 0  # no overflow
    for wrong in ([], [[]]):
        with pytest.raises(RecipeError):
            best_reward_at_kl(wrong, 0.1)
    with pytest.raises(RecipeError, match="kl=-1"):
        best_reward_at_kl(rows, -1)

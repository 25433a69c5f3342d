"""Intervals against published values, and by simulation: about 95 of 100 hold what is true."""

from __future__ import annotations

import math

import pytest
import torch

from dpo_recipes.evaluation.intervals import (
    Part,
    effective_trials,
    grouped_error,
    mean_and_error,
    paired_difference,
    share_interval,
    students_t,
    weighted_share,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(successes, trials, low, high):
    assert wilson(successes, trials) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("successes", "trials"), [(0.5, 1), (7.5, 10), (12.5, 64), (63.5, 64)])
def test_wilsons_ends_are_where_the_score_test_is_at_its_limit_with_ties_as_halves(successes, trials):
    p = successes / trials
    low, high = wilson(successes, trials)
    assert 0 < low < p < high < 1
    for end in (low, high):
        assert (p - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / trials, rel=1e-9)
    mirrored = wilson(trials - successes, trials)
    assert (1 - mirrored[1], 1 - mirrored[0]) == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))


@pytest.mark.parametrize("trials", [1, 2, 7, 1000, 10**6])
def test_no_interval_leaves_0_to_1(trials):
    low, high = wilson(0, trials)
    assert 0.0 <= low < 1e-12 < high < 1.0
    low, high = wilson(trials, trials)
    assert 0.0 < low < 1 - 1e-12 < high <= 1.0


@pytest.mark.parametrize(
    ("freedom", "point"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423)],
)
def test_students_t_has_the_published_points(freedom, point):
    assert students_t(freedom) == pytest.approx(point, rel=6e-3)


def test_a_difference_on_the_same_prompts_does_not_count_what_both_find_hard():
    first, second = [1.0, 5.0, 9.5, 2.5], [0.0, 4.5, 8.0, 2.0]  # differences 1, 0.5, 1.5, 0.5
    difference = paired_difference(first, second)
    error = math.sqrt(sum((d - 0.875) ** 2 for d in (1, 0.5, 1.5, 0.5)) / 3 / 4)
    assert difference.value == pytest.approx(0.875)
    assert difference.high - difference.value == pytest.approx(3.1824 * error, rel=6e-3)
    assert difference.low > 0  # while the spread of each alone would leave nothing to be seen
    assert paired_difference([1.0], [0.5]) == (0.5, -math.inf, math.inf)


def test_one_prompt_has_an_error_of_nothing_and_one_group_none():
    assert mean_and_error("x", torch.tensor([[1.0, 3.0]])) == {"x": 2.0, "x_stderr": 0.0}
    assert grouped_error(torch.tensor([1.0, 2.0]), ["p", "p"]) is None


def test_groups_of_one_are_the_usual_error_and_interval():
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=draw, dtype=torch.float64)
    assert grouped_error(values, range(50)) == pytest.approx(values.std().item() / math.sqrt(50), rel=1e-12)
    won = (values > 0).double()
    assert share_interval(won, range(50)) == wilson(won.sum().item(), 50)


def test_copies_of_an_outcome_tell_nothing_new():
    won = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    copies, groups = won.repeat_interleave(5), torch.arange(8).repeat_interleave(5).tolist()
    assert effective_trials(copies, groups) == pytest.approx(7.0)  # n - 1, as the variance is estimated
    assert effective_trials(torch.ones(40), groups) == 8.0
    assert effective_trials(torch.ones(40), [0] * 40) == 1.0


# ----------------------------------------------------------------------------------------- by simulation, 95 of 100

REPEATS = 600
# Of 600 intervals that hold the truth with probability 0.95, fewer than 552 or more than 585 do once in 1,000 times.
ENOUGH, TOO_MANY = 0.92, 0.985


def coverage(interval_of, truth: float, seed: int) -> float:
    """How often an interval of simulated outcomes holds the truth."""
    draw = torch.Generator().manual_seed(seed)
    held = 0
    for _ in range(REPEATS):
        low, high = interval_of(draw)
        held += low <= truth <= high
    return held / REPEATS


@pytest.mark.parametrize("truth", [0.5, 0.7, 0.9])
def test_the_interval_of_a_share_holds_it_in_95_of_100(truth):
    def interval_of(draw):
        return share_interval((torch.rand(100, generator=draw) < truth).double(), range(100))

    assert ENOUGH <= coverage(interval_of, truth, seed=1) <= TOO_MANY


@pytest.mark.parametrize("truth", [0.6, 0.85])
def test_so_does_that_of_pairs_of_which_four_have_one_prompt(truth):
    """Each prompt has a difficulty of its own: what Wilson's interval on all pairs does not know."""
    groups = torch.arange(80).repeat_interleave(4).tolist()
    naive = 0.0

    def drawn(draw):
        # Beta(a, b) of mean `truth` and a + b = 1.5, by way of two gamma variables
        concentration = torch.tensor([1.5 * truth, 1.5 * (1 - truth)])
        gamma = torch._standard_gamma(concentration.repeat(80, 1), generator=draw)
        difficulty = (gamma[:, 0] / gamma.sum(dim=1)).repeat_interleave(4)
        return (torch.rand(320, generator=draw) < difficulty).double()

    def interval_of(draw):
        return share_interval(drawn(draw), groups)

    def naive_interval_of(draw):
        return wilson(drawn(draw).sum().item(), 320)

    assert ENOUGH <= coverage(interval_of, truth, seed=2) <= TOO_MANY
    naive = coverage(naive_interval_of, truth, seed=2)
    assert naive < 0.9


def test_so_does_that_of_a_weighted_sum_of_shares():
    truth = 0.5 * 0.95 + 0.5 * 0.4

    def interval_of(draw):
        many = (torch.rand(90, generator=draw) < 0.95).double()
        few = (torch.rand(25, generator=draw) < 0.4).double()
        return weighted_share([Part(0.5, many, range(90)), Part(0.5, few, range(25))])[1]

    assert ENOUGH <= coverage(interval_of, truth, seed=3) <= TOO_MANY


@pytest.mark.parametrize("count", [6, 64])
def test_so_does_that_of_a_difference_on_the_same_prompts(count):
    def interval_of(draw):
        hard = 5 * torch.randn(count, generator=draw)
        first = hard + 0.3 + torch.randn(count, generator=draw)
        second = hard + torch.randn(count, generator=draw)
        return paired_difference(first.tolist(), second.tolist())[1:]

    assert ENOUGH <= coverage(interval_of, 0.3, seed=4) <= TOO_MANY

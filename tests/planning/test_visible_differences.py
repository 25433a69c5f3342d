"""What an evaluation can show: the formulae against draws, and against published tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_recipes.planning.visible_differences import (
    Z_LEVEL,
    needed_paired,
    needed_unpaired,
    visible,
    visible_paired,
    visible_unpaired,
)

DRAWS = 4000
POWER = 0.80
# Three standard errors of a share of so many draws, and the rounding of a normal approximation to whole pairs.
MARGIN = 3 * math.sqrt(POWER * (1 - POWER) / DRAWS) + 0.015


@pytest.mark.parametrize("count", [100, 320, 2000])
def test_the_stated_gap_between_two_evaluations_is_seen_in_80_of_100_draws(count):
    draws = np.random.default_rng(count)
    gap = visible_unpaired(count)
    first = draws.binomial(count, 0.5, DRAWS) / count
    second = draws.binomial(count, 0.5 + gap, DRAWS) / count
    pooled = (first + second) / 2
    error = np.sqrt(2 * pooled * (1 - pooled) / count)
    assert (np.abs(second - first) > Z_LEVEL * error).mean() == pytest.approx(POWER, abs=MARGIN)


@pytest.mark.parametrize("count", [320, 1000, 4000])  # of 100 only some twenty change: a coarse count
def test_the_stated_gap_on_the_same_pairs_is_seen_in_80_of_100_draws(count):
    """McNemar's test: of the pairs that come out differently, how many better and how many worse."""
    draws = np.random.default_rng(count)
    changing = 0.2
    gap = visible_paired(count, changing)
    better_share, worse_share = (changing + gap) / 2, (changing - gap) / 2
    outcomes = draws.multinomial(count, [better_share, worse_share, 1 - changing], DRAWS)
    better, worse = outcomes[:, 0], outcomes[:, 1]
    seen = np.abs(better - worse) > Z_LEVEL * np.sqrt(better + worse)
    assert seen.mean() == pytest.approx(POWER, abs=MARGIN)


def test_no_gap_is_seen_in_5_of_100_draws():
    draws = np.random.default_rng(0)
    first, second = draws.binomial(500, 0.5, (2, DRAWS)) / 500
    pooled = (first + second) / 2
    seen = np.abs(second - first) > Z_LEVEL * np.sqrt(2 * pooled * (1 - pooled) / 500)
    assert seen.mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / DRAWS) + 0.005)


def test_numbers_that_textbooks_give():
    """Fleiss, table A.4: 0.50 against 0.60 needs 388 a side without continuity correction."""
    assert needed_unpaired(0.10) == pytest.approx(388, abs=1)
    assert needed_paired(0.02) == 3923 and needed_unpaired(0.02) == 9806


def test_more_pairs_show_less_and_few_show_nothing():
    assert visible_unpaired(2000) < visible_unpaired(320) < visible_unpaired(100)
    assert visible_paired(320) < visible_unpaired(320)
    assert visible_paired(20) is None and visible_unpaired(2) is None
    for count in (100, 320, 2000):  # one more pair than is needed, and one less
        assert needed_unpaired(visible_unpaired(count)) <= count < needed_unpaired(0.99 * visible_unpaired(count))
    assert visible(3923)["paired"] == pytest.approx(0.02, abs=1e-4)

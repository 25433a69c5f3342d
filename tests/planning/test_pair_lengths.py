"""The length of a pair, whole and cut."""

from __future__ import annotations

from dpo_recipes.planning.pair_lengths import PairLength


def test_a_pair_is_cut_as_training_cuts_it():
    pair = PairLength(prompt=10, chosen=20, rejected=5)
    assert (pair.longer_row, pair.read_once) == (30, 35)
    assert pair.cut(None) == pair.cut(30) == pair
    assert pair.cut(12) == PairLength(10, 2, 2) and pair.cut(8) == PairLength(8, 0, 0)

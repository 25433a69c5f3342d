"""The flat row: where every token of a batch goes, and what a stretch of it sees."""

from __future__ import annotations

import torch
from reading_pairs import batch

from dpo_recipes.shared_prefix.layout import Row, Stretch


def test_the_row_holds_each_token_once_and_sends_every_target_home():
    row = Row.of(**batch(([1, 2, 3], [4, 5], [4, 6, 7]), ([8], [9], [9, 9])))
    assert row.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5, 0, 1, 2]]
    assert [tuple(s) for s in row.stretches] == [(0, 5, 0, 0), (5, 7, 0, 4), (7, 9, 7, 0), (9, 10, 7, 2)]
    assert row.predictors.tolist() == [2, 3, 7, 2, 3, 5, 7, 8]
    assert row.targets.tolist() == [[4, 5, 9, 4, 6, 7, 9, 9]]
    places, queries, keys, *most = row.ragged
    assert places.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 6, 7, 8, 7, 8, 9]
    assert (queries.tolist(), keys.tolist(), most) == ([0, 5, 7, 9, 10], [0, 5, 11, 13, 16], [5, 6])


def test_the_pair_of_the_docstring_is_laid_out_as_it_says():
    row = Row.of(**batch(([1, 2, 3], [4, 5], [4, 6, 7])))
    assert row.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5]]
    assert row.stretches == [Stretch(0, 5, prefix=0, shared=0), Stretch(5, 7, prefix=0, shared=4)]
    assert row.targets.tolist() == [[4, 5, 4, 6, 7]]
    assert row.predictors.tolist() == [2, 3, 2, 3, 5]
    assert (row.tokens.numel(), row.padded_tokens) == (7, 12)


def test_a_mask_shows_a_query_its_prefix_its_window_and_nothing_ahead():
    row = Row.of(**batch(([1, 2, 3], [4, 5], [4, 6, 7])))
    chosen, rejected = row.stretches
    device = torch.device("cpu")
    assert row.mask(chosen, None, device) is None  # plain causal attention does it
    assert row.mask(chosen, 5, device) is None  # the window is as long as the stretch
    assert row.mask(rejected, None, device).int().tolist() == [[[[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]]]
    assert row.mask(rejected, 3, device).int().tolist() == [[[[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]]]
    assert row.mask(rejected, 3, device) is row.mask(rejected, 3, device)

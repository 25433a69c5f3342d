"""The flat row: where every token of a batch goes, and what a stretch of it sees."""

from __future__ import annotations

import torch
from reading_pairs import batch

from dpo_recipes.shared_prefix.layout import Row, Stretch


def test_the_row_holds_each_token_once_and_sends_every_target_home():
    row = Row.of(**batch(([1, 2, 3], [4, 5], [4, 6, 7]), ([8], [9], [9, 9])))
    assert row.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5, 0, 1, 2]]
    assert [tuple(s) for s in row.whole.stretches] == [(0, 5, 0, 0), (5, 7, 0, 4), (7, 9, 7, 0), (9, 10, 7, 2)]
    assert row.predictors.tolist() == [2, 3, 7, 2, 3, 5, 7, 8]
    assert row.targets.tolist() == [[4, 5, 9, 4, 6, 7, 9, 9]]
    places, queries, keys, *most = row.whole.ragged(row.tokens.device)
    assert places.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 6, 7, 8, 7, 8, 9]
    assert (queries.tolist(), keys.tolist(), most) == ([0, 5, 7, 9, 10], [0, 5, 11, 13, 16], [5, 6])


def test_the_pair_of_the_docstring_is_laid_out_as_it_says():
    row = Row.of(**batch(([1, 2, 3], [4, 5], [4, 6, 7])))
    assert row.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5]]
    assert row.whole.stretches == [Stretch(0, 5, prefix=0, shared=0), Stretch(5, 7, prefix=0, shared=4)]
    assert row.targets.tolist() == [[4, 5, 4, 6, 7]]
    assert row.predictors.tolist() == [2, 3, 2, 3, 5]
    assert (row.tokens.numel(), row.padded_tokens) == (7, 12)
    assert row.ending.stretches == [Stretch(2, 5, prefix=0, shared=2), Stretch(5, 7, prefix=0, shared=4)]
    assert row.ending.places().tolist() == [2, 3, 4, 5, 6]


def test_behind_the_last_layer_only_predictors_and_what_follows_them_are_read():
    """Each pair's own case: rejected predicts first, within the prefix; chosen is not scored; nothing is."""
    given = batch(([1, 2, 3], [4, 5], [4, 6, 7]), ([8, 8], [9, 9], [9, 5]), ([7, 7], [6], [5]))
    labels = given["labels"]
    labels[0, :4] = -100  # chosen of the first pair: its 4 is not scored, which rejected has, too
    labels[1] = -100
    labels[2] = labels[5] = -100
    row = Row.of(**given)
    first, rejected, chosen, *others = row.ending.stretches
    assert (first, rejected) == (Stretch(2, 5, prefix=0, shared=2), Stretch(5, 7, prefix=0, shared=4))
    assert chosen == Stretch(8, 11, prefix=7, shared=1)  # from where rejected's 9 is predicted
    assert others == [Stretch(11, 12, prefix=7, shared=3), Stretch(15, 16, prefix=12, shared=2)]
    assert set(row.predictors.tolist()) <= set(row.ending.places().tolist())
    picked = torch.randn(1, row.ending.places().numel(), 3)
    spread = row.spread(picked, dim=1)
    assert spread.shape == (1, row.tokens.numel(), 3) and torch.equal(row.pick(spread, dim=1), picked)
    assert spread.count_nonzero() == picked.count_nonzero()


def test_in_round_numbers_a_row_ends_with_filler_that_nobody_sees_or_reads():
    given = batch(([1] * 20, [4, 5], [4, 6, 7]), ([8], [9], [9, 9]))
    plain, row = Row.of(**given), Row.of(**given, in_round_numbers=True)
    assert (plain.tokens.numel(), row.tokens.numel()) == (27, 32)
    assert torch.equal(row.tokens[:, :27], plain.tokens) and torch.equal(row.positions[:, :27], plain.positions)
    assert set(row.tokens[0, 27:].tolist()) == {1} and set(row.positions[0, 27:].tolist()) == {0}
    filler = Stretch(27, 32, prefix=27, shared=0)
    assert row.whole.stretches == [*plain.whole.stretches, filler]
    for name in ("predictors", "targets", "scored", "place"):
        assert torch.equal(getattr(row, name), getattr(plain, name)), name


def test_an_ending_is_made_round_by_the_filler_and_then_by_prompts():
    given = batch(([1] * 60, [4, 5], [6, 7]), ([8] * 20, [9], [3, 9]))
    plain, row = Row.of(**given), Row.of(**given, in_round_numbers=True)
    assert (plain.tokens.numel(), row.tokens.numel()) == (87, 96)
    # The last token of each prompt and what follows: 1 + 2 + 2 and 1 + 1 + 2.
    assert plain.ending_places.tolist() == [59, 60, 61, 62, 63, 83, 84, 85, 86]
    # 23 more: all of the filler, and the end of the first prompt.
    assert row.ending_places.tolist() == [*range(45, 64), *range(83, 87), *range(87, 96)]
    first = Stretch(45, 62, prefix=0, shared=45)
    assert row.ending.stretches == [first, *plain.ending.stretches[1:], Stretch(87, 96, prefix=87, shared=0)]


def test_an_ending_that_needs_them_takes_tokens_of_several_prompts():
    given = batch(([1] * 12, [4], [6]), ([8] * 12, [9], [3]), ([2] * 8, [9], [3]))
    plain, row = Row.of(**given), Row.of(**given, in_round_numbers=True)
    assert (plain.tokens.numel(), row.tokens.numel()) == (38, 64)
    assert plain.ending_places.numel() == 9 and row.ending_places.numel() == 32
    given = batch(([1] * 12, [4], [6]), ([8] * 12, [9], [3]), ([2], [9], [3]))
    plain, row = Row.of(**given), Row.of(**given, in_round_numbers=True)
    assert (plain.tokens.numel(), row.tokens.numel()) == (31, 32)
    assert plain.ending_places.numel() == 9 and row.ending_places.tolist() == list(range(32))


def test_a_mask_shows_a_query_its_prefix_its_window_and_nothing_ahead():
    row = Row.of(**batch(([1, 2, 3], [4, 5], [4, 6, 7])))
    chosen, rejected = row.whole.stretches
    scores = torch.zeros(1, dtype=torch.float64)
    assert row.mask(chosen, None, scores) is None  # plain causal attention does it
    assert row.mask(chosen, 5, scores) is None  # the window is as long as the stretch

    def seen(window: int | None) -> list:
        mask = row.mask(rejected, window, scores)
        assert mask.dtype == scores.dtype and set(mask.unique().tolist()) == {torch.finfo(mask.dtype).min, 0}
        return (mask == 0).int().tolist()

    assert seen(None) == [[[[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]]]
    assert seen(3) == [[[[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]]]
    assert row.mask(rejected, 3, scores) is row.mask(rejected, 3, scores)

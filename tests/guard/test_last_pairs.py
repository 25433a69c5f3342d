"""The last pairs, against the same numbers computed from all of them."""

from __future__ import annotations

import pytest
import torch
from making import make_random_pair_logps

from dpo_recipes.guard.last_pairs import WINDOW, LastPairs

BETA = 0.3


def fill(pairs, *, batch: int, changes_are_known: bool = True) -> LastPairs:
    last = LastPairs(BETA, changes_are_known=changes_are_known)
    wins = (pairs.h > 0).float()
    for start in range(0, len(wins), batch):
        part = pairs.map(lambda column, start=start: column[start : start + batch])
        last.add(LastPairs.rows(wins[start : start + batch], part))
    return last


@pytest.mark.parametrize("batch", [1, 16, 300])
def test_the_numbers_are_those_of_the_last_pairs_however_they_are_batched(batch):
    pairs = make_random_pair_logps(n=600)
    numbers = fill(pairs, batch=batch).numbers()
    last = pairs.map(lambda column: column[-WINDOW:].double())

    assert numbers["window/pairs"] == WINDOW
    assert numbers["window/accuracies"] == pytest.approx((last.h > 0).double().mean().item())
    assert numbers["window/margins"] == pytest.approx(BETA * last.h.mean().item(), rel=1e-5)
    for side in ("chosen", "rejected"):
        logratios, tokens = getattr(last, f"{side}_logratios"), getattr(last, f"{side}_tokens")
        change = (logratios.sum() / tokens.sum()).item()
        assert numbers[f"window/{side}_change_per_token"] == pytest.approx(change, rel=1e-4, abs=1e-6)


def test_pairs_are_split_by_which_side_is_longer_and_equal_ones_are_in_neither():
    pairs = make_random_pair_logps(n=900)
    pairs.rejected_tokens[::3] = pairs.chosen_tokens[::3]
    numbers = fill(pairs, batch=30).numbers()

    for name, longer in (("chosen_longer", 1), ("chosen_shorter", -1)):
        is_so = (pairs.chosen_tokens - pairs.rejected_tokens).sign() == longer
        wins = (pairs.h[is_so] > 0).double()[-WINDOW:]
        assert numbers[f"window/pairs_{name}"] == len(wins) > 100
        assert numbers[f"window/accuracies_{name}"] == pytest.approx(wins.mean().item())


def test_no_pair_has_no_numbers_and_no_pair_of_a_kind_has_none_of_that_kind():
    assert LastPairs(BETA, changes_are_known=True).numbers() == {}
    pairs = make_random_pair_logps(n=10)
    longer = pairs.map(torch.clone)
    longer.chosen_tokens[:] = longer.rejected_tokens + 1
    assert "window/accuracies_chosen_shorter" not in fill(longer, batch=10).numbers()


def test_where_the_reference_is_another_model_a_log_ratio_is_no_change_since_the_start():
    numbers = fill(make_random_pair_logps(n=20), batch=4, changes_are_known=False).numbers()
    assert "window/accuracies" in numbers and not [name for name in numbers if "change" in name]

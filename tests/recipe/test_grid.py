"""Every combination of the values of a command line, and what is no grid."""

from __future__ import annotations

import pytest

from dpo_recipes.errors import UsageError
from dpo_recipes.recipe.grid import grid


def test_every_combination_once_the_last_key_first():
    assert grid(["beta=0.1,0.5", "loss=sigmoid, ipo", "max_length=64"]) == [
        ["beta=0.1", "loss=sigmoid", "max_length=64"],
        ["beta=0.1", "loss=ipo", "max_length=64"],
        ["beta=0.5", "loss=sigmoid", "max_length=64"],
        ["beta=0.5", "loss=ipo", "max_length=64"],
    ]


def test_commas_in_brackets_and_quotes_part_nothing():
    assert grid(["loss={sigmoid: 1, sft: 0.1},ipo", "data.allow=[border,truncated]", "trl.run_name='a,b',c"]) == [
        ["loss={sigmoid: 1, sft: 0.1}", "data.allow=[border,truncated]", "trl.run_name='a,b'"],
        ["loss={sigmoid: 1, sft: 0.1}", "data.allow=[border,truncated]", "trl.run_name=c"],
        ["loss=ipo", "data.allow=[border,truncated]", "trl.run_name='a,b'"],
        ["loss=ipo", "data.allow=[border,truncated]", "trl.run_name=c"],
    ]


def test_seeds_count_from_0_within_each_combination():
    assert grid(["beta=0.1,0.5"], seeds=2) == [
        ["beta=0.1", "seed=0"],
        ["beta=0.1", "seed=1"],
        ["beta=0.5", "seed=0"],
        ["beta=0.5", "seed=1"],
    ]
    assert grid([], seeds=3) == [["seed=0"], ["seed=1"], ["seed=2"]]


@pytest.mark.parametrize(
    ("assignments", "seeds", "words"),
    [
        (["beta=0.1"], None, "Nothing is swept"),
        ([], None, "Nothing is swept"),
        (["beta=0.1,,0.5"], None, "is no KEY=VALUE,VALUE"),
        (["beta"], None, "is no KEY=VALUE,VALUE"),
        (["beta=0.1,0.1"], None, "has 0.1 twice"),
        (["seed=1,2"], 2, "keep one of the two"),
        ([f"beta={','.join(map(str, range(1, 102)))}", "max_length=1,2,3,4,5,6,7,8,9,10"], None, "1,010 runs"),
    ],
)
def test_what_is_no_grid_is_refused(assignments, seeds, words):
    with pytest.raises(UsageError, match=words):
        grid(assignments, seeds)

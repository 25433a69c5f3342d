"""Real steps: on which pairs, and what is measured; what `check` says of them is tested there."""

from __future__ import annotations

import pytest
from making import make_pairs, write_splits
from rich.console import Console

from dpo_recipes import LoRA, Recipe
from dpo_recipes.planning import trial_steps
from dpo_recipes.planning.trial_steps import TIMED, try_steps
from dpo_recipes.training.session import Session

PAIRS_A_STEP = 2


@pytest.fixture
def session(tiny, tmp_path) -> Session:
    """Of 12 pairs to train on, no two as long, and 6 to evaluate with."""
    splits = []
    for split, count in (("train", 12), ("eval", 6)):
        rows = make_pairs(count, seed=count)
        for number, row in enumerate(rows):
            row["prompt"][0]["content"] = f"{split} {number} " + "word " * (5 * number % count)
        splits.append(rows)
    recipe = Recipe(
        model=str(tiny()),
        data=write_splits(tmp_path, *splits),
        adapter=LoRA(r=4),
        global_batch_size=PAIRS_A_STEP,
        max_length=256,
        pair_sharing="off",  # by which the length of a pair is that of its longer side
        trl={"per_device_eval_batch_size": 3},
    )
    session = Session(recipe, Console(quiet=True))
    session.read_pairs()
    return session


def test_the_longest_pairs_come_first_and_then_pairs_as_they_come(session):
    lengths = list(session.train["length"])
    few = trial_steps._on_the_longest_pairs(session)
    longest = sorted(lengths, reverse=True)[:PAIRS_A_STEP]
    assert list(few.train["length"]) == longest + lengths[: TIMED * PAIRS_A_STEP]
    assert list(few.eval["length"]) == sorted(session.eval["length"], reverse=True)[:3]
    assert list(session.train["length"]) == lengths and len(session.eval) == 6  # the session is as it was


@pytest.mark.slow
def test_a_trial_tells_what_steps_take_and_that_policy_and_reference_agreed(session):
    trial = try_steps(session)
    assert trial.peak > 100_000 and 0 < trial.seconds_per_step < 60
    assert trial.same_start and trial.known_loss

"""Whether both trainers of a comparison fit: what nobody has set is lowered, what somebody has set is judged."""

from __future__ import annotations

import io

import pytest
from making import make_pairs, write_splits
from rich.console import Console

from dpo_recipes import LoRA, Recipe, RecipeError
from dpo_recipes.planning import both_trainers, memory
from dpo_recipes.planning.both_trainers import fit_both
from dpo_recipes.planning.chosen_settings import BELIEVED, MICRO_BATCH, take
from dpo_recipes.planning.stored_lengths import pair_lengths
from dpo_recipes.recipe.choices import Choice
from dpo_recipes.training.session import Session

PAIRS_A_STEP = 8


@pytest.fixture
def made(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 0)  # what the tests hold before is no part of a plan

    def build(**given):
        recipe = Recipe(
            model=str(tiny()),
            data=write_splits(tmp_path, make_pairs(16), make_pairs(4)),
            adapter=LoRA(r=4),
            global_batch_size=PAIRS_A_STEP,
            max_length=96,
            trl={"gradient_checkpointing": False},
            **given,
        )
        session = Session(recipe, Console(file=io.StringIO(), width=200))
        session.read_pairs()
        session.check_model()
        take(session, [] if given else [Choice(MICRO_BATCH, PAIRS_A_STEP, "tried")])
        return session

    return build


def peak(session, size, gradients_kept=0):
    return both_trainers._peak(session, of_trl(session), longest(session), gradients_kept, size)


def longest(session):
    lengths = pair_lengths([session.train], session.recipe.max_length)
    return lengths.most(lengths.longer_rows, 1)


def of_trl(session):
    return session.recipe.evolve(pair_sharing="off")


def fit(session, monkeypatch, of_memory):
    monkeypatch.setattr(both_trainers, "device_memory", lambda kind: of_memory)
    return fit_both(session, of_trl(session), session.train, gradients_kept=0)


def said(session):
    return " ".join(session.console.file.getvalue().split())


@pytest.mark.slow
def test_with_room_for_both_nothing_changes_and_nothing_is_said(made, monkeypatch):
    session = made()
    before = session.recipe
    assert fit(session, monkeypatch, 10**12) is None
    assert session.recipe is before and session.settings.micro_batch_size == PAIRS_A_STEP
    assert "A step of TRL's" not in said(session)


@pytest.mark.slow
def test_a_chosen_size_is_lowered_to_the_largest_at_which_both_fit(made, monkeypatch):
    session = made()
    sizes = {size: peak(session, size) for size in (1, 2, 4, 8)}
    assert sizes[1] < sizes[2] < sizes[4] < sizes[8]
    of_memory = int((sizes[2] + sizes[4]) / 2 / BELIEVED)
    choice = fit(session, monkeypatch, of_memory)
    assert (choice.key, choice.value) == (MICRO_BATCH, 2)
    assert session.recipe.micro_batch_size == session.settings.micro_batch_size == 2
    assert session.recipe.reasons[MICRO_BATCH] == choice.reason
    assert "micro_batch_size=2 in place of 8: of 8, a step of TRL's own trainer is planned to need" in said(session)


@pytest.mark.slow
def test_a_size_that_is_set_stays_and_what_is_near_the_limit_is_said(made, monkeypatch):
    session = made(micro_batch_size=4)
    assert fit(session, monkeypatch, int(peak(session, 4) / 0.8)) is None
    assert session.settings.micro_batch_size == 4
    assert "A step of TRL's own trainer is planned to need" in said(session)
    assert "may be ended by the system." in said(session)


@pytest.mark.slow
def test_a_size_that_is_set_and_does_not_fit_is_refused_with_one_that_does(made, monkeypatch):
    session = made(micro_batch_size=8)
    sizes = {size: peak(session, size) for size in (2, 4, 8)}
    of_memory = int((sizes[2] + sizes[4]) / 2 / BELIEVED)
    assert of_memory < sizes[8]
    with pytest.raises(RecipeError, match=r"with 8 pairs at a time and ours waiting .* Try micro_batch_size=2\."):
        fit(session, monkeypatch, of_memory)


@pytest.mark.slow
def test_where_not_even_one_pair_fits_other_ways_are_named(made, monkeypatch):
    session = made()
    with pytest.raises(RecipeError, match=r"nothing to compare with\. Try trl\.gradient_checkpointing=true"):
        fit(session, monkeypatch, peak(session, 1) // 2)


@pytest.mark.slow
def test_what_waits_is_counted_weights_optimizer_and_gradients_that_are_kept(made):
    session = made()
    plan = memory.plan_for(session, session.device, longest(session), of_trl(session).evolve(micro_batch_size=1))
    assert plan.weights > 0 and plan.adapter > 0 and plan.optimizer > 0
    assert peak(session, 1) == plan.peak + plan.weights + plan.adapter + plan.optimizer
    assert peak(session, PAIRS_A_STEP, gradients_kept=3) - peak(session, PAIRS_A_STEP) == 3 * 4 * plan.trainable


def test_a_model_that_cannot_be_planned_is_compared_as_it_is(made, monkeypatch):
    def refuse(*_, **__):
        raise memory.Unplannable("no shapes")

    session = made()
    monkeypatch.setattr(both_trainers, "plan_for", refuse)
    assert fit(session, monkeypatch, 1) is None
    assert session.settings.micro_batch_size == PAIRS_A_STEP

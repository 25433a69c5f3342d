"""Pairs by length: a fair shuffle still, the same numbers in the same order, and fewer tokens where rows are padded."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from making import make_pairs
from making_trainers import build
from test_same_maths import steps_of
from torch.utils.data import RandomSampler

from dpo_recipes.recipe.choices import Choice, with_choices
from dpo_recipes.training import pair_reading
from dpo_recipes.training.by_length import ByLengthWithinSteps, longest_first, places_before

pytestmark = pytest.mark.usefixtures("cache")

LENGTHS = [random.Random(0).randrange(10, 500) for _ in range(107)]
BY_LENGTH = Choice("trl.train_sampling_strategy", "random", "padded")


def drawn(seed: int) -> list[int]:
    return list(RandomSampler(LENGTHS, generator=torch.Generator().manual_seed(seed)))


def in_steps(order: list[int], size: int = 16) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


# The order


@pytest.mark.parametrize("seed", range(3))
def test_each_pair_comes_once_and_each_step_has_the_pairs_that_were_drawn_for_it(seed):
    order = list(ByLengthWithinSteps(drawn(seed), LENGTHS, pairs_a_step=16))
    assert sorted(order) == list(range(107))
    sets = [set(step) for step in in_steps(order)]
    assert sets == [set(step) for step in in_steps(drawn(seed))]


def test_which_pairs_meet_in_a_step_has_nothing_to_do_with_their_lengths():
    """The same draw with other lengths gives the same steps: no length is asked before they are made."""
    others = random.Random(1).sample(LENGTHS, len(LENGTHS))
    steps = [
        [set(step) for step in in_steps(list(ByLengthWithinSteps(drawn(3), lengths, 16)))]
        for lengths in (LENGTHS, others)
    ]
    assert steps[0] == steps[1]


def test_within_a_whole_step_they_come_by_length_and_the_rest_of_an_epoch_as_drawn():
    order = list(ByLengthWithinSteps(drawn(3), LENGTHS, pairs_a_step=16))
    *whole, last = in_steps(order)
    for step in whole:
        assert [LENGTHS[pair] for pair in step] == sorted(LENGTHS[pair] for pair in step)
    assert last == drawn(3)[96:] and len(last) == 11


def test_what_was_ordered_comes_back_as_it_was():
    order = longest_first(LENGTHS)
    assert LENGTHS[order[0]] == max(LENGTHS) and sorted(order) == list(range(107))
    in_that_order = np.array(LENGTHS)[order]
    assert in_that_order[places_before(order)].tolist() == LENGTHS


# In the trainer


def padded(tiny, monkeypatch, *, by_length: bool, **changes):
    """A trainer whose model cannot read pairs once, on pairs of very different lengths."""
    monkeypatch.setattr(pair_reading.shared_prefix, "share", lambda *_, **__: "it is a test")
    rows = make_pairs(28)
    for number, row in enumerate(rows):
        more_words = 7 * number % 20
        row["chosen"][0]["content"] += " and" * more_words
    given = {"pair_sharing": "auto", "micro_batch_size": 2, "max_length": 200, **changes}
    trainer = build(tiny(), train=rows, **given)
    if by_length:
        trainer.recipe = with_choices(trainer.recipe, [BY_LENGTH])
    return trainer


def tokens_of(trainer) -> int:
    return sum(batch["input_ids"].numel() for batch in trainer.get_train_dataloader())


@pytest.mark.slow
def test_steps_are_the_same_steps_with_fewer_tokens(tiny, monkeypatch):
    """Loss and gradient of each step of an epoch, 3 whole ones and one of 4 pairs."""
    options = {"max_steps": 4, "optim": "sgd"}
    seen, tokens = [], []
    for by_length in (False, True):
        trainer = padded(tiny, monkeypatch, by_length=by_length, trl=options, learning_rate=1.0)
        tokens.append(tokens_of(trainer))
        seen.append(steps_of(trainer))
    assert tokens[1] < 0.95 * tokens[0]
    for (loss, gradient), (other_loss, other_gradient) in zip(*seen, strict=True):
        assert other_loss == pytest.approx(loss, abs=1e-6)
        assert (other_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_a_strategy_that_somebody_has_set_is_left_alone(tiny, monkeypatch):
    options = {"train_sampling_strategy": "random"}
    trainer = padded(tiny, monkeypatch, by_length=False, trl=options)
    assert not isinstance(trainer.get_train_dataloader().batch_sampler.sampler, ByLengthWithinSteps)


@pytest.mark.slow
def test_held_out_pairs_and_references_come_back_in_the_order_of_the_pairs(tiny, tmp_path, monkeypatch):
    """By length they are padded less; what is given of them is what their own order gives."""
    found = []
    for coupled in (False, True):  # beside such a loss they are read in their order
        changes = {"loss": {"sigmoid": 1.0, "sft": 0.1}} if coupled else {}
        trainer = padded(tiny, monkeypatch, by_length=False, adapter=None, **changes)
        _, pairs = trainer.held_out()
        assert (trainer._eval_order is None) == coupled
        references = [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in trainer.train_dataset]
        found.append((pairs, torch.tensor(references)))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"another {coupled}"))
    (pairs, references), (in_order, references_in_order) = found
    assert torch.allclose(pairs.policy_chosen, in_order.policy_chosen, atol=1e-4)
    assert torch.equal(pairs.rejected_tokens, in_order.rejected_tokens)
    assert torch.allclose(references, references_in_order, atol=1e-4)


def test_with_pair_sharing_off_held_out_pairs_come_in_their_order(tiny):
    trainer = build(tiny())
    trainer.held_out()
    assert trainer._eval_order is None

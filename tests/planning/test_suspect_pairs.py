"""The two scores: displacement by its formula, halves that share no prompt, and labels that were flipped on purpose."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from making import recipe_for, write_jsonl
from rich.console import Console

from dpo_recipes import Data
from dpo_recipes.planning.suspect_pairs import displacement, displacements, halves, score_pairs, worst
from dpo_recipes.progress import Stage
from dpo_recipes.training.session import Session


def test_displacement_is_the_formula_of_the_paper_with_means():
    torch.manual_seed(0)
    hidden = torch.randn(4, 6, 5)  # two pairs of six columns
    completion = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]]).bool()

    def mean_of_predictors(row: int) -> np.ndarray:
        predictors = [hidden[row, t - 1].double().numpy() for t in range(1, 6) if completion[row, t]]
        return np.mean(predictors, axis=0)

    expected = []
    for pair in range(2):
        chosen, rejected = mean_of_predictors(pair), mean_of_predictors(pair + 2)
        expected.append(chosen @ rejected - chosen @ chosen)
    np.testing.assert_allclose(displacement(hidden, completion).numpy(), expected, rtol=1e-5)


def test_equal_sides_have_a_displacement_of_0():
    hidden = torch.randn(1, 4, 3).repeat(2, 1, 1)
    completion = torch.ones(2, 4).bool()
    assert displacement(hidden, completion).abs().item() < 1e-6


def test_halves_share_no_prompt_and_hold_all_pairs_once():
    draw = random.Random(1)
    prompts = [[draw.randrange(9)] for _ in range(50)]
    first, second = halves(prompts, seed=0)
    assert sorted(first + second) == list(range(50))
    assert not {prompts[index][0] for index in first} & {prompts[index][0] for index in second}
    assert abs(len(first) - len(second)) <= 9
    assert halves(prompts, seed=0) == (first, second) != halves(prompts, seed=1)


def test_the_worst_are_a_share_with_the_largest_scores_first():
    assert worst(np.array([1.0, 9.0, 5.0, 7.0]), 0.5) == [1, 3]
    assert worst(np.array([1.0, 9.0]), 0.01) == [1]


@pytest.fixture
def session(tiny, tmp_path):
    """200 pairs of which chosen is about one of four words, and rejected about another; one label in ten is flipped."""
    draw = random.Random(0)
    good, bad = ["sun", "sea", "sky", "tree"], ["mud", "rust", "ash", "dust"]
    rows = []
    for number in range(200):
        chosen, rejected = f"It is {draw.choice(good)}.", f"It is {draw.choice(bad)}."
        if number % 10 == 3:
            chosen, rejected = rejected, chosen
        rows.append({"prompt": f"What is number {number}?", "chosen": chosen, "rejected": rejected})
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = recipe_for(
        tiny(), data=Data(str(file), format="text", eval=0.05), adapter=None, learning_rate=3e-3, global_batch_size=8
    )
    made = Session(recipe, Console(quiet=True))
    made.read_pairs()
    return made


@pytest.mark.slow
def test_flipped_labels_are_found_by_models_that_have_not_seen_them(session, tmp_path):
    scores = score_pairs(session, tmp_path)
    flipped = np.array([int(row) % 10 == 3 for row in session.train["row"]])
    found = flipped[worst(scores.label, flipped.mean())]
    assert found.mean() > 0.8
    assert len(scores.displacement) == len(session.train) and np.isfinite(scores.displacement).all()


@pytest.mark.slow
def test_displacements_do_not_depend_on_the_batches(session, tmp_path):
    trainer = session.make_trainer(tmp_path, [], save_strategy="no")
    few = session.train.select(range(7))
    with Stage(Console(quiet=True), "Reading", total=7) as stage:
        apart, together = (displacements(trainer, few, size, stage) for size in (2, 7))
    np.testing.assert_allclose(apart, together, rtol=1e-3, atol=1e-5)
    assert not trainer.model.training  # as it was

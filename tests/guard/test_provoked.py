"""What goes wrong in real runs, provoked on a tiny model and named by the guard; a healthy run raises nothing.

A reference that is not the start, and an adapter that does not move, stop a run: tests/training/test_trainer.py.
"""

from __future__ import annotations

import random

import pytest
import torch
from making import make_pair, trainer_of

from dpo_recipes import Data, LoRA, Recipe
from dpo_recipes.guard.judge import Judge
from dpo_recipes.models.tokenizer import load_tokenizer
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.resolve import Device, resolve

PLACES = ["attic", "kitchen", "garden", "office", "cellar", "garage"]
THINGS = ["lamp", "table", "kettle", "vase", "clock", "chair"]

pytestmark = pytest.mark.slow


def ignore(observation) -> None:
    pass


def make_rows(count: int, flipped: float, seed: int = 0) -> list[dict]:
    """Two answers to a question, of which the friendly one is chosen; a share of the labels is flipped."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        thing, place, other = draw.choice(THINGS), draw.choice(PLACES), draw.choice(PLACES)
        sides = [f"It is in the {place}, my friend.", f"It is in the {other}, go and look."]
        if draw.random() < 0.5:
            sides = [f"In the {place}, my friend.", f"It is in the {other}, so go and look."]
        if draw.random() < flipped:
            sides.reverse()
        rows.append(make_pair(f"Where is the {thing}?", *sides))
    return rows


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory):
    """A tiny model that has learned to give such answers, so that they are likely before their preferences are."""
    folder = tmp_path_factory.mktemp("taught")
    recipe = Recipe(model=str(tiny()), data=Data("unused"))
    model = load_weights(recipe, resolve(recipe, Device()), str(tiny()))
    tokenizer = load_tokenizer(recipe, str(tiny())).tokenizer
    conversations = []
    for row in make_rows(32, flipped=0.0, seed=5):
        conversations += [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
    batch = tokenizer.apply_chat_template(conversations, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def observed(taught, tmp_path):
    """observed(...) -> (rule, level) of all that the guard has told of a run of a recipe with these changes."""

    def run(flipped: float = 0.0, pairs: int = 160, steps: int = 24, **changes) -> list[tuple[str, str]]:
        given = {"adapter": LoRA(r=8), "global_batch_size": 8, "micro_batch_size": 8, "max_length": 96}
        trl = {"gradient_checkpointing": False, "max_steps": steps, "per_device_eval_batch_size": 64}
        recipe = Recipe(model=str(taught), data=Data("unused"), **given | {"trl": trl} | changes)
        held_out = make_rows(96, flipped, seed=7)
        judge = Judge(recipe, resolve(recipe, Device()), len(held_out), ignore)
        trainer = trainer_of(recipe, make_rows(pairs, flipped), held_out, tmp_path, callbacks=[judge])
        trainer.held_out()
        trainer.train()
        trainer.held_out()
        return [(told.rule, told.level) for told in judge.observations]

    return run


def test_a_healthy_run_raises_nothing(observed):
    assert observed(flipped=0.2, learning_rate=3e-4, beta=0.5) == []


def test_answers_that_are_forgotten_are_named_and_sft_weight_holds_them(observed):
    ruin = {"flipped": 0.2, "learning_rate": 1e-2, "beta": 0.02}
    assert ("chosen_forgotten", "warning") in observed(**ruin)
    assert "chosen_forgotten" not in dict(observed(**ruin, sft_weight=1.0))


def test_a_beta_that_holds_nothing_is_named(observed):
    assert ("policy_runs_away", "warning") in observed(flipped=0.2, learning_rate=3e-2, beta=1e-4)


def test_pairs_learned_by_heart_are_named(observed):
    told = observed(flipped=0.5, pairs=16, steps=40, learning_rate=1e-2, beta=0.1)
    assert ("over_fitting", "warning") in told

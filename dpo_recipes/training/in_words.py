"""A run in words, before its first step: who is trained, who it is compared with, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..recipe.adapters import QLoRA
from ..recipe.choices import IN_STEPS, TARGETS
from ..recipe.recipe import Recipe
from . import engine

if TYPE_CHECKING:
    from .trainer import RecipeTrainer


def policy_and_reference(trainer: RecipeTrainer) -> dict[str, Any]:
    """reference.json: who is trained and who it is compared with, in words and as values."""
    recipe, settings = trainer.recipe, trainer.settings
    trainable, total = trainer.parameter_counts()
    return {
        "policy": f"{_policy(recipe)} ({trainable:,} of {total:,} parameters train)",
        "reference": _reference(recipe, settings.reference),
        "kind": settings.reference,
        "model": recipe.model,
        "revision": recipe.revision,
        "precomputed": settings.precompute,
        "log_probabilities": trainer.reference_cache,  # of each split, how they came about
        "fingerprint": trainer.fingerprint(),
    }


def _policy(recipe: Recipe) -> str:
    """The model and what of it is trained, such as `org/model@revision + LoRA of rank 32`."""
    model = recipe.in_words(recipe.model)
    if recipe.revision:
        model += f"@{recipe.revision}"

    adapter = recipe.adapter
    if adapter is None:
        return f"{model} + all weights"
    if adapter.continue_from:
        return f"{model} + {type(adapter).__name__} continued from {adapter.continue_from}"
    where = " on what reads text" if TARGETS in recipe.reasons else ""
    return f"{model} + {type(adapter).__name__} of rank {adapter.r}{where}"


def _reference(recipe: Recipe, kind: str) -> str:
    """What each kind of reference is, as a sentence says it."""
    if IN_STEPS in recipe.reasons and kind in ("start weights", "other model"):
        who = "the weights it starts from" if kind == "start weights" else recipe.reference
        return f"{who}, as a second model that reads the pairs in each step"
    continued_from = recipe.adapter.continue_from if recipe.adapter else None
    words = {
        "adapter off": "the same model with the adapter off",
        "frozen adapter": f"the same model with the frozen copy of {continued_from}",
        "start weights": "the weights it starts from, as log-probabilities computed before training",
        "other model": f"{recipe.reference}, as log-probabilities computed before training",
        "moving copy": "a second copy of the weights, moved towards the policy (TR-DPO)",
    }
    return words[kind]


def amounts(trainer: RecipeTrainer) -> str:
    """Pairs, batch and precision in one sentence."""
    recipe, settings = trainer.recipe, trainer.settings
    pairs_per_step = recipe.global_batch_size
    # How many pairs a stream holds is not known before it has been read.
    train_pairs = None if recipe.data.streaming else len(trainer.train_dataset)

    precision = settings.weights
    if settings.autocast:
        precision += f" with {settings.autocast} autocast"
    if isinstance(recipe.adapter, QLoRA):
        precision = f"4-bit NF4 weights, computing in {precision}"

    if train_pairs is None:
        amount = "A stream of pairs"
    elif train_pairs == 1:
        amount = "1 pair"
    else:
        amount = f"{train_pairs:,} pairs"
    step = f"{settings.micro_batch_size} pairs x {settings.accumulation} accumulation"
    count = trainer.args.world_size
    if count > 1:
        step += f" x {count} processes under {engine.engine_here(recipe)}"
    words = (
        f"{amount} to train on, {len(trainer.eval_dataset):,} held out; {pairs_per_step} pairs a step = {step}; "
        f"{precision} on {settings.device}."
    )
    left_over = 0 if train_pairs is None else train_pairs % (settings.micro_batch_size * count)
    if count > 1 and left_over:
        words += (
            f" {train_pairs:,} pairs do not divide over {count} processes: behind the last of an epoch some are read "
            "twice, so that none has nothing to do."
        )
    return words

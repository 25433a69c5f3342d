"""How many steps a run takes, and whether what it asks for fits into them."""

from __future__ import annotations

import math

from ..errors import Finding
from ..recipe.recipe import Recipe
from ..recipe.unusual import MOST_USUAL_EPOCHS

TRIAL = 10  # steps: a run that max_steps makes this short is there to see that it runs


def steps(recipe: Recipe, train_pairs: int) -> int:
    """Optimiser steps of the whole run, as the Trainer counts them."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    return math.ceil(recipe.num_train_epochs * _steps_an_epoch(recipe, train_pairs))


def _steps_an_epoch(recipe: Recipe, train_pairs: int) -> int:
    return math.ceil(train_pairs / recipe.global_batch_size)


def length_findings(recipe: Recipe, train_pairs: int | None) -> list[Finding]:
    """What cannot be meant, or is unusual, for a run of so many pairs; None: it is not known how many a stream has."""
    if train_pairs == 0:
        return []
    total = steps(recipe, train_pairs or 0)
    if total == 1 and recipe.trl.get("warmup_steps", 0) > 0:
        return [_nothing_but_warmup(recipe, train_pairs)]
    findings = _warmup(recipe, total) + _intervals(recipe, total)
    if train_pairs is not None:
        findings += _batch(recipe, train_pairs) + _epochs(recipe, train_pairs)
    return findings + _best_model(recipe, total)


def _warmup(recipe: Recipe, total: int) -> list[Finding]:
    warmup_steps = recipe.trl.get("warmup_steps", 0)
    if warmup_steps < 1 or warmup_steps < total:  # below 1 it is a share of all steps
        return []
    text = (
        f"trl.warmup_steps={warmup_steps} in a run of {total:,} steps: the learning rate would never reach its value. "
        "A share of all steps fits any run: trl.warmup_steps=0.1."
    )
    is_trial = recipe.max_steps is not None and total <= TRIAL
    return [Finding("warn" if is_trial else "fail", "warm-up", text)]


def _nothing_but_warmup(recipe: Recipe, train_pairs: int | None) -> Finding:
    """A warm-up starts at 0, so that the only step of a run leaves every weight as it is."""
    text = (
        f"The run has one step, and trl.warmup_steps={recipe.trl['warmup_steps']:g} makes the learning rate 0 in it: "
        "nothing would be trained. "
    )
    if recipe.max_steps is not None:
        text += "Set trl.max_steps=2 or more, or trl.warmup_steps=0."
    else:
        text += (
            f"A step takes {recipe.global_batch_size} pairs, and {_there_are(train_pairs or 0)} to train on. Bring "
            "more pairs, or set num_train_epochs=2 or more, or trl.warmup_steps=0."
        )
    return Finding("fail", "warm-up", text)


def _intervals(recipe: Recipe, total: int) -> list[Finding]:
    """Of what happens every so many steps, what would never happen."""
    findings = []
    for name, consequence in (
        ("eval_steps", "there is no evaluation while training, only before and after"),
        ("save_steps", "there is no checkpoint before the end"),
        ("logging_steps", "only the first steps are logged"),
    ):
        interval = recipe.trl.get(name) or 0
        if interval > total:
            text = f"trl.{name}={interval} in a run of {total:,} steps: {consequence}."
            findings.append(Finding("warn", name, text))
    return findings


def _batch(recipe: Recipe, train_pairs: int) -> list[Finding]:
    """A step of more pairs than there are takes those there are: it is not the batch that was asked for."""
    if recipe.global_batch_size <= train_pairs:
        return []
    text = (
        f"global_batch_size={recipe.global_batch_size}, and {_there_are(train_pairs)} to train on: every step "
        f"takes all of them and no more. At most global_batch_size={train_pairs}."
    )
    return [Finding("warn", "batch", text)]


def _there_are(pairs: int) -> str:
    return "there is 1 pair" if pairs == 1 else f"there are {pairs:,} pairs"


def _epochs(recipe: Recipe, train_pairs: int) -> list[Finding]:
    max_steps = recipe.max_steps
    if max_steps is None:
        return []
    epochs = max_steps / _steps_an_epoch(recipe, train_pairs)
    findings = []
    if recipe.num_train_epochs != 1:
        text = (
            f"trl.max_steps={max_steps} decides the length of the run, {epochs:.3g} epochs; "
            f"num_train_epochs={recipe.num_train_epochs:g} does nothing beside it."
        )
        findings.append(Finding("warn", "epochs", text))
    elif epochs > MOST_USUAL_EPOCHS:
        text = (
            f"trl.max_steps={max_steps} reads each of the {train_pairs:,} pairs {epochs:,.0f} times; 1 to 5 is usual."
        )
        findings.append(Finding("warn", "epochs", text))
    return findings


def _best_model(recipe: Recipe, total: int) -> list[Finding]:
    """Which checkpoint becomes the model, in words."""
    if not recipe.trl.get("load_best_model_at_end"):
        return []
    eval_steps = recipe.trl.get("eval_steps") or 0
    if eval_steps > total:
        text = f"trl.load_best_model_at_end has nothing to choose from: no evaluation in {total:,} steps."
        return [Finding("fail", "best model", text)]
    metric = recipe.trl.get("metric_for_best_model") or "loss"
    larger_is_better = recipe.trl.get("greater_is_better")
    if larger_is_better is None:
        larger_is_better = not metric.endswith("loss")
    direction = "highest" if larger_is_better else "lowest"
    text = f"The model will be the checkpoint with the {direction} {metric} on the held-out pairs, not the last one."
    return [Finding("warn", "best model", text)]

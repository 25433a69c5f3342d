"""Pairs that count more or less than others: their weights in a batch, and TRL's loss of it with them.

Leans on TRL 1.16: `DPOTrainer._compute_loss`, which gives the mean of its pairs' losses, plus that of a router where
`aux_loss_enabled` is set, logs in `_metrics` and `_total_train_tokens`, and asks the `accelerator` for its device and
to gather numbers.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from ..errors import RecipeError
from ..formats.pair_weights import WEIGHT
from ..losses.trl_losses import COUPLED_LOSSES
from ..recipe.recipe import Recipe
from .memory_recovery import of_pairs


class WithWeights:
    """TRL's collator, and the weights of the pairs, shape (pairs,), where the pairs have them."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(examples)
        if WEIGHT in examples[0]:
            batch[WEIGHT] = torch.tensor([example[WEIGHT] for example in examples], dtype=torch.float32)
        return batch


def weighted_loss(
    trainer: Any, by_trl: Callable[..., Any], output: Any, inputs: dict[str, Any], weights: torch.Tensor
) -> Any:
    """TRL's losses of a batch, each pair's times its weight, over the number of pairs; the router's as it is.

    TRL gives only the mean of a batch. So `by_trl`, its method, is asked once more for the pairs of each weight, about
    the output that the model has already given: a mean over pairs that weigh the same is theirs to be weighted.
    """
    _refuse_coupled_losses(trainer.recipe)
    total: Any = 0.0
    for weight in weights.unique():
        weighs_so = weights == weight
        part = {name: of_pairs(value, weighs_so) for name, value in output.items()}
        part_of_inputs = {name: of_pairs(value, weighs_so) for name, value in inputs.items()}
        answer = functools.partial(_answer, SimpleNamespace(**part))
        with _asked_again(trainer):
            mean = by_trl(answer, part_of_inputs, False)
        total = total + weight * weighs_so.float().mean() * mean
    if trainer.aux_loss_enabled:
        total = total + trainer.router_aux_loss_coef * output.aux_loss
    return total


@contextmanager
def _asked_again(trainer: Any) -> Iterator[None]:
    """TRL's method leaves nothing in the log, adds no loss of the router, and asks no other process for numbers."""
    metrics = trainer._metrics
    tokens = trainer._total_train_tokens
    accelerator = trainer.accelerator
    aux_loss_enabled = trainer.aux_loss_enabled

    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer.accelerator = SimpleNamespace(device=accelerator.device, gather=_unchanged, gather_for_metrics=_unchanged)
    trainer.aux_loss_enabled = False
    try:
        yield
    finally:
        trainer._metrics = metrics
        trainer._total_train_tokens = tokens
        trainer.accelerator = accelerator
        trainer.aux_loss_enabled = aux_loss_enabled


def _refuse_coupled_losses(recipe: Recipe) -> None:
    """RecipeError for losses in which a pair has no loss of its own that its weight could multiply."""
    coupled = sorted(recipe.loss_names & COUPLED_LOSSES)
    if coupled:
        raise RecipeError(
            f"The pairs have weights, and loss={coupled[0]!r} is of all pairs of a batch together, so that none has a "
            "loss of its own to be weighted. Choose another loss, such as 'sigmoid' without sft_weight, or leave the "
            "weights out."
        )


def _answer(output: Any, **model_inputs: Any) -> Any:
    """What a model has answered before."""
    return output


def _unchanged(value: torch.Tensor) -> torch.Tensor:
    return value

"""What held-out pairs tell of a policy: TRL's metrics over all of them, with intervals, and what TRL does not say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ..formats.image_marks import IMAGES
from ..losses.pair_logps import PairLogps
from ..training.trainer import RecipeTrainer
from .held_out import TRL_MEANS, Numbers
from .intervals import grouped_error, share_interval
from .rankings import calibration, length_controlled, outcomes


def measure_pairs(trainer: RecipeTrainer, start: PairLogps | None = None) -> tuple[Numbers, PairLogps]:
    """(`pair_numbers` of a trainer's held-out pairs as its policy is now, the log-probabilities of every pair).

    `start`: the log-probabilities before training; None: now is before training.
    """
    metrics, pairs = trainer.held_out()
    return numbers_of(trainer, metrics, pairs, pairs if start is None else start), pairs


def at_its_start(trainer: RecipeTrainer, after: Numbers, pairs: PairLogps) -> tuple[Numbers, Numbers]:
    """(numbers before training, numbers after it) of a policy that was read after training alone.

    It began as its own reference, whose log-probabilities are among the pairs'.
    """
    start = as_its_reference(pairs)
    before = numbers_of(trainer, {}, start, start)
    return before, numbers_of(trainer, after, pairs, start)


def numbers_of(trainer: RecipeTrainer, metrics: Numbers, pairs: PairLogps, start: PairLogps) -> Numbers:
    """`pair_numbers` of pairs that are a trainer's held-out ones."""
    prompts = _prompts(trainer.eval_dataset)
    return pair_numbers(
        metrics,
        pairs,
        trainer.recipe.beta,
        start,
        trainer.health.same_start,
        groups=prompts,
        whole=trainer.ld_alpha is None,
    )


def _prompts(pairs: Any) -> list[Any]:
    """By what the prompts of tokenised pairs are told from each other: their tokens, and their images where any are."""
    prompts: list[Any] = [tuple(ids) for ids in pairs["prompt_ids"]]
    if IMAGES not in pairs.column_names:
        return prompts
    keys = [tuple(image["key"] for image in images or []) for images in pairs[IMAGES]]
    return list(zip(prompts, keys, strict=True))


def pair_numbers(
    metrics: Numbers,
    pairs: PairLogps,
    beta: float,
    start: PairLogps,
    same_start: bool = True,
    *,
    groups: Sequence[Any] | None = None,
    whole: bool = True,
) -> Numbers:
    """TRL's metrics over all held-out pairs, with intervals, standard errors, calibration and changes since `start`.

    `metrics` are TRL's own means, `pairs` the log-probabilities of every pair now and `start` those before training.
    `same_start` says that the reference is the policy's start, which decides what counts as a tie. `groups` names the
    prompt of each pair, as pairs of one prompt depend on each other; None: each has its own. `whole`: log-probabilities
    are those of whole sides, and not, as under ld_alpha, of tokens that count less behind the shorter side's end.
    """
    count = len(pairs.h)
    prompts = range(count) if groups is None else groups
    won = outcomes(pairs, start, same_start)
    margins = beta * pairs.h

    numbers: Numbers = {"pairs": count}
    if "loss" in metrics:
        numbers["loss"] = metrics["loss"]
    numbers |= {
        "rewards/accuracies": won.mean().item(),
        "rewards/accuracies_interval": list(share_interval(won, prompts)),
        "rewards/margins": margins.mean().item(),
        "rewards/margins_stderr": grouped_error(margins, prompts),
    }
    numbers |= _length_apart(pairs, won, prompts)
    error, by_chance, reliability = calibration(pairs, beta, won)
    numbers |= {
        "rewards/confidence": torch.sigmoid(margins.abs()).mean().item(),
        "rewards/calibration_error": error,
        "rewards/calibration_error_by_chance": by_chance,
        "reliability": reliability,
    }
    for side in ("chosen", "rejected"):
        logps = getattr(pairs, f"policy_{side}")
        logps_at_start = getattr(start, f"policy_{side}")
        tokens = getattr(pairs, f"{side}_tokens")
        logratios = getattr(pairs, f"{side}_logratios")
        change = logps.sum() - logps_at_start.sum()
        numbers[f"rewards/{side}"] = beta * logratios.mean().item()
        numbers[f"logps/{side}"] = logps.mean().item()
        numbers[f"logps/{side}_change_per_token"] = (change / tokens.sum()).item()
    if whole:
        numbers["perplexity/chosen"] = _perplexity(pairs.policy_chosen, pairs.chosen_tokens)
        numbers["perplexity/chosen_reference"] = _perplexity(pairs.reference_chosen, pairs.chosen_tokens)
    for name in TRL_MEANS:
        if name in metrics:
            numbers[name] = metrics[name]
    return numbers


def _length_apart(pairs: PairLogps, won: torch.Tensor, prompts: Sequence[Any]) -> Numbers:
    """The length-controlled accuracy; nothing where one side is always the longer one."""
    controlled = length_controlled(pairs, won, prompts)
    if controlled is None:
        return {}
    value, interval = controlled
    name = "rewards/accuracies_length_controlled"
    return {name: value, f"{name}_interval": list(interval)}


def _perplexity(logps: torch.Tensor, tokens: torch.Tensor) -> float:
    """exp of the mean negative log-probability of a token, over all sides of shape (pairs,)."""
    return (-logps.sum() / tokens.sum()).exp().item()


def as_its_reference(pairs: PairLogps) -> PairLogps:
    """The pairs as they were while the policy was its reference: the start of one that was not trained here."""
    return dataclasses.replace(pairs, policy_chosen=pairs.reference_chosen, policy_rejected=pairs.reference_rejected)


def pair_rows(trainer: RecipeTrainer, pairs: PairLogps) -> list[dict[str, Any]]:
    """The lines of pairs.jsonl, one a held-out pair: its row, its log-ratios in nats and its lengths in tokens.

    `prompt` numbers the prompts in their order: pairs of one number have the same.
    """
    numbers: dict[Any, int] = {}
    prompts = _prompts(trainer.eval_dataset)
    for prompt in prompts:
        numbers.setdefault(prompt, len(numbers))
    columns = {
        "row": trainer.eval_dataset["row"],
        "prompt": [numbers[prompt] for prompt in prompts],
        "chosen_logratio": pairs.chosen_logratios.tolist(),
        "rejected_logratio": pairs.rejected_logratios.tolist(),
        "chosen_tokens": pairs.chosen_tokens.long().tolist(),
        "rejected_tokens": pairs.rejected_tokens.long().tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

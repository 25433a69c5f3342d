"""The beta dial: what training with another beta would have given, from one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from ..data.replies import Replies
from ..models.guided import guided_by
from ..models.reference import Reference
from ..recipe.recipe import Recipe
from ..sentences import print_line
from ..training.trainer import RecipeTrainer
from .answers import drawn, said_of, scorer_of
from .held_out import Numbers
from .kl import kl_along
from .logits import lent_logits, logits_of
from .rehearsal import Questions, draws, questions


def dial(
    recipe: Recipe,
    trainer: RecipeTrainer,
    reference: Reference,
    positions: int | None,
    factors: Sequence[float],
    console: Console | None = None,
) -> list[Numbers]:
    """For each factor what answers drawn with it show: reward, win rate, KL to the reference, length; and its beta.

    With the factor l the next token is drawn from softmax(ref + l (policy - ref)), the logits of both models:
    decoding-time realignment (2402.02992). 1 is the policy, 0 the reference. Of a policy that is optimal for
    beta, each token's distribution is then that of beta / l where one token is the whole answer, and near it elsewhere:
    the normalisers of longer answers are taken token by token. Prompts, draws and seed are those of `answers`.
    """
    console = console or Console(quiet=True)
    warning = beyond_the_policy(factors)
    if warning:
        print_line(console, f"dial: {warning}")
    asked = questions(recipe, trainer.eval_dataset, positions)
    if not asked.prompts:
        return []
    of_reference = answers_of_reference(recipe, asked, reference, trainer.processing_class, console)
    scorer = scorer_of(recipe, trainer.model.device)
    rows: list[Numbers] = []
    for factor in factors:
        replies, kl = dialled_answers(
            recipe, asked, trainer.model, reference, trainer.processing_class, factor, console
        )
        said = said_of(recipe, scorer, asked.prompts, of_reference, replies, kl, console)
        rows.append({"dial": factor, "beta": beta_at(recipe.beta, factor), **said.after})
    return rows


def beyond_the_policy(factors: Sequence[float]) -> str | None:
    """What to know of factors above 1, where there are some."""
    beyond = [f"{factor:g}" for factor in factors if factor > 1]
    if not beyond:
        return None
    verb = "extrapolates" if len(beyond) == 1 else "extrapolate"
    return (
        f"{' and '.join(beyond)} {verb}. From 0 to 1 the logits lie between those "
        "of reference and policy; beyond 1 they go on in the same direction, where neither model has been, and every "
        "small difference between the two grows. Take what it shows as a sign of where things break, and not for what "
        "a lower beta would give (decoding-time realignment, 2402.02992)."
    )


def beta_at(beta: float, factor: float) -> float:
    """The beta that a factor of the dial stands for."""
    return beta / factor if factor else math.inf


def answers_of_reference(
    recipe: Recipe, asked: Questions, reference: Reference, tokenizer: Any, console: Console
) -> Replies:
    """What the reference answers, with the random numbers that every other model is asked with."""
    with reference.model() as model:
        samples = draws(recipe).reference
        return drawn(model, tokenizer, recipe, asked, samples, "Answers of the reference", console)


def dialled_answers(
    recipe: Recipe,
    asked: Questions,
    policy: Any,
    reference: Reference,
    tokenizer: Any,
    factor: float,
    console: Console,
) -> tuple[Replies, torch.Tensor]:
    """(answers drawn with the dial at `factor`, their KL to the reference in nats: (prompts, samples))."""
    guide = guided_by(reference.model, factor)
    samples = draws(recipe).policy
    replies = drawn(policy, tokenizer, recipe, asked, samples, f"Answers at dial {factor:g}", console, guide)
    return replies, _kl(policy, reference, factor, asked.ids, replies, console, recipe.answers_temperature)


def _kl(
    policy: Any,
    reference: Reference,
    factor: float,
    ids: list[list[int]],
    replies: Replies,
    console: Console,
    temperature: float,
) -> torch.Tensor:
    """The KL to the reference along every reply, of the distributions that it was drawn from: (prompts, samples)."""
    reference_logits = lent_logits(reference.model)

    def dialled_logits(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        of_policy = logits_of(policy, input_ids, attention_mask).float()
        of_reference = reference_logits(input_ids, attention_mask).float()
        return of_reference + factor * (of_policy - of_reference)

    return kl_along(policy, dialled_logits, reference_logits, ids, replies, console, temperature)

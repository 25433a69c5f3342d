"""The beta dial: what training with another beta would have given, from one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from ..models.generate import generate
from ..models.guided import guided_by
from ..models.reference import Reference
from ..progress import Stage
from ..recipe.recipe import Recipe
from ..training.trainer import RecipeTrainer
from .answers import Replies, kl_along, logits_of, said_of, scorer_of
from .held_out import Numbers
from .rehearsal import draws, questions


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
    asked = questions(recipe, trainer.eval_dataset, positions)
    if not asked.prompts:
        return []
    counts = draws(recipe)
    settings: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "seed": recipe.seed}
    tokenizer = trainer.processing_class
    with reference.model() as model, Stage(console, "Answers of the reference", unit="answers") as stage:
        of_reference = generate(model, tokenizer, asked.ids, samples=counts.reference, progress=stage.show, **settings)

    scorer = scorer_of(recipe, trainer.model.device)
    rows: list[Numbers] = []
    for factor in factors:
        with Stage(console, f"Answers at dial {factor:g}", unit="answers") as stage:
            replies = generate(
                trainer.model,
                tokenizer,
                asked.ids,
                samples=counts.policy,
                guide=guided_by(reference.model, factor),
                progress=stage.show,
                **settings,
            )
        kl = _kl(trainer.model, reference, factor, asked.ids, replies, console)
        said = said_of(recipe, scorer, asked.prompts, of_reference, replies, kl, console)
        beta = recipe.beta / factor if factor else math.inf
        rows.append({"dial": factor, "beta": beta, **said.after})
    return rows


def _kl(
    policy: Any, reference: Reference, factor: float, ids: list[list[int]], replies: Replies, console: Console
) -> torch.Tensor:
    """The KL to the reference along every reply, of the distributions that it was drawn from: (prompts, samples)."""

    def reference_logits(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        with reference.model() as model:
            return logits_of(model, input_ids, attention_mask)

    def dialled_logits(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        of_policy = logits_of(policy, input_ids, attention_mask).float()
        of_reference = reference_logits(input_ids, attention_mask).float()
        return of_reference + factor * (of_policy - of_reference)

    return kl_along(policy, dialled_logits, reference_logits, ids, replies, console)

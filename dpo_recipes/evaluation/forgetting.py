"""How far a policy has moved on text that has nothing to do with its pairs: the forgetting budget."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from rich.console import Console

from ..models.generate import Progress, padded
from ..models.reference import Reference
from ..progress import Stage
from ..recipe.recipe import Recipe
from .held_out import BeforeAfter, Numbers
from .kl import batches, summed_kl
from .logits import Logits, lent_logits, logits_of, tokens_of_a_batch

LONGEST = 1024  # tokens of a text that are read


def forgetting(
    policy: Any,
    reference: Reference,
    tokenizer: Any,
    texts: list[str],
    positions: int | None,
    console: Console | None = None,
) -> BeforeAfter:
    """(before, after): the KL of the policy to its reference on these texts, and how often each is right.

    Both read the texts as they are, without a chat template. The KL is that of the two next-token distributions, in
    nats, as a mean over the tokens of all texts; the accuracy is the share of tokens that get the highest probability.
    Errors are those of a ratio, over texts. `before` is of the reference. Empty where no text has two tokens.
    """
    longest = LONGEST if positions is None else min(LONGEST, positions)
    rows = [list(tokenizer(text)["input_ids"])[:longest] for text in texts]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return BeforeAfter({}, {})

    policy_logits = functools.partial(logits_of, policy)
    reference_logits = lent_logits(reference.model)
    was_training = policy.training
    policy.eval()
    try:
        with Stage(console or Console(quiet=True), "Unrelated text", unit="texts") as stage:
            sums = _sums(policy_logits, reference_logits, rows, tokens_of_a_batch(policy), stage.show)
    finally:
        policy.train(was_training)

    kl, right_of_policy, right_of_reference, tokens = sums.unbind(dim=1)
    name, accuracy = "forgetting/kl_per_token", "forgetting/token_accuracy"
    before = {name: 0.0} | _ratio(accuracy, right_of_reference, tokens)
    after = _ratio(name, kl, tokens) | _ratio(accuracy, right_of_policy, tokens)
    after |= _ratio(f"{accuracy}_change", right_of_policy - right_of_reference, tokens)
    return BeforeAfter(before, after)


@torch.no_grad()
def _sums(
    policy_logits: Logits, reference_logits: Logits, rows: list[list[int]], batch_tokens: int, progress: Progress
) -> torch.Tensor:
    """Of each text: KL in nats, tokens that the policy has right, that the reference has, and all: (texts, 4)."""
    sums = torch.zeros(len(rows), 4, dtype=torch.float64)
    done = 0
    for batch in batches([len(row) for row in rows], len(rows), batch_tokens):
        ids, mask = padded([rows[index] for index in batch], 0, "right")
        policy = policy_logits(ids, mask)
        reference = reference_logits(ids, mask)
        for k, index in enumerate(batch):
            # Position t predicts token t + 1.
            predicting = slice(0, len(rows[index]) - 1)
            next_tokens = torch.tensor(rows[index][1:], device=policy.device)
            of_policy, of_reference = policy[k, predicting], reference[k, predicting]
            right_of_policy = (of_policy.argmax(-1) == next_tokens).sum().item()
            right_of_reference = (of_reference.argmax(-1) == next_tokens.to(of_reference.device)).sum().item()
            kl = summed_kl(of_policy, of_reference).item()
            sums[index] = torch.tensor([kl, right_of_policy, right_of_reference, len(next_tokens)])
        done += len(batch)
        progress(done, len(rows))
    return sums


def _ratio(name: str, amounts: torch.Tensor, tokens: torch.Tensor) -> Numbers:
    """The amounts over the tokens of all texts, and the standard error of that ratio over texts (linearised)."""
    value = (amounts.sum() / tokens.sum()).item()
    count = len(amounts)
    if count == 1:
        return {name: value, f"{name}_stderr": None}
    residuals = amounts - value * tokens
    error = math.sqrt(count / (count - 1) * residuals.square().sum().item()) / tokens.sum().item()
    return {name: value, f"{name}_stderr": error}


def over_budget(recipe: Recipe, after: Numbers) -> str | None:
    """The sentence that says that a policy has moved further than the recipe's forgetting_limit allows."""
    moved = after.get("forgetting/kl_per_token")
    limit = recipe.forgetting_limit
    if limit is None or moved is None or moved <= limit:
        return None
    return (
        f"On text that has nothing to do with its pairs the policy has moved {moved:.3g} nats per token from its "
        f"reference, and forgetting_limit allows {limit:g}. All numbers and the model are kept. Ways to move less: a "
        "higher beta, a lower learning rate, fewer steps, an adapter of lower rank."
    )

"""Losses of one's own on TRL's batches: what they may see of one, and what they must give.

Leans on TRL 1.16: the columns of its batches, which hold all chosen rows and then all rejected ones, each with its
prompt, and the `log_probs` of its forward, which are 0 outside the completions.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from ..errors import RecipeError
from ..losses.conformance import failure, wrong_result
from ..losses.pair_logps import PairLogps
from ..losses.plugins import Loss
from ..losses.selection import name_of
from ..runs.full_memory import is_out_of_memory


def pair_logps(output: Any, inputs: dict[str, Any], ld_alpha: float | None) -> PairLogps:
    """What a loss may see of a batch; `log_probs` of the output has shape (2 * pairs, tokens - 1).

    Nothing predicts the first token.
    """
    is_completion = inputs["completion_mask"][:, 1:]
    per_token = output.log_probs[:, -is_completion.size(1) :]
    chosen_tokens, rejected_tokens = is_completion.sum(dim=1).chunk(2)
    if ld_alpha is not None:
        # LD-DPO (2409.06411): tokens past the shorter side's length count ld_alpha.
        shorter_side = torch.minimum(chosen_tokens, rejected_tokens).repeat(2).unsqueeze(1)
        is_within = is_completion.cumsum(dim=1) <= shorter_side
        per_token = torch.where(is_within, per_token, ld_alpha * per_token)

    chosen, rejected = per_token.sum(dim=1).chunk(2)
    return PairLogps(
        policy_chosen=chosen,
        policy_rejected=rejected,
        reference_chosen=inputs["ref_chosen_logps"],
        reference_rejected=inputs["ref_rejected_logps"],
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
    )


def losses_of_pairs(plugin: Loss, numbers: dict[str, Any], pairs: PairLogps, beta: float) -> torch.Tensor:
    """A plugin loss of each pair; what the kit could not foresee, as another device, is one message too."""
    try:
        values = plugin(pairs, beta=beta, **numbers)
    except Exception as error:  # whatever somebody's own function raises
        if is_out_of_memory(error):
            raise
        raise RecipeError(f"The loss {name_of(plugin)} fails on real pairs: {failure(plugin, error)}") from error
    wrong = wrong_result(values, len(pairs.h))
    if wrong:
        raise RecipeError(f"The loss {name_of(plugin)} cannot train: {wrong}.")
    if pairs.policy_chosen.requires_grad and not values.requires_grad:
        raise RecipeError(f"The loss {name_of(plugin)} cannot train: its result is cut off from the policy.")
    return values


def joined(batches: list[PairLogps]) -> PairLogps:
    """All pairs of several batches, in float64 on the CPU."""
    columns = {}
    for field in fields(PairLogps):
        parts = [getattr(batch, field.name) for batch in batches]
        columns[field.name] = torch.cat(parts).double().cpu()
    return PairLogps(**columns)

"""What the guard looks at in every batch: a loss that is no number, where training starts, whether rewards move.

Leans on TRL 1.16: `_tokenizer` of DPOTrainer, and the columns of its batches, which hold all chosen rows and then all
rejected ones.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import RecipeError
from ..guard.not_finite import Circumstances, why_not_finite
from ..guard.rules import first_bad_pair, stop
from ..guard.start import start_is_identity
from ..losses.pair_logps import PairLogps
from ..models.weights import not_finite

SHOWN_OF_A_BAD_PAIR = 2000  # characters of each side


def stop_unless_finite(
    trainer: Any, loss: torch.Tensor, pairs: PairLogps, values: dict[str, torch.Tensor], inputs: dict[str, Any]
) -> None:
    """Stop at a loss that is no number, with the pair that shows it; `values` are those of each plugin loss."""
    if bool(torch.isfinite(loss)):
        return
    known = Circumstances(
        step=trainer.state.global_step,
        updates=trainer.health.steps,
        learning_rate=trainer.args.learning_rate,
        beta=trainer.beta,
        half=trainer.half,
        weights=not_finite(trainer.model),
        plugins=tuple(name for name, value in values.items() if not bool(value.isfinite().all())),
    )
    index = first_bad_pair(pairs)
    chosen = _decoded(trainer, inputs, index)
    rejected = _decoded(trainer, inputs, index + len(pairs.h))
    raise RecipeError(
        f"{why_not_finite(loss.item(), pairs, known)} The pair that shows it:\n"
        f"--- chosen ({pairs.policy_chosen[index].item():.4g} nats)\n{chosen}\n"
        f"--- rejected ({pairs.policy_rejected[index].item():.4g} nats)\n{rejected}"
    )


def _decoded(trainer: Any, inputs: dict[str, Any], row: int) -> str:
    """The start of one row of a batch as text, without its padding."""
    is_token = inputs["attention_mask"][row].bool()
    ids = inputs["input_ids"][row][is_token]
    return trainer._tokenizer.decode(ids)[:SHOWN_OF_A_BAD_PAIR]


def watch_training(trainer: Any, loss: torch.Tensor, pairs: PairLogps, mean_weight: float) -> None:
    """Stop where the first batch shows a start that cannot be, and take down how far rewards have moved."""
    health = trainer.health
    if trainer.state.global_step == 0 and health.same_start:
        declared = None
        if health.declared_loss is not None:
            declared = mean_weight * health.declared_loss
        stop(start_is_identity(pairs, loss.item(), declared, trainer.half))
    # Once a reward has moved, nothing more is to be learned: from there on no number leaves the device for it.
    if health.full_steps and not health.largest_reward:
        logratios = torch.cat([pairs.chosen_logratios, pairs.rejected_logratios])
        health.largest_reward = logratios.abs().max().item()

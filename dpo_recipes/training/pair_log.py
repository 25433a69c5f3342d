"""What is logged of pairs, so that a log and evaluation.json mean the same.

Leans on TRL 1.16: `_metrics`, to each list of which `DPOTrainer._compute_loss` has just added one number for the batch,
and whose mean `log` gives.
"""

from __future__ import annotations

from typing import Any

import torch

from ..guard.last_pairs import LastPairs
from ..losses.pair_logps import PairLogps


class PairLog:
    """Puts numbers of pairs in the place of TRL's numbers of batches.

    TRL counts a tie as lost, so that its accuracy is 0 where policy and reference are the same model; here a tie counts
    half. And it averages an evaluation over batches, of which the last may be smaller; here over pairs.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.tie = 0.0  # nats: the largest rounding seen before training, within which a pair is ranked neither way

    def add(self, pairs: PairLogps) -> None:
        """The pairs of the batch that TRL has just logged."""
        trainer = self.trainer
        gaps = pairs.h.abs()
        is_start = trainer.state.global_step == 0 and trainer.health.same_start
        is_tied = gaps <= self.tie
        if is_start:
            is_tied = torch.ones_like(is_tied)  # what there is of a gap is rounding
        wins = torch.where(is_tied, 0.5, (pairs.h > 0).float())

        if trainer.model.training:
            self._add_training(wins, pairs)
            return
        if is_start:
            self.tie = max(self.tie, trainer.accelerator.gather(gaps).max().item())
        self._add_held_out(wins, pairs)

    def _add_training(self, wins: torch.Tensor, pairs: PairLogps) -> None:
        trainer = self.trainer
        trainer._metrics["train"]["rewards/accuracies"][-1] = trainer.accelerator.gather(wins).mean().item()
        if trainer.state.global_step:  # before the first update no pair tells anything
            trainer.last_pairs.add(trainer.accelerator.gather(LastPairs.rows(wins, pairs)))

    def _add_held_out(self, wins: torch.Tensor, pairs: PairLogps) -> None:
        trainer = self.trainer
        values_per_pair = {
            "rewards/accuracies": wins,
            "rewards/margins": trainer.beta * pairs.h,
            "rewards/chosen": trainer.beta * pairs.chosen_logratios,
            "rewards/rejected": trainer.beta * pairs.rejected_logratios,
            "logps/chosen": pairs.policy_chosen,
            "logps/rejected": pairs.policy_rejected,
        }
        for name, values in values_per_pair.items():
            logged = trainer._metrics["eval"][name]
            logged.pop()  # the mean of this batch
            logged.extend(trainer.accelerator.gather_for_metrics(values).tolist())

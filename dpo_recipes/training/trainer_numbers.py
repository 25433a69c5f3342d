"""What a trainer counts over the steps, so that a run that goes on counts on.

Leans on TRL 1.16: `_total_train_tokens` of DPOTrainer, and of its Trainer, which is Transformers', `_total_loss_scalar`
and `_initial_global_step`, which are set before `on_train_begin`.
"""

from __future__ import annotations

from typing import Any

from ..guard.remembering import Remembering


class TrainerNumbers(Remembering):
    """Keeps a trainer's tokens, the sum of its losses and its last pairs in each checkpoint."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def remembered(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "tokens": trainer._total_train_tokens,
            "loss": getattr(trainer, "_total_loss_scalar", 0.0),  # which is made when training begins
            "last_pairs": trainer.last_pairs.kept(),
        }

    def remember(self, values: dict[str, Any]) -> None:
        trainer = self.trainer
        trainer._total_train_tokens = values["tokens"]
        trainer._total_loss_scalar = values["loss"]
        trainer._initial_global_step = 0  # the mean of the losses is that of the whole run
        trainer.last_pairs.take(values["last_pairs"])

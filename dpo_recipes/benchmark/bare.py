"""TRL's own trainer, for comparison, on the pairs and the weights that ours gets.

Leans on TRL 1.16: `DPOTrainer._prepare_dataset` and `_send_telemetry`; its one call of the model (`labels=...,
fused_lm_head=True`), its fused head, which takes `shift_labels` in place of labels, and its per-token outputs.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import Tensor
from trl import DPOTrainer

from ..shared_prefix.forward import put_back

# What makes TRL's trainer fast or slow and leaves its maths alone. `--against-defaults` leaves all of it to TRL.
SPEED_OPTIONS = (
    "activation_offloading",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "optim",
    "precompute_ref_batch_size",
    "precompute_ref_log_probs",
    "tf32",
    "torch_compile",
)


class BareTrainer(DPOTrainer):
    """DPOTrainer as it is, but that its pairs are token ids already and that nothing is sent."""

    def _send_telemetry(self) -> None:
        """Nothing is sent unless asked."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def with_trl_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """DPOConfig's arguments without those that make it fast or slow."""
    return {name: value for name, value in arguments.items() if name not in SPEED_OPTIONS}


def score_answers_only(model: Any) -> None:
    """Let TRL's fused head see the positions that predict an answer's token alone, as it does on a GPU with Triton.

    On a CPU it scores every position, of prompts and of padding too. `model`: an unwrapped causal LM with TRL's head.
    """
    fused = model.forward.__func__

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, labels: Tensor | None = None, fused_lm_head: bool = False, **given: Any) -> Any:
        if not fused_lm_head or labels is None:
            return fused(self, *args, labels=labels, fused_lm_head=fused_lm_head, **given)

        next_labels = labels[:, 1:]
        scored = next_labels != -100  # (2B, T - 1)
        targets = next_labels[scored][None]  # (1, S)

        def keep_predictors(module: Any, args: Any, output: Any) -> None:
            output.last_hidden_state = output.last_hidden_state[:, :-1][scored][None]  # (2B, T, width) -> (1, S, width)

        hook = self.base_model.register_forward_hook(keep_predictors)
        try:
            output = fused(self, *args, shift_labels=targets, fused_lm_head=True, **given)
        finally:
            hook.remove()

        put_back(output, targets, scored)
        return output

    model.forward = types.MethodType(forward, model)

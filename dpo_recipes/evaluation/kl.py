"""The KL of a policy to its reference along sampled replies."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import RecipeError
from ..models.generate import Progress, padded

# (input_ids, attention_mask), both (batch, length) -> logits (batch, length, vocabulary)
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@torch.no_grad()
def sequence_kl(
    policy_logits: Logits,
    reference_logits: Logits,
    prompts_ids: list[list[int]],
    replies_ids: list[list[int]],
    *,
    batch_size: int = 64,
    progress: Progress = lambda done, total: None,
) -> torch.Tensor:
    """KL(policy || reference) in nats along each reply: float32 of shape (n,), on the CPU.

    The sum over reply positions of the KL of the two next-token distributions over the full vocabulary. Over replies
    drawn from the policy at temperature 1 its mean estimates the KL of whole sequences (2305.18290, section 6.1), never
    below 0 and much quieter than the log-ratio of the sampled tokens. The callables get CPU tensors and move them.
    `progress(done, total)` counts replies.
    """
    if not all(prompts_ids):
        raise RecipeError("A prompt without a token predicts no first reply token: give each at least one token.")
    rows = [prompt + reply for prompt, reply in zip(prompts_ids, replies_ids, strict=True)]
    shortest_first = sorted(range(len(rows)), key=lambda index: len(rows[index]))

    kl = torch.zeros(len(rows))
    for start in range(0, len(rows), batch_size):
        batch = shortest_first[start : start + batch_size]
        ids, mask = padded([rows[index] for index in batch], 0, "right")
        policy = policy_logits(ids, mask)
        reference = reference_logits(ids, mask)
        # Row by row: two full-vocabulary float32 copies of a whole batch would be large.
        for k, index in enumerate(batch):
            # Position t predicts token t + 1.
            predicting = slice(len(prompts_ids[index]) - 1, len(rows[index]) - 1)
            kl[index] = _summed_kl(policy[k, predicting], reference[k, predicting])
        progress(start + len(batch), len(rows))
    return kl


def _summed_kl(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Sum over positions of KL(policy || reference), from logits of shape (positions, vocabulary)."""
    log_p = policy.float().log_softmax(-1)
    log_q = reference.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()

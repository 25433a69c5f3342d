"""The KL of a policy to its reference along sampled replies."""

from collections.abc import Callable

import torch

from ..errors import RecipeError
from ..models.generate import padded

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (input_ids, mask), both (b, T) -> logits (b, T, V)


@torch.no_grad()
def sequence_kl(
    policy_logits: Logits, reference_logits: Logits, prompts_ids: list[list[int]], replies_ids: list[list[int]], *,
    batch_size: int = 64,
) -> torch.Tensor:  # fmt: skip
    """KL(policy || reference) in nats along each reply: float32 of shape (n,), on the CPU.

    The sum over reply positions of the KL of the two next-token distributions over the full vocabulary. Over replies
    drawn from the policy at temperature 1 its mean estimates the KL of whole sequences (2305.18290, section 6.1), never
    below 0 and much quieter than the log-ratio of the sampled tokens. The callables get CPU tensors and move them.
    """
    if not all(prompts_ids):
        raise RecipeError("A prompt without a token predicts no first reply token: give each at least one token.")
    rows = [prompt + reply for prompt, reply in zip(prompts_ids, replies_ids, strict=True)]
    result = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        ids, mask = padded([rows[i] for i in batch], 0, "right")
        policy, reference = policy_logits(ids, mask), reference_logits(ids, mask)
        for k, i in enumerate(batch):  # row by row: two full-vocabulary float32 copies of a whole batch would be large
            at = slice(len(prompts_ids[i]) - 1, len(rows[i]) - 1)  # position t predicts token t + 1
            log_p, log_q = (logits[k, at].float().log_softmax(-1) for logits in (policy, reference))
            result[i] = (log_p.exp() * (log_p - log_q)).sum()
    return result

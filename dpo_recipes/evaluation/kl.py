"""The KL of a policy to its reference along sampled replies."""

from __future__ import annotations

import functools
from typing import Any

import torch
from rich.console import Console

from ..data.replies import Replies
from ..errors import RecipeError
from ..models.generate import Progress, padded
from ..models.reference import Reference
from ..progress import Stage
from .logits import Logits, lent_logits, logits_of, tokens_of_a_batch


def kl_to_reference(
    policy: Any,
    reference: Reference,
    ids: list[list[int]],
    replies: Replies,
    console: Console | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The KL along every reply of the policy, nats: float64 of shape (prompts, samples)."""
    policy_logits = functools.partial(logits_of, policy)
    reference_logits = lent_logits(reference.model)
    console = console or Console(quiet=True)
    return kl_along(policy, policy_logits, reference_logits, ids, replies, console, temperature)


def kl_along(
    model: Any,
    policy_logits: Logits,
    reference_logits: Logits,
    ids: list[list[int]],
    replies: Replies,
    console: Console,
    temperature: float = 1.0,
) -> torch.Tensor:
    """`sequence_kl` of every reply, nats: float64 of shape (prompts, samples); `model` is in eval mode meanwhile."""
    prompts_ids, replies_ids = ids_of_each(ids, replies)
    was_training = model.training
    model.eval()
    try:
        with Stage(console, "KL to the reference", unit="answers") as stage:
            kl = sequence_kl(
                policy_logits,
                reference_logits,
                prompts_ids,
                replies_ids,
                temperature=temperature,
                batch_tokens=tokens_of_a_batch(model),
                progress=stage.show,
            )
    finally:
        model.train(was_training)
    return kl.double().view(len(ids), -1)


def ids_of_each(ids: list[list[int]], replies: Replies) -> tuple[list[list[int]], list[list[int]]]:
    """(the prompt of each reply, the reply), as token ids, one behind the other."""
    prompts_ids: list[list[int]] = []
    replies_ids: list[list[int]] = []
    for prompt, sampled in zip(ids, replies, strict=True):
        prompts_ids += [prompt] * len(sampled)
        replies_ids += [reply.token_ids for reply in sampled]
    return prompts_ids, replies_ids


@torch.no_grad()
def sequence_kl(
    policy_logits: Logits,
    reference_logits: Logits,
    prompts_ids: list[list[int]],
    replies_ids: list[list[int]],
    *,
    temperature: float = 1.0,
    batch_size: int = 64,
    batch_tokens: int | None = None,
    progress: Progress = lambda done, total: None,
) -> torch.Tensor:
    """KL(policy || reference) in nats along each reply: float32 of shape (n,), on the CPU.

    The sum over reply positions of the KL of the two next-token distributions over the full vocabulary, both at
    `temperature`. Over replies drawn from the policy at that temperature its mean estimates the KL of whole sequences
    (2305.18290, section 6.1), never below 0 and much quieter than the log-ratio of the sampled tokens. The callables
    get CPU tensors and move them.
    A batch has at most `batch_size` rows and `batch_tokens` positions, padding with them, or one row that is longer.
    `progress(done, total)` counts replies.
    """
    if not all(prompts_ids):
        raise RecipeError("A prompt without a token predicts no first reply token: give each at least one token.")
    rows = [prompt + reply for prompt, reply in zip(prompts_ids, replies_ids, strict=True)]

    kl = torch.zeros(len(rows))
    done = 0
    for batch in batches([len(row) for row in rows], batch_size, batch_tokens):
        ids, mask = padded([rows[index] for index in batch], 0, "right")
        policy = policy_logits(ids, mask)
        reference = reference_logits(ids, mask)
        # Row by row: two full-vocabulary float32 copies of a whole batch would be large.
        for k, index in enumerate(batch):
            # Position t predicts token t + 1.
            predicting = slice(len(prompts_ids[index]) - 1, len(rows[index]) - 1)
            of_policy = policy[k, predicting].float() / temperature
            of_reference = reference[k, predicting].float() / temperature
            kl[index] = summed_kl(of_policy, of_reference)
        done += len(batch)
        progress(done, len(rows))
    return kl


def batches(lengths: list[int], batch_size: int, batch_tokens: int | None) -> list[list[int]]:
    """The indices of rows of such lengths, the shortest first: each padded to the longest of its batch."""
    together: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        positions = 0
        if together:
            positions = (len(together[-1]) + 1) * lengths[index]
        is_full = not together or len(together[-1]) == batch_size
        if is_full or (batch_tokens is not None and positions > batch_tokens):
            together.append([])
        together[-1].append(index)
    return together


def summed_kl(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Sum over positions of KL(policy || reference), from logits of shape (positions, vocabulary)."""
    log_p = policy.float().log_softmax(-1)
    log_q = reference.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()

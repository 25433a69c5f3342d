"""Sampling replies from a causal language model, the KL along them, and the best reward possible at a KL.

Both work on any Transformers model, with or without an adapter; nothing of a model's state is left changed, and the
global random numbers are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import RecipeError

Messages = list[dict[str, str]]
Logits = Callable[[Tensor, Tensor], Tensor]  # (input_ids, attention_mask), both (b, T) -> logits (b, T, V)

# What a published generation_config may carry and what would change the distribution being sampled: each is named
# here, because Transformers fills in from the model's own file whatever a call leaves open.
PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
PLAIN_SAMPLING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


@dataclass(frozen=True)
class Reply:
    """One sampled reply."""

    text: str  # decoded without special tokens, not stripped
    token_ids: list[int]  # what was sampled, with the end token when there is one
    ended: bool  # False: cut off by the cap on new tokens


def prompt_ids(tokenizer: Any, prompt: Messages | str, chat_template_kwargs: dict[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt, the chat template's opening of the reply included; a plain string has no template."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    rendered = tokenizer.apply_chat_template(
        prompt, tokenize=True, add_generation_prompt=True, return_dict=True, **(chat_template_kwargs or {})
    )
    return list(rendered["input_ids"])


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a reply: the tokenizer's, and those of the model's generation_config (one or a list)."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, (list, tuple)) else [own]
    return sorted({int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None})


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages | str],
    *,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    chat_template_kwargs: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Reply]]:
    """`samples` replies to each prompt, in the order given: a list of shape (prompts, samples).

    Plain ancestral sampling from softmax(logits / temperature); 0 means greedy, and then the replies to one prompt
    are equal. The same model, prompts, seed and batch_size give the same replies; another batch_size draws others.
    `progress(done, total)` counts replies.
    """
    if samples < 1 or max_new_tokens < 1 or batch_size < 1 or temperature < 0:
        raise RecipeError(
            f"Cannot sample with samples={samples}, max_new_tokens={max_new_tokens}, batch_size={batch_size}, "
            f"temperature={temperature}: the first three start at 1, the temperature at 0 (greedy)."
        )
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    settings: dict[str, Any] = PLAIN | {
        "max_new_tokens": max_new_tokens, "eos_token_id": ends or None, "pad_token_id": pad,
        "use_cache": True, "return_dict_in_generate": False, "do_sample": temperature > 0,
    }  # fmt: skip
    if temperature > 0:
        settings |= {**PLAIN_SAMPLING, "temperature": float(temperature)}
    encoded = [prompt_ids(tokenizer, prompt, chat_template_kwargs) for prompt in prompts]
    drawn = samples if temperature > 0 else 1
    # Neighbours of equal length need no padding; the sort is stable, so that the order is a function of the prompts.
    rows = sorted((i for i in range(len(prompts)) for _ in range(drawn)), key=lambda i: len(encoded[i]))
    replies: list[list[Reply]] = [[] for _ in prompts]
    was_training, device = model.training, model.device
    model.eval()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()), device_type="cuda"):
            torch.manual_seed(seed)
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                width = max(len(encoded[i]) for i in batch)
                ids = torch.tensor([[pad] * (width - len(encoded[i])) + encoded[i] for i in batch])
                mask = torch.tensor([[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in batch])
                output = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), **settings)
                for i, row in zip(batch, output[:, width:].tolist(), strict=True):
                    replies[i] += [_reply(row, ends, tokenizer)] * (samples // drawn)
                if progress is not None:
                    progress((start + len(batch)) * (samples // drawn), len(prompts) * samples)
    finally:
        model.train(was_training)
    return replies


def _reply(row: list[int], ends: list[int], tokenizer: Any) -> Reply:
    """A row of new tokens up to its first end token; behind it a batch holds padding only."""
    end = next((k for k, token in enumerate(row) if token in ends), None)
    text = tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Reply(text, row if end is None else row[: end + 1], end is not None)


@torch.no_grad()
def sequence_kl(
    policy_logits: Logits,
    reference_logits: Logits,
    prompts_ids: list[list[int]],
    replies_ids: list[list[int]],
    *,
    batch_size: int = 64,
    pad_token_id: int = 0,
) -> Tensor:
    """Sequence-level KL(policy || reference) in nats along each reply, float32 of shape (n,), on the CPU.

    For replies drawn from the policy at temperature 1 the mean estimates the KL of whole sequences, as in the DPO paper
    (2305.18290, section 6.1): the sum over reply positions of the KL of the two next-token distributions over the full
    vocabulary. That sum never falls below 0 and is much quieter than the log-ratio of the sampled tokens.

    Row i is prompts_ids[i] + replies_ids[i], padded on the right. The two callables get CPU tensors and move them.
    """
    if any(not prompt for prompt in prompts_ids):
        raise RecipeError("A prompt without a token predicts no first reply token: give each at least one token.")
    rows = [prompt + reply for prompt, reply in zip(prompts_ids, replies_ids, strict=True)]
    result = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([rows[i] + [pad_token_id] * (width - len(rows[i])) for i in batch])
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch])
        policy, reference = policy_logits(ids, mask), reference_logits(ids, mask)
        for k, i in enumerate(batch):  # row by row: two full-vocabulary float32 copies of a whole batch would be large
            at = slice(len(prompts_ids[i]) - 1, len(rows[i]) - 1)  # position t predicts token t + 1
            log_p, log_q = (logits[k, at].float().log_softmax(-1) for logits in (policy, reference))
            result[i] = (log_p.exp() * (log_p - log_q)).sum()
    return result


def question(prompt: Messages) -> str:
    """What a reward function gets as its prompt: the content of the last user message."""
    for message in reversed(prompt):
        if message["role"] == "user":
            return message["content"]
    raise RecipeError(f"The prompt {prompt!r} has no user message, so a reward has nothing to judge a reply by.")


def best_reward_at_kl(rewards: list[list[float]], kl: float) -> float:
    """The highest expected reward that a policy can have within `kl` nats of the reference, averaged over prompts.

    `rewards[i]` are the rewards of the reference's own samples for prompt i. The optimum of E[r] under a bound on the
    mean KL is pi* = pi_ref exp(r/b) / Z (2305.18290, eq. 4); its reward and KL follow from the samples with weights
    proportional to exp(r/b), and b is found by bisection so that the mean KL is `kl`.

    The estimate is biased downwards: the value is a concave function of the sampled distribution, so its expectation
    lies below the truth (Jensen). From n samples of a prompt no KL above log(n) can be seen; beyond the mean of
    log(n / samples with the highest reward) the result is the mean highest reward, a clear underestimate.
    """
    if not rewards or not all(rewards):
        raise RecipeError("The best reward at a KL needs at least one reference sample for each prompt, and a prompt.")
    if kl < 0:
        raise RecipeError(f"A KL divergence is not negative, but kl={kl}.")

    def tilted(inverse: float) -> tuple[float, float]:
        """Mean reward and mean KL of pi_ref exp(inverse * r) / Z."""
        reward = divergence = 0.0
        for row in rewards:
            top = max(row)  # subtracted so that the exponentials cannot overflow
            weights = [math.exp(inverse * (r - top)) for r in row]
            z = sum(weights)
            mean = sum(w * r for w, r in zip(weights, row, strict=True)) / z
            reward += mean
            divergence += inverse * (mean - top) - math.log(z / len(row))
        return reward / len(rewards), divergence / len(rewards)

    if kl >= sum(math.log(len(row) / row.count(max(row))) for row in rewards) / len(rewards):
        return sum(map(max, rewards)) / len(rewards)
    low, high = 0.0, 1.0
    while tilted(high)[1] < kl and high < 1e12:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tilted(middle)[1] < kl else (low, middle)
    return tilted((low + high) / 2)[0]

"""Sampling replies from a causal language model, the KL along them, and the best reward possible at a KL."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from ..data.replies import Messages, Reply
from ..errors import RecipeError

Prompt = Messages | str | list[int]  # in a chat template, as plain text, or as token ids
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (input_ids, mask), both (b, T) -> logits (b, T, V)

# What a model's own generation_config may carry, and Transformers would fill in, that changes the distribution sampled.
PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
PLAIN_SAMPLING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def prompt_ids(tokenizer: Any, prompt: Prompt, chat_template_kwargs: dict[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt, with the chat template's opening of the reply where it is messages."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if prompt and isinstance(prompt[0], int):
        return list(prompt)
    how = {"add_generation_prompt": True, "return_dict": False, **(chat_template_kwargs or {})}
    return list(tokenizer.apply_chat_template(prompt, **how))


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a reply: the tokenizer's, and those of the model's generation_config (one or a list)."""
    own = model.generation_config.eos_token_id
    return sorted({*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None})


def _padded(rows: list[list[int]], pad: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask), padded on that side to the longest row."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, -1, side)
    return ids.where(ids >= 0, pad), (ids >= 0).long()


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, samples: int = 1, max_new_tokens: int = 256,
    temperature: float = 1.0, seed: int = 0, batch_size: int = 64,
    chat_template_kwargs: dict[str, Any] | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Reply]]:  # fmt: skip
    """`samples` replies to each prompt, in the order given: a list of shape (prompts, samples).

    Plain ancestral sampling from softmax(logits / temperature); 0 means greedy, and then the replies to one prompt
    are equal. The same model, prompts, seed and batch_size give the same replies; another batch_size draws others.
    `progress(done, total)` counts replies. The model's mode and the global random numbers are left as they were.
    """
    if min(samples, max_new_tokens, batch_size) < 1 or temperature < 0:
        raise RecipeError(f"{samples=}, {max_new_tokens=} and {batch_size=} start at 1, {temperature=} at 0 (greedy).")
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    sampling = PLAIN_SAMPLING | {"temperature": float(temperature)} if temperature > 0 else {}
    settings: dict[str, Any] = PLAIN | sampling | {
        "max_new_tokens": max_new_tokens, "eos_token_id": ends or None, "pad_token_id": pad,
        "use_cache": True, "return_dict_in_generate": False, "do_sample": temperature > 0,
    }  # fmt: skip
    encoded = [prompt_ids(tokenizer, prompt, chat_template_kwargs) for prompt in prompts]
    drawn = samples if temperature > 0 else 1
    # Neighbours of equal length need no padding; the sort is stable, so that the order is a function of the prompts.
    rows = sorted((i for i in range(len(prompts)) for _ in range(drawn)), key=lambda i: len(encoded[i]))
    replies: list[list[Reply]] = [[] for _ in prompts]
    with ExitStack() as after, torch.random.fork_rng(devices=range(torch.cuda.device_count()), device_type="cuda"):
        after.callback(model.train, model.training)
        model.eval()
        torch.manual_seed(seed)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            ids, mask = _padded([encoded[i] for i in batch], pad, "left")
            output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **settings)
            for i, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                end = next((k for k, token in enumerate(row) if token in ends), None)  # behind it is padding only
                text = tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
                reply = Reply(text, row if end is None else row[: end + 1], end is not None)
                replies[i] += [reply] * (samples // drawn)
            progress((start + len(batch)) * (samples // drawn), len(prompts) * samples)
    return replies


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
        ids, mask = _padded([rows[i] for i in batch], 0, "right")
        policy, reference = policy_logits(ids, mask), reference_logits(ids, mask)
        for k, i in enumerate(batch):  # row by row: two full-vocabulary float32 copies of a whole batch would be large
            at = slice(len(prompts_ids[i]) - 1, len(rows[i]) - 1)  # position t predicts token t + 1
            log_p, log_q = (logits[k, at].float().log_softmax(-1) for logits in (policy, reference))
            result[i] = (log_p.exp() * (log_p - log_q)).sum()
    return result


def best_reward_at_kl(rewards: list[list[float]] | torch.Tensor, kl: float) -> float:
    """The highest expected reward that a policy can have within `kl` nats of the reference, averaged over prompts.

    `rewards`, of shape (prompts, samples), are those of the reference's own samples. The optimum of E[r] under a bound
    on the mean KL is pi* = pi_ref exp(r/b) / Z (2305.18290, eq. 4); its reward and KL follow from the samples with
    weights proportional to exp(r/b), and b is found by bisection so that the mean KL is `kl`. Biased downwards, as the
    value is concave in the sampled distribution. From n samples no KL above log(n) can be seen; beyond the mean of
    log(n / samples with the highest reward) the result is the mean highest reward.
    """
    r = torch.as_tensor(rewards, dtype=torch.float64)
    if not r.numel() or kl < 0:
        raise RecipeError(f"No best reward at kl={kl}: it takes a KL of 0 or more, and samples of each prompt.")

    def tilted(log_inverse: float) -> torch.Tensor:
        """Mean reward and mean KL of pi_ref exp(r/b) / Z, at log(1/b)."""
        log_p = (math.exp(log_inverse) * r).log_softmax(-1)
        return (log_p.exp() * torch.stack([r, log_p + math.log(r.shape[1])])).sum(-1).mean(-1)

    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tilted(middle)[1] < kl else (low, middle)
    return tilted(low)[0].item()

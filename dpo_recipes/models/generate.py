"""Sampling replies from a causal language model."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from ..data.replies import Messages, Reply
from ..errors import RecipeError

Prompt = Messages | str | list[int]  # in a chat template, as plain text, or as token ids

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


def padded(rows: list[list[int]], pad: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
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
            ids, mask = padded([encoded[i] for i in batch], pad, "left")
            output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **settings)
            for i, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                end = next((k for k, token in enumerate(row) if token in ends), None)  # behind it is padding only
                text = tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
                reply = Reply(text, row if end is None else row[: end + 1], end is not None)
                replies[i] += [reply] * (samples // drawn)
            progress((start + len(batch)) * (samples // drawn), len(prompts) * samples)
    return replies

"""Sampling replies from a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, TextStreamer

from ..data.replies import Messages, Replies, Reply
from ..errors import RecipeError

Prompt = Messages | str | list[int]  # in a chat template, as plain text, or as token ids
# (input_ids, attention_mask) of a batch of prompts, padded on the left -> what changes the logits of each next token
Guide = Callable[[torch.Tensor, torch.Tensor], LogitsProcessor]
Progress = Callable[[float, int], None]  # (how many are done, of how many)

# What a model's own generation_config may carry, and Transformers would fill in, that changes the distribution sampled.
PLAIN = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
}
# So too, but Transformers warns of these where nothing is sampled.
PLAIN_SAMPLING = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def prompt_ids(tokenizer: Any, prompt: Prompt, chat_template_kwargs: dict[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt, with the chat template's opening of the reply where it is messages."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if prompt and isinstance(prompt[0], int):
        return list(prompt)
    settings = {"add_generation_prompt": True, "return_dict": False, **(chat_template_kwargs or {})}
    return list(tokenizer.apply_chat_template(prompt, **settings))


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a reply: the tokenizer's, and those of the model's generation_config (one or a list)."""
    of_the_model = model.generation_config.eos_token_id
    if not isinstance(of_the_model, list):
        of_the_model = [of_the_model]
    return sorted({*of_the_model, tokenizer.eos_token_id} - {None})


def padded(rows: list[list[int]], padding_token: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask), both (rows, longest row), padded on that side, "left" or "right"."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    # No token is -1, so the mask is right even where a row holds the padding token itself.
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=-1, padding_side=side)
    is_token = ids >= 0
    return ids.where(is_token, padding_token), is_token.long()


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    chat_template_kwargs: dict[str, Any] | None = None,
    guide: Guide | None = None,
    progress: Progress = lambda done, total: None,
    streamer: Any = None,
) -> Replies:
    """`samples` replies to each prompt, in the order given: a list of shape (prompts, samples).

    Plain ancestral sampling from softmax(logits / temperature); 0 means greedy, and then the replies to one prompt
    are equal. The same model, prompts, seed and batch_size give the same replies; another batch_size draws others.
    `guide` changes the logits before a token is drawn, as guided.py does.
    `progress(done, total)` counts replies, those that are being written by the share of their tokens; a single reply
    may be followed by one of Transformers' streamers. The model's mode and the global random numbers are left as they
    were.
    """
    if min(samples, max_new_tokens, batch_size) < 1 or temperature < 0:
        raise RecipeError(f"{samples=}, {max_new_tokens=} and {batch_size=} start at 1, {temperature=} at 0 (greedy).")
    ends = end_tokens(model, tokenizer)
    padding_token = _padding_token(tokenizer, ends)
    settings = _settings(temperature, max_new_tokens, ends, padding_token)

    # A greedy reply is computed once and given `samples` times.
    draws = samples if temperature > 0 else 1
    copies = samples // draws
    encoded = [prompt_ids(tokenizer, prompt, chat_template_kwargs) for prompt in prompts]
    order = _shortest_first(encoded, draws)

    replies: Replies = [[] for _ in prompts]
    with _lent_for_sampling(model, seed):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask = padded([encoded[index] for index in batch], padding_token, "left")
            writing = _Writing(
                progress,
                written=start * copies,
                in_batch=len(batch) * copies,
                total=len(prompts) * samples,
                prompt_tokens=ids.shape[1],
                max_new_tokens=max_new_tokens,
            )
            ids, mask = ids.to(model.device), mask.to(model.device)
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([guide(ids, mask)] if guide else []),
                stopping_criteria=StoppingCriteriaList([writing]),
                streamer=streamer,
                **settings,
            )
            new_tokens = output[:, ids.shape[1] :].tolist()
            for index, tokens in zip(batch, new_tokens, strict=True):
                replies[index] += [_reply(tokenizer, tokens, ends)] * copies
            progress((start + len(batch)) * copies, len(prompts) * samples)
    return replies


class Growing(TextStreamer):
    """A streamer that hands on the text of a reply so far, word by word, without its special tokens."""

    def __init__(self, tokenizer: Any, shown: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.shown = shown
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.shown(self.text)


class _Writing(StoppingCriteria):
    """Stops nothing: it is asked after each new token, and tells how far a batch of replies is."""

    def __init__(
        self, progress: Progress, *, written: int, in_batch: int, total: int, prompt_tokens: int, max_new_tokens: int
    ):
        self.progress = progress
        self.written = written  # replies of the batches before
        self.in_batch = in_batch
        self.total = total
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        rows, tokens = input_ids.shape
        share = (tokens - self.prompt_tokens) / self.max_new_tokens
        if share < 1:  # all of the batch is told of when it is done
            self.progress(self.written + share * self.in_batch, self.total)
        return torch.zeros(rows, dtype=torch.bool, device=input_ids.device)


def _padding_token(tokenizer: Any, ends: list[int]) -> int:
    """The tokenizer's, else any token: the mask hides it in a prompt, and behind a reply's end it is cut off."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return ends[0] if ends else 0


def _settings(temperature: float, max_new_tokens: int, ends: list[int], padding_token: int) -> dict[str, Any]:
    """The arguments of Transformers' `generate`, none of them left to the model's own generation_config."""
    settings: dict[str, Any] = {
        **PLAIN,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": ends or None,
        "pad_token_id": padding_token,
        "use_cache": True,
        "return_dict_in_generate": False,
        "do_sample": temperature > 0,
    }
    if temperature > 0:
        settings |= {**PLAIN_SAMPLING, "temperature": float(temperature)}
    return settings


def _shortest_first(encoded: list[list[int]], draws: int) -> list[int]:
    """The index of each prompt `draws` times, by length: neighbours of equal length need no padding.

    The sort is stable, so that the order is a function of the prompts.
    """
    order: list[int] = []
    for index in range(len(encoded)):
        order += [index] * draws
    return sorted(order, key=lambda index: len(encoded[index]))


@contextmanager
def _lent_for_sampling(model: Any, seed: int) -> Iterator[None]:
    """The model in eval mode and the random numbers of that seed; afterwards both are as they were."""
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()), device_type="cuda"):
            torch.manual_seed(seed)
            yield
    finally:
        model.train(was_training)


def _reply(tokenizer: Any, tokens: list[int], ends: list[int]) -> Reply:
    """What was sampled up to and with its first end token, behind which there is padding only."""
    end = next((position for position, token in enumerate(tokens) if token in ends), None)
    if end is None:
        return Reply(_text(tokenizer, tokens), tokens, ended=False)
    return Reply(_text(tokenizer, tokens[:end]), tokens[: end + 1], ended=True)


def _text(tokenizer: Any, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

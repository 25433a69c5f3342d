"""The three sequences of a pair, as text and as ids: its prompt, the prompt with chosen, the prompt with rejected.

Leans on TRL 1.16: how `DPOTrainer._prepare_dataset` renders a conversation, and ends plain text.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import chain
from typing import Any

REFUSED = "the chat template refuses it"


def row_of_batch(batch: dict[str, list], pair: int) -> dict[str, Any]:
    return {name: column[pair] for name, column in batch.items()}


def render(batch: dict[str, list], tokenizer: Any, text: bool) -> tuple[list[list[str]], list[str]]:
    """(the three strings of each pair: prompt, prompt with chosen, prompt with rejected; why the template refuses it).

    Of a pair that is refused the strings are empty, and of any other the reason is.
    """
    strings: list[list[str]] = []
    refusals: list[str] = []
    for pair in range(len(batch["row"])):
        row = row_of_batch(batch, pair)
        refusal = ""
        try:
            strings.append(_plain_strings(row, tokenizer) if text else rendered_strings(row, tokenizer))
        except Exception as error:  # of Jinja, or of whatever a template does to a row that it does not expect
            strings.append(["", "", ""])
            words = str(error) or type(error).__name__
            refusal = f"{REFUSED}: {words.rstrip('.')[:200]}"
        refusals.append(refusal)
    return strings, refusals


def sequences(strings: list[list[str]], tokenizer: Any, text: bool) -> tuple[list, list, list]:
    """The ids of the prompts, of the prompts with chosen, and of the prompts with rejected."""
    ids = None if text else _ids_of_parts(strings, tokenizer)
    if ids is None:
        ids = _ids(list(chain.from_iterable(strings)), tokenizer, text)
    return ids[0::3], ids[1::3], ids[2::3]


def _ids(strings: list[str], tokenizer: Any, text: bool) -> list[list[int]]:
    # A template writes the special tokens itself; plain text gets those that the tokenizer adds.
    tokenized = tokenizer(strings, add_special_tokens=text, return_attention_mask=False, verbose=False)
    return tokenized["input_ids"]


def _ids_of_parts(strings: list[list[str]], tokenizer: Any) -> list[list[int]] | None:
    """The ids of all strings, where what the three of a pair share is tokenised once; None where nothing can be shared.

    They should never be others than those of the whole strings, which is looked at in the first pair; for a tokenizer
    that differs there nothing is saved.
    """
    marks = _marks(tokenizer)
    starts = [_shared_start(of_pair, marks) for of_pair in strings]
    if not any(starts):
        return None
    beginnings = [of_pair[0][:start] for of_pair, start in zip(strings, starts, strict=True)]
    endings = [string[start:] for of_pair, start in zip(strings, starts, strict=True) for string in of_pair]
    ids_of_beginnings = _ids(beginnings, tokenizer, text=False)
    ids_of_endings = _ids(endings, tokenizer, text=False)
    ids = [ids_of_beginnings[place // 3] + ending for place, ending in enumerate(ids_of_endings)]
    if ids[:3] != _ids(strings[0], tokenizer, text=False):
        return None
    return ids


def _marks(tokenizer: Any) -> tuple[str, ...]:
    """Texts of special tokens at which a text can be cut: the ids of both parts are those of the whole.

    The tokenizers library looks for such tokens first, and tokenises what stands between them part by part. Not with a
    token that takes white space before it too, that must be a word of its own, or that is looked for in normalised
    text.
    """
    if not tokenizer.is_fast or getattr(tokenizer, "split_special_tokens", False):
        return ()
    added = tokenizer.added_tokens_decoder.values()
    plain = [token for token in added if token.special and not (token.lstrip or token.single_word or token.normalized)]
    return _never_overlapped(tuple(token.content for token in plain), tuple(token.content for token in added))


@cache
def _never_overlapped(marks: tuple[str, ...], tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the marks in whose place none of the tokens can be found: none begins with another's end."""
    ends = {token[place:] for token in tokens for place in range(len(token))}
    free = []
    for mark in marks:
        starts = {mark[:size] for size in range(1, len(mark))}
        stands_in_others = any(mark in token and mark != token for token in tokens)
        if not stands_in_others and not starts & ends:
            free.append(mark)
    return tuple(free)


def _shared_start(strings: list[str], marks: tuple[str, ...]) -> int:
    """Where the last of the marks in a prompt begins, if both sides go on from there; 0 where nothing is shared."""
    prompt, *sides = strings
    start = max([0, *(prompt.rfind(mark) for mark in marks)])
    if all(side.startswith(prompt[:start]) for side in sides):
        return start
    return 0


def _plain_strings(row: dict[str, Any], tokenizer: Any) -> list[str]:
    """Prompt, prompt with chosen, prompt with rejected. As in TRL, an end token follows a side that has none."""
    end = tokenizer.eos_token
    sides = [row[side].removesuffix(end) + end for side in ("chosen", "rejected")]
    return [row["prompt"], row["prompt"] + sides[0], row["prompt"] + sides[1]]


def rendered_strings(row: dict[str, Any], tokenizer: Any) -> list[str]:
    """Prompt, prompt with chosen, prompt with rejected, as the chat template writes them."""
    tools = row.get("tools")
    options = {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
        "tokenize": False,
    }
    with_chosen = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], **options)
    with_rejected = tokenizer.apply_chat_template(row["prompt"] + row["rejected"], **options)
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **options)
    return [prompt, with_chosen, with_rejected]

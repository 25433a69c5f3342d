"""One raw row -> its pair with the hashes that tell it from others, or the reason to drop it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..errors import RecipeError
from ..formats.messages import Drop, Row
from ..formats.oddities import odd_bits
from ..formats.readers import PAIR, PASSED_ON, explicit_pair, is_repeated_header
from . import sources
from .sources import Span

BY_READER = "dropped by the reader"
PUNCTUATION = ".,;:!?\"'`()[]*_\u2018\u2019\u201c\u201d\u2026\u3001\u3002\uff0c\uff01\uff1f\uff1a\uff1b"
KEYS = ("prompt_key", "pair_key", "swapped_key")  # 64 bits of the SHA-256 of what they name
NEAR = ("near_prompt_key", "near_pair_key")  # the same of what is left without punctuation: see `_near`
ODD = ("odd_bits", "chosen_key", "rejected_key")  # what may be odd about a pair: ODDITIES, and a hash of each side


def read_row(
    example: Row,
    number: int,
    *,
    form: str,
    kwargs: Row,
    strict: bool,
    may_be_rendered: bool,
    label: str,
    spans: list[Span],
    reader: Any,
    where: str,
) -> Row:
    """One pair with its KEYS and NEAR, or a row of None beside the reason to drop it and what was found."""
    name = row_name(number, label, spans)
    raw = sources.row_of(example)
    row: Row | None = raw
    if reader and not is_repeated_header(raw):
        row = _read_by_user(reader, raw, f"{where}, row {name}: data.reader")
        form, strict = "preference", False

    pair = Drop(BY_READER) if row is None else explicit_pair(row, form, strict=strict, may_be_rendered=may_be_rendered)
    if isinstance(pair, Drop):
        reason, found = (*pair.args, "")[:2]
        nothing = dict.fromkeys((*PAIR, *PASSED_ON)) | dict.fromkeys((*KEYS, *NEAR, *ODD), 0)
        return {**nothing, "row": name, "dropped": reason, "found": found}
    pair["chat_template_kwargs"] |= kwargs  # the recipe's over the row's own
    odd = {"odd_bits": odd_bits(pair, raw)}
    for side in ("chosen", "rejected"):
        odd[f"{side}_key"] = _hash(json.dumps(pair[side], sort_keys=True).encode())
    return {**pair, **_keys(pair, form), **_near_keys(pair), **odd, "row": name, "dropped": "", "found": ""}


def row_name(number: int, label: str, spans: list[Span]) -> str:
    """The number in the split, whatever slice of it was picked; behind the split's name where there are several."""
    for split, first, count in spans:
        if number < count:
            split_label = f"{split}:" if len(spans) > 1 else ""
            return f"{label}{split_label}{first + number}"
        number -= count
    return f"{label}{number}"


def _read_by_user(reader: Any, row: Row, where: str) -> Row | None:
    """What the user's own function makes of a row: prompt, chosen and rejected, or None to drop it."""
    try:
        pair = reader(row)
    except Exception as error:
        raise RecipeError(f"{where} raised {type(error).__name__}: {error}. None would drop the row.") from error
    if pair is not None and not (isinstance(pair, dict) and {*PAIR} <= pair.keys()):
        raise RecipeError(f"{where} returned {pair!r:.60}, not a dict with prompt, chosen and rejected, or None.")
    return pair


def _keys(pair: Row, form: str) -> dict[str, int]:
    """The KEYS of a pair: of what it asks, of all of it, and of the same pair the other way round."""
    prompt, chosen, rejected, *passed_on = (
        json.dumps(pair[column], sort_keys=True).encode() for column in (*PAIR, *PASSED_ON)
    )
    # Prompts that differ in case and white space alone ask the same.
    same_question = [" ".join(question.casefold().split()) for question in _questions(pair)]
    return {
        "prompt_key": _hash(json.dumps(same_question).encode()),
        "pair_key": _hash(prompt, chosen, rejected, *passed_on),
        "swapped_key": _hash(prompt, rejected, chosen, *passed_on),
    }


def _questions(pair: Row) -> list[str]:
    """What is asked: the user's messages, or all of a prompt of text."""
    if isinstance(pair["prompt"], str):
        return [pair["prompt"]]
    return [message["content"] for message in pair["prompt"] if message["role"] == "user"]


def _near_keys(pair: Row) -> dict[str, int]:
    """The NEAR of a pair: the same for two that differ in case, white space and the punctuation around words alone."""
    questions = [_near(question) for question in _questions(pair)]
    sides = []
    for side in ("chosen", "rejected"):
        texts = [pair[side]] if isinstance(pair[side], str) else [message["content"] for message in pair[side]]
        sides.append([_near(text) for text in texts])
    return {
        "near_prompt_key": _hash(json.dumps(questions).encode()),
        "near_pair_key": _hash(json.dumps([questions, *sides]).encode()),
    }


def _near(text: str) -> str:
    """The words in lower case, without the punctuation around them: what stands in a word, as in 3.5, stays."""
    words = [word.strip(PUNCTUATION) for word in text.casefold().split()]
    return " ".join(word for word in words if word)


def _hash(*texts: bytes) -> int:
    """64 bits of the SHA-256 of the texts, as a signed integer."""
    return int.from_bytes(hashlib.sha256(b"|".join(texts)).digest()[:8], "little", signed=True)

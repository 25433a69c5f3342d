"""The messages of two sides -> their pair, or the reason why there is nothing to learn from it."""

from __future__ import annotations

import unicodedata
from itertools import takewhile
from typing import Any

from .messages import UNSEEN, Drop, Message, Row, is_empty, malformed

OPENING = 500  # characters at the start of two sides, which mostly tell them apart
REPLY_ROLES = ("assistant", "tool")  # of the messages of one side: with tools a reply is several turns


def pair_of_conversations(chosen: list[Message], rejected: list[Message]) -> Row:
    """The pair of two whole conversations: the prompt is the start that they share."""
    shared = shared_start(chosen, rejected)
    return _usable_pair(chosen[:shared], chosen[shared:], rejected[shared:])


def pair_of_replies(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Row:
    """The pair of a prompt and two replies."""
    for message in chosen + rejected:
        if message["role"] not in REPLY_ROLES:
            raise malformed("chosen or rejected", "is a whole conversation beside a prompt", message)
    return _usable_pair(prompt, chosen, rejected)


def _usable_pair(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Row:
    """The pair, if there is something to learn from it; Drop with the reason otherwise."""
    sides = (chosen, rejected)
    if any(side[-1]["role"] != "assistant" for side in sides if side):
        raise Drop("last role is not assistant")
    if not all(_says_something(side) for side in sides):
        raise Drop("empty side")
    if chosen == rejected:
        raise Drop("identical sides")
    if _look_alike(chosen, rejected):
        raise Drop("identical sides but for white space or marks that are not seen")
    if any(message["role"] not in REPLY_ROLES for message in chosen + rejected):
        raise Drop("prompts differ between sides")

    question = prompt[-1] if prompt else None
    if question is None or question["role"] in ("system", "developer") or is_empty(question["content"]):
        raise Drop("empty prompt")
    if question["role"] == "assistant":  # a template would open one more turn of the assistant
        raise Drop("prompt ends with the assistant")

    # Sides that are the prompt and the reply in one text. A short question may well be how an answer starts.
    asked = question["content"].strip()
    if len(asked) >= 20 and all(side[0]["content"].strip().startswith(asked) for side in sides):
        raise Drop("both sides repeat the prompt")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _says_something(side: list[Message]) -> bool:
    """Whether a side ends with text or with a call of a tool."""
    return bool(side) and (not is_empty(side[-1]["content"]) or bool(side[-1].get("tool_calls")))


def _look_alike(chosen: list[Message], rejected: list[Message]) -> bool:
    """Whether a reader sees no difference between two sides."""
    openings = [_seen_text(side[0]["content"][:OPENING]).split(" ")[:-1] for side in (chosen, rejected)]
    if any(word != other for word, other in zip(*openings, strict=False)):
        return False  # which is quick, and so with nearly all pairs
    sides = [
        [{**message, "content": _seen_text(message["content"])} for message in side] for side in (chosen, rejected)
    ]
    return sides[0] == sides[1]


def _seen_text(text: str) -> str:
    """The text as it is seen: runs of white space are one blank, marks that are not seen are gone, and a letter and its
    accent are one letter, however Unicode spells them.
    """
    if not text.isascii():
        text = UNSEEN.sub("", unicodedata.normalize("NFC", text))
    return " ".join(text.split())


def shared_start(chosen: list[Any], rejected: list[Any]) -> int:
    """How many leading items two lists share, leaving at least one in each."""
    neighbours = zip(chosen[:-1], rejected[:-1], strict=False)
    return len(list(takewhile(lambda items: items[0] == items[1], neighbours)))

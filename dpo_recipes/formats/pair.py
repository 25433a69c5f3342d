"""The messages of two sides -> a pair for each turn to learn from, or the reason why there is nothing to learn."""

from __future__ import annotations

import unicodedata
from itertools import takewhile
from typing import Any, NamedTuple

from .messages import UNSEEN, Drop, Message, Row, is_empty, malformed
from .pair_weights import weight_of_replies, without_weights

OPENING = 500  # characters at the start of two sides, which mostly tell them apart
SAME_LAST_TURN = "only earlier turns differ, which data.turns='all' reads"
REPLY_ROLES = ("assistant", "tool")  # of the messages of one reply: with tools a reply is several of them


# Two sides -> what they share, and what differs


def pair_of_conversations(chosen: list[Message], rejected: list[Message]) -> Row:
    """The prompt, chosen and rejected of two whole conversations: the prompt is the start that they share."""
    shared = shared_start(without_weights(chosen), without_weights(rejected))
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def pair_of_replies(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Row:
    """The prompt, chosen and rejected of a prompt and two replies, which may go on with more turns."""
    for side in (chosen, rejected):
        if side and side[0]["role"] not in REPLY_ROLES:
            raise malformed("chosen or rejected", "is a whole conversation beside a prompt", side[0])
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def shared_start(chosen: list[Any], rejected: list[Any]) -> int:
    """How many leading items two lists share, leaving at least one in each."""
    neighbours = zip(chosen[:-1], rejected[:-1], strict=False)
    return len(list(takewhile(lambda items: items[0] == items[1], neighbours)))


# A pair of sides -> a pair for each turn


class Turn(NamedTuple):
    """One reply of a side, and the messages of others that follow it: none after the last."""

    reply: list[Message]
    question: list[Message]


def pairs_of_turns(pair: Row, *, every_turn: bool) -> list[Row | Drop]:
    """The pair of the last turn of two sides, or of `every_turn` that differs; each usable, or why it is not.

    A pair has prompt, chosen, rejected, `weight`, `turns`, which is how many the sides have, and `differs_earlier`,
    which says of a last turn that turns before it differ, too. Its prompt has the turns of the chosen side, as one
    prompt must do for both.
    """
    if isinstance(pair["prompt"], str):
        return [_usable_text(pair)]
    sides = (pair["chosen"], pair["rejected"])
    if any(side[-1]["role"] != "assistant" for side in sides if side):
        return [Drop("last role is not assistant")]
    if not all(sides):
        return [Drop("empty side")]
    turns = _turns(*sides)
    if turns is None:
        return [Drop("prompts differ between sides")]

    pairs: list[Row | Drop] = []
    prompt = list(pair["prompt"])
    differs_earlier = False
    for number, (chosen, rejected) in enumerate(turns):
        differs = without_weights(chosen.reply) != without_weights(rejected.reply)
        is_last = number == len(turns) - 1
        if is_last and not every_turn:
            pairs.append(_usable_turn(prompt, chosen.reply, rejected.reply, differs_earlier, len(turns)))
        elif every_turn and (differs or len(turns) == 1):
            pairs.append(_usable_turn(prompt, chosen.reply, rejected.reply, False, len(turns)))
        prompt = [*prompt, *chosen.reply, *chosen.question]
        if is_last and differs_earlier and not differs and not every_turn:
            return [Drop(SAME_LAST_TURN)]
        differs_earlier = differs_earlier or differs
    return pairs or [Drop("identical sides")]


def _turns(chosen: list[Message], rejected: list[Message]) -> list[tuple[Turn, Turn]] | None:
    """The turns of both sides; None where others say other things between the replies, or at another place."""
    of_chosen, of_rejected = _turns_of_side(chosen), _turns_of_side(rejected)
    questions = [without_weights(turn.question) for turn in of_chosen]
    if questions != [without_weights(turn.question) for turn in of_rejected]:
        return None
    if any(not turn.reply for turn in of_chosen + of_rejected):
        return None
    return list(zip(of_chosen, of_rejected, strict=True))


def _turns_of_side(side: list[Message]) -> list[Turn]:
    turns = [Turn([], [])]
    for message in side:
        is_reply = message["role"] in REPLY_ROLES
        if is_reply and turns[-1].question:
            turns.append(Turn([], []))
        if is_reply:
            turns[-1].reply.append(message)
        else:
            turns[-1].question.append(message)
    return turns


def _usable_turn(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], differs_earlier: bool, turns: int
) -> Row | Drop:
    try:
        _refuse_unusable(without_weights(prompt), without_weights(chosen), without_weights(rejected))
        weight = weight_of_replies(chosen, rejected)
    except Drop as drop:
        return drop
    return {
        "prompt": without_weights(prompt),
        "chosen": without_weights(chosen),
        "rejected": without_weights(rejected),
        "weight": weight,
        "turns": turns,
        "differs_earlier": differs_earlier,
    }


def _usable_text(pair: Row) -> Row | Drop:
    """A pair of strings as they are, which are judged as a question and two replies."""
    messages = {}
    for column, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        messages[column] = [{"role": role, "content": pair[column]}] if pair[column] else []
    try:
        _refuse_unusable(**messages)
    except Drop as drop:
        return drop
    return {**pair, "weight": 1.0, "turns": 1, "differs_earlier": False}


# Whether there is something to learn


def _refuse_unusable(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> None:
    """Drop with the reason where there is nothing to learn from a pair."""
    sides = (chosen, rejected)
    if not all(_says_something(side) for side in sides):
        raise Drop("empty side")
    if chosen == rejected:
        raise Drop("identical sides")
    if _look_alike(chosen, rejected):
        raise Drop("identical sides but for white space or marks that are not seen")

    question = prompt[-1] if prompt else None
    if question is None or question["role"] in ("system", "developer") or is_empty(question["content"]):
        raise Drop("empty prompt")
    if question["role"] == "assistant":  # a template would open one more turn of the assistant
        raise Drop("prompt ends with the assistant")

    # Sides that are the prompt and the reply in one text. A short question may well be how an answer starts.
    asked = question["content"].strip()
    if len(asked) >= 20 and all(side[0]["content"].strip().startswith(asked) for side in sides):
        raise Drop("both sides repeat the prompt")


def _says_something(side: list[Message]) -> bool:
    """Whether a side ends with text or with a call of a tool."""
    return bool(side) and (not is_empty(side[-1]["content"]) or bool(side[-1].get("tool_calls")))


def _look_alike(chosen: list[Message], rejected: list[Message]) -> bool:
    """Whether a reader sees no difference between two sides."""
    openings = [_seen_text(side[0]["content"][:OPENING]).split(" ")[:-1] for side in (chosen, rejected)]
    if any(word != other for word, other in zip(*openings, strict=False)):
        return False  # which is quick, and so with nearly all pairs
    return _as_seen(chosen) == _as_seen(rejected)


def _as_seen(side: list[Message]) -> list[Message]:
    return [{**message, "content": _seen_text(message["content"])} for message in side]


def _seen_text(text: str) -> str:
    """The text as it is seen: runs of white space are one blank, marks that are not seen are gone, and a letter and its
    accent are one letter, however Unicode spells them.
    """
    if not text.isascii():
        text = UNSEEN.sub("", unicodedata.normalize("NFC", text))
    return " ".join(text.split())

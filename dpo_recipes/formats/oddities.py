"""What is odd about pairs that can be read: counted of each, and said where there are many; nothing is dropped."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .messages import Row

# Columns of scores beside the sides, of the chosen and of the rejected one, by the names that data sets give them.
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen_reward", "rejected_reward"),
    ("reward_chosen", "reward_rejected"),
)
ALL_SCORE_COLUMNS = {column for columns in SCORE_COLUMNS for column in columns}

PLACEHOLDERS = ("nan", "none", "null", "n/a", "undefined", "todo", "[removed]", "[deleted]")
REPLACEMENT = "\ufffd"  # what a decoder puts in the place of bytes that it cannot read
UTF8_AS_LATIN1 = re.compile("\u00c3[\u0080-\u00bf]|\u00e2\u20ac")  # such as two letters for an accented one

# Beside the text of a message, by the names that chat templates read.
THOUGHTS = ("reasoning_content", "thinking")


def _sides(pair: Row) -> list[str]:
    """The text of each side, of several messages the last."""
    sides = (pair["chosen"], pair["rejected"])
    return [side if isinstance(side, str) else side[-1]["content"] for side in sides]


def _is_placeholder(pair: Row, raw: Row) -> bool:
    return any(side.strip().lower() in PLACEHOLDERS for side in _sides(pair))


def _repeats_prompt(pair: Row, raw: Row) -> bool:
    prompt = pair["prompt"]
    question = (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip()
    return any(side.lstrip().startswith(question) for side in _sides(pair))


def _is_wrongly_decoded(pair: Row, raw: Row) -> bool:
    texts = [side for side in _sides(pair) if not side.isascii()]
    return any(REPLACEMENT in text or UTF8_AS_LATIN1.search(text) for text in texts)


def _scores(raw: Row) -> tuple[float, float] | None:
    """The scores of the chosen and the rejected side; None where the row has none."""
    for chosen, rejected in SCORE_COLUMNS:
        if chosen in raw and rejected in raw:
            try:
                return float(raw[chosen]), float(raw[rejected])
            except (TypeError, ValueError):
                return None
    return None


def _is_scored_lower(pair: Row, raw: Row) -> bool:
    scores = _scores(raw)
    return scores is not None and scores[0] < scores[1]


def _is_scored_alike(pair: Row, raw: Row) -> bool:
    scores = _scores(raw)
    return scores is not None and scores[0] == scores[1]


def _differs_earlier(pair: Row, raw: Row) -> bool:
    return bool(pair.get("differs_earlier"))


def _one_side_thinks(pair: Row, raw: Row) -> bool:
    chosen_thinks, rejected_thinks = (_thinks(side) for side in (pair["chosen"], pair["rejected"]))
    return chosen_thinks != rejected_thinks


def _thinks(side: str | list[Row]) -> bool:
    """Whether a side opens with a thought, even an empty one; or has one beside its text."""
    text = side if isinstance(side, str) else side[-1]["content"]
    beside = not isinstance(side, str) and any(side[-1].get(name) for name in THOUGHTS)
    return beside or text.lstrip().startswith("<think>")


class Oddity(NamedTuple):
    """Something odd: how a pair is known to have it, the share of pairs above which it is said, and what is said."""

    is_odd: Callable[[Row, Row], bool]  # of a pair and the raw row that it was read from
    said_above: float
    what: str
    advice: str


ODDITIES = {
    "placeholders": Oddity(
        _is_placeholder,
        0.05,
        "have a side that is only a word for nothing, such as nan or None.",
        "Was an empty cell written as text? Drop these rows.",
    ),
    "repeated prompt": Oddity(
        _repeats_prompt,
        0.2,
        "have a side that starts with its prompt.",
        "The model would learn to repeat the question: take it out of the sides.",
    ),
    "decoding": Oddity(
        _is_wrongly_decoded,
        0.01,
        "hold text that was decoded wrongly, such as U+FFFD or \u00c3\u00a9.",
        "Write the file again from its source, in UTF-8.",
    ),
    "scores": Oddity(
        _is_scored_lower,
        0.01,
        "have a chosen side that is scored below the rejected one.",
        "If higher is better, chosen and rejected are swapped.",
    ),
    "equal scores": Oddity(
        _is_scored_alike,
        0.05,
        "have the same score for both sides.",
        "Neither is better by it: drop ties with data.reader.",
    ),
    "thoughts": Oddity(
        _one_side_thinks,
        0.01,
        "have a thought (<think>, or reasoning_content) on one side alone.",
        "Whether to think would be learned beside what is asked: give both sides a thought, or take it out of both.",
    ),
    "earlier turns": Oddity(
        _differs_earlier,
        0.0,
        "have sides that differ before their last turn; the earlier turns of the chosen side are the prompt of both.",
        "The rejected reply was written behind others. data.turns=all makes a pair of each turn that differs.",
    ),
}


def odd_bits(pair: Row, raw: Row) -> int:
    """Which of ODDITIES a pair has: bit 0 is the first of them."""
    bits = 0
    for place, oddity in enumerate(ODDITIES.values()):
        if oddity.is_odd(pair, raw):
            bits |= 1 << place
    return bits

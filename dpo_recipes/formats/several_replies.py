"""Several replies to one prompt, in an order or in two lists -> the rows of their pairs."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from .messages import Drop, Row, is_empty, malformed, number, typed

# The keys of a reply's text, and of its place in the order, where each reply is an object.
TEXT_KEYS = ("response", "completion", "answer", "text", "content")
SCORE_KEYS = ("score", "overall_score", "rating", "reward")  # higher is better
RANK_KEY = "rank"  # 1 is the best


class Pairing(NamedTuple):
    """How the replies to one prompt become pairs."""

    kind: str = "all"  # as data.pairing takes it
    seed: int = 0  # of best_random


class Candidate(NamedTuple):
    """A pair of replies of one row."""

    label: str  # which replies they are, by their place: "[0>2]"; "" for a row that has one pair
    row: Row | Drop  # the row as if it had this pair alone, or why the replies make none


def candidates_of_lists(row: Row, pairing: Pairing) -> list[Candidate]:
    """The pairs of a row whose chosen or rejected column is a list of replies: each chosen one over each rejected one.

    The replies of a list are text, or lists of messages. A list of messages is one reply.
    """
    chosen, rejected = _replies(row.get("chosen")), _replies(row.get("rejected"))
    if len(chosen) == 1 and len(rejected) == 1:
        return [Candidate("", {**row, "chosen": chosen[0], "rejected": rejected[0]})]
    if pairing.kind == "best_worst":
        column = "rejected" if len(rejected) > 1 else "chosen"
        raise malformed(column, "has no order, so that none is the worst for data.pairing='best_worst'", row[column])
    if pairing.kind == "best_random":
        if len(chosen) > 1:
            raise malformed("chosen", "has no order, so that none is the best for data.pairing='best_random'", chosen)
        place = _draw(len(rejected), row, pairing.seed)
        return [Candidate(f"[{place}]", {**row, "chosen": chosen[0], "rejected": rejected[place]})]

    candidates: list[Candidate] = []
    for first, better in enumerate(chosen):
        for second, worse in enumerate(rejected):
            label = f"[{second}]" if len(chosen) == 1 else f"[{first}>{second}]"
            candidates.append(Candidate(label, {**row, "chosen": better, "rejected": worse}))
    return candidates


def _replies(value: Any) -> list[Any]:
    """The replies of a column; one alone where it is no list of several."""
    is_list = isinstance(value, list) and bool(value)
    if is_list and (all(isinstance(item, str) for item in value) or all(isinstance(item, list) for item in value)):
        return value
    return [value]


def candidates_of_order(row: Row, pairing: Pairing) -> list[Candidate]:
    """The pairs of a row of responses that scores or ranks put in an order; equal ones make none."""
    replies, values = _ordered_replies(row)
    if len(replies) < 2:
        raise Drop("fewer than two replies")
    best_first = sorted(range(len(replies)), key=lambda place: -values[place])  # equal ones in the order of the row
    best, worst = best_first[0], best_first[-1]
    lower = [place for place in best_first if values[place] < values[best]]

    if pairing.kind == "best_worst" or (pairing.kind == "best_random" and not lower):
        places = [(best, worst)]
    elif pairing.kind == "best_random":
        places = [(best, lower[_draw(len(lower), row, pairing.seed)])]
    else:
        places = []
        for index, better in enumerate(best_first):
            places += [(better, worse) for worse in best_first[index + 1 :]]

    candidates: list[Candidate] = []
    for better, worse in places:
        if values[better] == values[worse]:
            candidates.append(Candidate(f"[{better}={worse}]", Drop("tie")))
        else:
            pair = {**row, "chosen": replies[better], "rejected": replies[worse]}
            candidates.append(Candidate(f"[{better}>{worse}]", pair))
    return candidates


def _ordered_replies(row: Row) -> tuple[list[Any], list[float]]:
    """(the replies of a row, a number for each: higher is better)."""
    replies = typed(row["responses"], "responses", list)
    columns = [column for column in ("scores", "ranks") if not is_empty(row.get(column))]
    if len(columns) > 1:
        raise malformed("scores", "stand beside ranks: which of them is meant?", row["scores"])
    if not columns:
        return _replies_with_values(replies)

    [column] = columns
    given = typed(row[column], column, list)
    if len(given) != len(replies):
        raise malformed(column, f"are {len(given)} for {len(replies)} replies", given)
    sign = -1 if column == "ranks" else 1
    return [_text_of(reply) for reply in replies], [sign * number({column: value}, column) for value in given]


def _replies_with_values(replies: list[Any]) -> tuple[list[Any], list[float]]:
    """So too where each reply is an object that holds its score or its rank."""
    values: list[float] = []
    for reply in replies:
        keys = [key for key in (*SCORE_KEYS, RANK_KEY) if isinstance(reply, dict) and key in reply]
        if not keys:
            raise malformed("responses", "have neither scores nor ranks, so that none is said to be better", reply)
        if len(keys) > 1:
            raise malformed("responses", f"have both {keys[0]} and {keys[1]}: which of them is meant?", reply)
        sign = -1 if keys[0] == RANK_KEY else 1
        values.append(sign * number(reply, keys[0]))
    return [_text_of(reply) for reply in replies], values


def _text_of(reply: Any) -> Any:
    """The text or the messages of a reply; an object that is no message has them under one of TEXT_KEYS."""
    if not isinstance(reply, dict) or reply.keys() & {"role", "from"}:
        return reply
    keys = [key for key in TEXT_KEYS if key in reply]
    if len(keys) != 1:
        raise malformed("responses", f"hold a reply without one of {', '.join(TEXT_KEYS)}", reply)
    return reply[keys[0]]


def _draw(count: int, row: Row, seed: int) -> int:
    """A place below `count`: a hash of the row, as good as a draw, and the same in every order and on every machine."""
    written = f"{seed}|{json.dumps(row, sort_keys=True)}"
    return int.from_bytes(hashlib.sha256(written.encode()).digest()[:8], "little") % count

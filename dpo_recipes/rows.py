"""One raw preference row -> its explicit pair, or the reason to drop it; and which reader fits a whole split.

What no reader could make sense of is refused by `look` beforehand, so that only the defects of real sets are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

from .errors import RecipeError, nearest

Row = dict[str, Any]
Seen = tuple[list[str], dict[str, str], list[bool]]

PAIR = ("prompt", "chosen", "rejected")
SIDES = PAIR[1:]
PASSED = (*PAIR, "tools", "chat_template_kwargs")  # columns that are read; all others are removed
ROLES = ("system", "user", "assistant", "tool", "developer")
TURN = re.compile(r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")
FORMS = "The forms read: prompt, chosen, rejected, as text or {role, content} messages; or whole chosen and rejected."
UNREAD = {  # columns that hold the question in forms not read -> how to make the pair explicit
    "conversations": "From ShareGPT pairs, rename conversations to prompt, from to role (human: user, gpt: assistant), "
    "value to content, and make chosen and rejected lists of one message.",
    "instruction": "From Alpaca pairs, join instruction and, where there is one, input into a prompt column.",
    "question": "From Orca pairs, rename question to prompt; to keep system, make prompt a system and a user message.",
} | dict.fromkeys(
    ("system", "system_prompt", "input", "query", "history", "context", "trajectory", "post"),
    "Put all that the model is to see into the prompt column: as text, or as system and user messages.",
)


def _preference(row: Row) -> Row | str:
    """TRL's own form: a prompt beside replies, or two conversations whose shared start is the prompt."""
    prompt = messages(row["prompt"], "user") if "prompt" in row else None
    return _pair(prompt, *(messages(row[side], "assistant") for side in SIDES))


def _ultrafeedback(row: Row) -> Row | str:
    """A prompt beside full conversations: their shared start is the prompt, and a list prompt must open both."""
    start = messages(row["prompt"] if isinstance(row["prompt"], list) else "", "user")
    if any(row[side] and messages(row[side], "assistant")[: len(start)] != start for side in SIDES):
        return "prompts differ between sides"
    return _preference({side: row[side] for side in SIDES})


def _hh_rlhf(row: Row) -> Row | str:
    """Transcripts, "Human:" and "Assistant:" turns each after an empty line: the last turn is the reply."""
    if not all((row[side] or "").strip() for side in SIDES):
        return "empty side"
    talks = []
    for side in SIDES:
        before, *turns = TURN.split((row.get("prompt") or "") + row[side])
        roles = [{"Human": "user", "Assistant": "assistant"}[who] for who in turns[::2]]
        if before.strip() or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
            return "malformed transcript"
        talks.append([{"role": role, "content": said.strip()} for role, said in zip(roles, turns[1::2], strict=True)])
    return _pair(None, *talks)


def _text(row: Row) -> Row | str:
    """Strings as they are. Without a prompt column it is the longest shared start in whole words: a prompt that ends
    inside a word, as a split by characters gives, cuts the word's tokens in two."""
    prompt, chosen, rejected = (row.get(column) or "" for column in PAIR)
    if not (chosen.strip() and rejected.strip()):
        return "empty side"
    if chosen == rejected:
        return "identical sides"
    if "prompt" not in row:
        words, others = (re.findall(r"\s*\S+", side) for side in (chosen, rejected))
        prompt = "".join(words[: _shared(words, others)])
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} if prompt.strip() else "empty prompt"


READERS = {"preference": _preference, "text": _text, "ultrafeedback": _ultrafeedback, "hh_rlhf": _hh_rlhf}


def bare(value: Any) -> Any:
    """The value without the None that Arrow fills in where a dict lacks a key that its neighbours have."""
    if isinstance(value, dict):
        return {key: bare(v) for key, v in value.items() if v is not None}
    return [bare(v) for v in value] if isinstance(value, list) else value


def messages(value: Any, role: str) -> list[Row]:
    """Text as one message of that role; a list of messages without None, each with a content."""
    if isinstance(value, list):
        return [{"role": m["role"], "content": "", **bare(m)} for m in value]
    return [{"role": role, "content": value}] if value else []


def _shared(one: list[Any], other: list[Any]) -> int:
    """How many leading items two lists share, leaving at least one in each."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one[:-1], other[:-1], strict=False))))


def _pair(prompt: list[Row] | None, chosen: list[Row], rejected: list[Row]) -> Row | str:
    """The pair, or why it is none; a prompt of None is the start that both sides share."""
    if prompt is None:
        n = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    ends = [side[-1] for side in (chosen, rejected) if side]
    if any(m["role"] != "assistant" for m in ends):
        return "last role is not assistant"
    if len(ends) < 2 or any(not m["content"].strip() and not m.get("tool_calls") for m in ends):
        return "empty side"
    if chosen == rejected:
        return "identical sides"
    if any(m["role"] not in ("assistant", "tool") for m in chosen + rejected):
        return "prompts differ between sides"
    if not prompt or not prompt[-1]["content"].strip() or prompt[-1]["role"] in ("system", "developer"):
        return "empty prompt"
    if prompt[-1]["role"] == "assistant":  # a template would open a second assistant turn behind it
        return "prompt ends with the assistant"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def look(rows: Iterable[Row], where: str, columns: list[str]) -> Seen:
    """(columns, kinds, whole) of a split; RecipeError naming the row and field of a type that no reader takes. kinds:
    "text" or "messages", for prompt, sides and the columns of UNREAD that hold anything. whole: row by row, whether the
    sides hold the question too, in a message of the user or a transcript that opens with "Human:"."""
    seen, kinds, whole = dict.fromkeys(columns), dict[str, str](), list[bool]()
    for number, row in enumerate(rows):
        seen |= dict.fromkeys(row)
        for column, value in row.items():
            try:
                kind = _kind(column, value)
                if kind and kinds.setdefault("sides" if column in SIDES else column, kind) != kind:
                    raise ValueError("mixes text and messages, with the rows or the side before. A split has one form.")
            except ValueError as error:
                hint = UNREAD["conversations"] if "{'from':" in str(error) else "Correct the row or remove it."
                raise RecipeError(f"{where}, row {number}: {column} {error} {hint}") from None
        said = [message for side in SIDES if isinstance(row.get(side), list) for message in row[side]]
        opens = any(isinstance(v, str) and v.lstrip().startswith("Human:") for v in map(row.get, PAIR))
        whole.append(any(message["role"] == "user" for message in said) if said else opens)
    return list(seen), kinds, whole


def _kind(column: str, value: Any) -> str | None:
    """ "text", "messages", or None where there is nothing; ValueError(what was found instead)."""
    if column in UNREAD:
        return "text" if value and str(value).strip() else None
    if value is None or column not in PASSED:
        return None
    if column in PAIR and isinstance(value, str):
        return "text"
    if column == "tools" and isinstance(value, str) and value.startswith("["):
        value = json.loads(value)  # often stored so; TRL reads it too
    wanted = dict if column == "chat_template_kwargs" else list
    if not isinstance(value, wanted):
        words = "text or a list of messages" if column in PAIR else f"a {wanted.__name__}"
        raise ValueError(f"is {value!r:.40} ({type(value).__name__}), not {words}.")
    for n, m in enumerate(value if column in PAIR else ()):
        whole = isinstance(m, dict) and "role" in m and m.keys() & {"content", "tool_calls"}
        if not whole or not isinstance(m.get("content"), str | None):
            raise ValueError(f"has {m!r:.60} as message {n}, which is no dict with a role and, as content, text.")
        if m["role"] not in ROLES:
            close = nearest(str(m["role"]), ROLES)
            raise ValueError(f"has a message {n} with the role {m['role']!r}, none of {', '.join(ROLES)}.{close}")
    return "messages"


def choose(seen: Seen, where: str, *, named: str | None, few: float) -> str:
    """The format that fits the split, or the one named where it can read it; RecipeError with the candidates. A share
    of `few` rows may be of another form: they are then dropped and counted, like other defects."""
    columns, kinds, whole = seen
    alone, listed = "prompt" not in columns, kinds.get("sides") == "messages"
    question = next((column for column in UNREAD if column in columns and (alone or column in kinds)), "")
    remedy = UNREAD.get(question, "Rename or map your columns.")
    if missing := [side for side in SIDES if side not in columns]:
        found, close = ", ".join(f"{column:.30}" for column in columns[:20]), nearest(missing[0], columns)
        raise RecipeError(f"{where} has no column {missing[0]!r}. Its columns: {found}. {FORMS}{close or ' ' + remedy}")
    if listed or kinds.get("prompt") == "messages":
        candidates = ["preference", "ultrafeedback"] if listed and not alone else ["preference"]
    else:
        candidates = ["text", "hh_rlhf"] if alone else ["preference", "text", "hh_rlhf"]
    if named and named not in candidates:
        why = f"cannot read what its columns hold. What can: {', '.join(candidates)}. {FORMS}"
        raise RecipeError(f"{where}: data.format={named!r} {why}")
    n, rest = sum(whole), whole.count(False)
    few *= len(whole)  # readers of messages drop what is not theirs, but a text would be taken with its "Human:"
    if not named and len(candidates) > 1 and n > (few if listed else 0) and rest > few:
        why = "hold whole conversations" if listed else "open with 'Human:', as HH-RLHF transcripts do"
        name = f"Name the right one: data.format={' or '.join(map(repr, candidates))}."
        raise RecipeError(f"{where} can be read in several ways: {n} of {len(whole)} rows {why}. {name}")
    best = candidates[-1 if n > (rest if listed else 0) else 0]
    if not named and question and best in ("text", "preference") and not (listed and alone):
        why = "has no prompt column, but" if alone else "has, beside prompt,"
        leave = "" if alone else f" If it does not belong there, remove it or set data.format={best!r}."
        raise RecipeError(f"{where} {why} a column {question!r}, which would not be read. {remedy}{leave}")
    return named or best

"""One raw preference row -> its explicit pair, or the reason to drop it; and which reader fits a whole split.

A reader is a pure function of one row. What no reader could make sense of (numbers, unknown roles, mixed forms) is
refused by `look` beforehand, with the row's number, so that only the defects that real sets have are left to count.
No prompt is ever empty, and none ends inside a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import RecipeError, nearest

Row = dict[str, Any]
Messages = list[dict[str, Any]]

SIDES = ("chosen", "rejected")
PASSED = ("prompt", *SIDES, "tools", "chat_template_kwargs")  # columns that are read; all others are removed
ROLES = ("system", "user", "assistant", "tool", "developer")
TURN = re.compile(r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")
FORMS = (
    "The forms read: prompt, chosen and rejected, each text or a list of {role, content} messages; or chosen and "
    "rejected alone, as whole conversations, HH-RLHF transcripts, or texts that share their start."
)
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
    chosen, rejected = (messages(row[side], "assistant") for side in SIDES)
    return _pair(messages(row["prompt"], "user"), chosen, rejected) if "prompt" in row else _split(chosen, rejected)


def _ultrafeedback(row: Row) -> Row | str:
    """A prompt beside full conversations: their shared start is the prompt, and a list prompt must open both."""
    chosen, rejected = (messages(row[side], "assistant") for side in SIDES)
    start = messages(row["prompt"], "user") if isinstance(row["prompt"], list) else []
    if chosen and rejected and not chosen[: len(start)] == rejected[: len(start)] == start:
        return "prompts differ between sides"
    return _split(chosen, rejected)


def _hh_rlhf(row: Row) -> Row | str:
    """Transcripts, "Human:" and "Assistant:" turns each after an empty line: the last turn is the reply."""
    if not all((row[side] or "").strip() for side in SIDES):
        return "empty side"
    talks = []
    for side in SIDES:
        before, *turns = TURN.split((row.get("prompt") or "") + row[side])
        roles = [{"Human": "user", "Assistant": "assistant"}[who] for who in turns[::2]]
        if before.strip() or not roles or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
            return "malformed transcript"
        talks.append([{"role": role, "content": said.strip()} for role, said in zip(roles, turns[1::2], strict=True)])
    chosen, rejected = talks
    if chosen[-1]["role"] == rejected[-1]["role"] and chosen[:-1] != rejected[:-1]:
        return "prompts differ between sides"
    return _pair(chosen[:-1], chosen[-1:], rejected[-1:])


def _text(row: Row) -> Row | str:
    """Strings as they are. Without a prompt column it is the longest shared start in whole words: a prompt that ends
    inside a word, as a split by characters gives, cuts the word's tokens in two."""
    chosen, rejected = ((row[side] or "") for side in SIDES)
    if not (chosen.strip() and rejected.strip()):
        return "empty side"
    if chosen == rejected:
        return "identical sides"
    prompt = row.get("prompt") or ""
    if "prompt" not in row:
        words, others = (re.findall(r"\s*\S+", side) for side in (chosen, rejected))
        prompt = "".join(words[: _shared(words, others)])
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} if prompt.strip() else "empty prompt"


READERS: dict[str, Callable[[Row], Row | str]] = {
    "preference": _preference, "text": _text, "ultrafeedback": _ultrafeedback, "hh_rlhf": _hh_rlhf,
}  # fmt: skip


def bare(value: Any) -> Any:
    """The value without the None that Arrow fills in where a dict lacks a key that its neighbours have."""
    if isinstance(value, dict):
        return {key: bare(v) for key, v in value.items() if v is not None}
    return [bare(v) for v in value] if isinstance(value, list) else value


def messages(value: Any, role: str) -> Messages:
    """Text as one message of that role; a list of messages without None, each with a content."""
    if isinstance(value, list):
        return [{"role": m["role"], "content": "", **bare(m)} for m in value]
    return [{"role": role, "content": value}] if value else []


def _shared(one: list[Any], other: list[Any]) -> int:
    """How many leading items two lists share, leaving at least one in each."""
    most = max(0, min(len(one), len(other)) - 1)
    return next((i for i in range(most) if one[i] != other[i]), most)


def _split(chosen: Messages, rejected: Messages) -> Row | str:
    n = _shared(chosen, rejected)
    return _pair(chosen[:n], chosen[n:], rejected[n:])


def _silent(message: dict[str, Any]) -> bool:
    return not message["content"].strip() and not message.get("tool_calls")


def _pair(prompt: Messages, chosen: Messages, rejected: Messages) -> Row | str:
    if not (chosen and rejected):
        return "empty side"
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        return "last role is not assistant"
    if _silent(chosen[-1]) or _silent(rejected[-1]):
        return "empty side"
    if chosen == rejected:
        return "identical sides"
    if any(m["role"] not in ("assistant", "tool") for m in chosen + rejected):
        return "prompts differ between sides"
    if not prompt or _silent(prompt[-1]) or prompt[-1]["role"] in ("system", "developer"):
        return "empty prompt"
    if prompt[-1]["role"] == "assistant":  # a template would open a second assistant turn behind it
        return "prompt ends with the assistant"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@dataclass
class Shape:
    """What a pass over all rows of a split has seen."""

    rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)  # a set that keeps the order
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)  # column -> "text" or "messages" -> its first row
    transcripts: int = 0  # rows that open as HH-RLHF does
    whole: int = 0  # rows of messages whose sides hold the question too
    replies: int = 0  # rows of messages whose sides hold replies only
    keys: set[str] = field(default_factory=set)  # that messages have


def look(rows: Iterable[Row], where: str, columns: Iterable[str] = ()) -> Shape:
    """Read every row once; RecipeError naming the row and the field where a value has a type that no reader takes."""
    shape = Shape(columns=dict.fromkeys(columns))
    for number, row in enumerate(rows):
        shape.rows += 1
        shape.columns |= dict.fromkeys(row)
        for column, value in row.items():
            try:
                kind = _kind(column, value)
            except ValueError as error:
                found, *remedy = error.args
                what = remedy[0] if remedy else "Correct the row or remove it."
                raise RecipeError(f"{where}, row {number}: {column} {found} {what}") from None
            if kind:
                shape.kinds.setdefault(column, {}).setdefault(kind, number)
        prompt, *sides = (row.get(column) for column in ("prompt", *SIDES))
        shape.transcripts += any(isinstance(v, str) and v.lstrip().startswith("Human:") for v in (prompt, *sides))
        said = [message for side in sides if isinstance(side, list) for message in side]
        asks = any(message["role"] == "user" for message in said)
        shape.whole, shape.replies = shape.whole + asks, shape.replies + (bool(said) and not asks)
        for message in said + (prompt if isinstance(prompt, list) else []):
            shape.keys.update(key for key in message if message[key] is not None)
    return shape


def parsed(value: Any) -> Any:
    """What a string of JSON holds (tools are often stored so); anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _kind(column: str, value: Any) -> str | None:
    """ "text", "messages", or None where there is nothing; ValueError(what was found instead, how to mend it)."""
    if column in UNREAD:
        return "text" if value and str(value).strip() else None
    if value is None or column not in ("prompt", *SIDES, "tools", "chat_template_kwargs"):
        return None
    if column in ("tools", "chat_template_kwargs"):
        wanted = list if column == "tools" else dict
        if not isinstance(parsed(value), wanted):
            raise ValueError(f"is {value!r:.40}, not a {wanted.__name__}.")
        return None
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        hint = [UNREAD["conversations"]] if isinstance(value, dict) and "from" in value else []
        raise ValueError(f"is {value!r:.40} ({type(value).__name__}), neither text nor a list of messages.", *hint)
    for n, message in enumerate(value):
        if not isinstance(message, dict):
            raise ValueError(f"has {message!r:.40} as message {n}, which is no dict with role and content.")
        if "role" not in message or not ("content" in message or message.get("tool_calls")):
            hint = [UNREAD["conversations"]] if "from" in message else []
            raise ValueError(f"has a message {n} with {', '.join(message) or 'nothing'}, not role and content.", *hint)
        if (role := message["role"]) not in ROLES:
            close = nearest(str(role), ROLES)
            raise ValueError(f"has a message {n} with the role {role!r}, none of {', '.join(ROLES)}.{close}")
        if not isinstance(content := message.get("content"), str | None):
            raise ValueError(f"has a message {n} whose content is {type(content).__name__} and not text.")
    return "messages"


def choose(shape: Shape, where: str, *, named: str | None, few: float) -> str:
    """The one format that fits all rows, or the one named where it can read them; RecipeError with the candidates.

    `few` is how many rows may be of another form: they are then read, dropped and counted like other defects.
    """
    columns, kinds, alone = list(shape.columns), shape.kinds, "prompt" not in shape.columns
    question = [column for column in UNREAD if column in columns and (alone or kinds.get(column))]
    if missing := [side for side in SIDES if side not in columns]:
        what = " " + (UNREAD[question[0]] if question else "Rename or map your columns.")
        what = nearest(missing[0], columns) or what
        found = ", ".join(f"{column:.30}" for column in columns[:20]) or "none"
        raise RecipeError(f"{where} has no column {missing[0]!r}. Its columns: {found}. {FORMS}{what}")
    for group in (("prompt",), SIDES):
        first = {kind: (row, column) for column in group for kind, row in kinds.get(column, {}).items()}
        if len(first) > 1:
            row, column = max(first.values())
            raise RecipeError(
                f"{where}, row {row}: {column} mixes text and messages with the rows or the side before: a split has "
                "one form. Make them all text or all messages."
            )
    listed = any("messages" in kinds.get(side, {}) for side in SIDES)
    if listed:
        candidates = ["preference"] if alone else ["ultrafeedback", "preference"]
        best = "ultrafeedback" if not alone and shape.whole > shape.replies else "preference"
        sure = alone or min(shape.whole, shape.replies) <= few
        why = f"{shape.whole} rows hold whole conversations and {shape.replies} hold replies only"
    elif "messages" in kinds.get("prompt", {}):
        candidates, best, sure, why = ["preference"], "preference", True, ""
    else:
        candidates = ["hh_rlhf", "text"] if alone else ["preference", "hh_rlhf", "text"]
        best = "hh_rlhf" if shape.transcripts else "text" if alone else "preference"
        sure = not shape.transcripts or shape.rows - shape.transcripts <= few
        why = f"{shape.transcripts} of {shape.rows} rows open with 'Human:', as HH-RLHF transcripts do"
    if named:
        if named not in candidates:
            able = f"What can: {', '.join(candidates)}."
            raise RecipeError(f"{where}: data.format={named!r} cannot read what its columns hold. {able} {FORMS}")
        return named
    if not sure:
        able = f"Name the right one: data.format={' or '.join(map(repr, candidates))}."
        raise RecipeError(f"{where} can be read in several ways: {why}. {able}")
    if question and best in ("text", "preference") and not (listed and alone):
        why = "has no prompt column, but" if alone else "has, beside prompt,"
        leave = "" if alone else f" If it does not belong there, remove it or set data.format={best!r}."
        raise RecipeError(
            f"{where} {why} a column {question[0]!r}, which would not be read. {UNREAD[question[0]]}{leave}"
        )
    return best

"""A field's value as messages, text, a number or JSON; or the reason to drop its row."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

Row = dict[str, Any]

ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
ROLES |= {role: role for role in ("system", "user", "assistant", "tool", "developer")}
VISIBLE = re.compile(r"[^\s\0\u200b-\u200f\u2060\ufeff]")  # without any a text is empty


class Drop(Exception):
    """Why a row gives no pair: Drop(reason) or, where a value is at fault, Drop(reason, what was found)."""


def malformed(field: str, what: str, found: Any) -> Drop:
    return Drop(f"malformed: {field} {what}", f"{found!r:.60}")


def plain_json(value: Any, field: str) -> Any:
    """The value without None, which Arrow fills in where a dict lacks a key of its neighbours, and which as a column
    is empty; of JSON that any parser takes: no NaN, no integer beyond 64 bits, no half of a surrogate pair."""
    if isinstance(value, dict):
        return {plain_json(key, field): plain_json(v, field) for key, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [plain_json(v, field) for v in value]
    if isinstance(value, str) and (value.isascii() or value.encode(errors="replace").decode() == value):
        return value
    if value is not None and not (isinstance(value, int | float) and abs(value) < 2**63):
        raise malformed(field, f"holds a {type(value).__name__} that UTF-8 JSON of 64 bits cannot hold", value)
    return "" if value is None else value


def typed(value: Any, field: str, *kinds: Any) -> Any:
    """A value of one of the kinds, or, where none of them is text, stored as the JSON of one."""
    with suppress(ValueError):
        value = plain_json(json.loads(value), field) if isinstance(value, str) and str not in kinds else value
    if not isinstance(value, kinds):
        raise malformed(field, f"is {type(value).__name__}, not {' or '.join(kind.__name__ for kind in kinds)}", value)
    return value


def number(row: Row, field: str, *allowed: int) -> float:
    with suppress(TypeError, ValueError):
        if (number := float(row[field])) in allowed or not allowed:
            return number
    raise malformed(field, f"is not {' or '.join(map(str, allowed)) or 'a number'}", row.get(field))


def messages(row: Row, field: str, role: str = "assistant") -> list[Row]:
    """A field's text as one message of that role; or its messages, one or a list, as {role, content} or ShareGPT's
    {from, value}: each as role, content as one text, and what else a template may read."""
    value, made = typed(row.get(field, ""), field, str, list, dict), []
    value = [{"role": role, "content": value}] * (value != "") if isinstance(value, str) else value
    for m in (typed(one, field, dict) for one in (value if isinstance(value, list) else [value])):
        keys = ("from", "value") if "from" in m else ("role", "content")
        who, content = m.pop(keys[0], None), m.pop(keys[1], "" if m.get("tool_calls") else None)
        if str(who) not in ROLES:
            raise malformed(field, f"holds a role that is none of {', '.join(ROLES)}", who)
        if {"role", "content", "from", "value"} & m.keys():
            raise malformed(field, "mixes role and content with from and value", m)
        if isinstance(content, list):  # of typed blocks
            content = [typed(block, field, dict) for block in content]
            if odd := {str(block.get("type"))[:20] for block in content} - {"text"}:
                raise malformed(field, f"holds content of type {min(odd)}, where text alone is read", content)
            content = "".join(typed(block.get("text"), f"{field} content", str) for block in content)
        if who == "function_call":
            calls, content = typed(content, field, list, dict), ""
            calls = calls if isinstance(calls, list) else [calls]
            m["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        made.append({"role": ROLES[who], "content": typed(content, f"{field} content", str), **m})
    return made

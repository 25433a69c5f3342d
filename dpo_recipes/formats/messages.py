"""One column of a raw row, read as messages, text, a number or JSON; or the reason to drop the row."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from typing import Any

Row = dict[str, Any]
Message = dict[str, Any]

# Role in a file -> role in a chat template. The first four are ShareGPT's.
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "developer",
}

# A character that can be seen: no white space, NUL, zero-width mark (such as U+200B) or byte-order mark (U+FEFF).
# "\u200b\n" has none, and so it is as empty as "".
VISIBLE = re.compile(r"[^\s\0\u200b-\u200f\u2060\ufeff]")
# What stands for an image in a text: one of Unicode's noncharacters, which are for use inside a program alone.
IMAGE = "\ufdd0"
UNSEEN = re.compile(r"[\0\u200b-\u200f\u2060\ufeff]")  # of those that cannot be seen, all but white space


# What rendering sets itself, and a switch of a chat template cannot be named.
RESERVED_KWARGS = (
    "conversation",
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
)


class Drop(Exception):
    """Why a row gives no pair: the reason, and, where a value is at fault, what was found."""

    def __init__(self, reason: str, found: str = "", *, missing_column: str = ""):
        super().__init__(reason, found)
        self.reason = reason
        self.found = found
        self.missing_column = missing_column  # the required column that the row lacks

    @property
    def is_malformed(self) -> bool:
        """Whether a field is not as it should be; otherwise the row was understood, and teaches nothing."""
        return self.reason.startswith("malformed: ")

    def __str__(self) -> str:
        return f"{self.reason}: {self.found}" if self.found else self.reason


def malformed(field: str, problem: str, found: Any, *, missing_column: str = "") -> Drop:
    """The reason to drop a row of which one field is not as it should be, with the start of what it holds."""
    return Drop(f"malformed: {field} {problem}", f"{found!r:.60}", missing_column=missing_column)


def problem_of_template_kwargs(kwargs: dict[str, Any]) -> str:
    """What is wrong with the switches of a chat template, as the rest of a sentence; "" where nothing is."""
    for name, value in kwargs.items():
        if name in RESERVED_KWARGS:
            return f"holds {name!r}, which is no switch of a template: it is set when pairs are rendered. Delete it."
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return f"holds {name}={value!r} as text, which a template takes for true. Write {value.capitalize()}."
    return ""


def is_empty(value: Any) -> bool:
    """Whether a column holds nothing: None, text without a visible character, an empty list, or a dict without values.

    A dict of None alone is how Arrow stores an empty dict beside dicts with keys.
    """
    if isinstance(value, str):
        return not VISIBLE.search(value)
    if isinstance(value, dict):
        return all(entry is None for entry in value.values())
    if isinstance(value, list | tuple):
        return not value
    return value is None


def plain_json(value: Any, field: str) -> Any:
    """The value as JSON that any parser takes: no NaN, no integer beyond 64 bits, no half of a surrogate pair.

    None goes: in a dict it stands where Arrow filled in a key that only a neighbour has, and a column of None is empty
    text. Raises Drop for what such JSON cannot hold.
    """
    if isinstance(value, str) and _is_whole_unicode(value):
        return value
    if value is None:
        return ""
    if isinstance(value, dict):
        return {plain_json(key, field): plain_json(entry, field) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [plain_json(item, field) for item in value]
    if isinstance(value, int | float) and abs(value) < 2**63:  # false for NaN too
        return value
    raise malformed(field, f"holds a {type(value).__name__} that UTF-8 JSON of 64 bits cannot hold", value)


def _is_whole_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text. JSON may spell half of a surrogate pair, such as "\\ud83d", and it cannot."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def typed(value: Any, field: str, *kinds: type) -> Any:
    """A value of one of the kinds. Text is read as the JSON of such a value, where text is not one of the kinds."""
    if isinstance(value, str) and str not in kinds:
        with suppress(ValueError):  # no JSON: it is refused below as the text that it is
            value = plain_json(json.loads(value), field)
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise malformed(field, f"is {type(value).__name__}, not {expected}", value)
    return value


def text(row: Row, column: str) -> str:
    """The text of a column; "" where the row leaves it empty."""
    value = row.get(column)
    if is_empty(value):
        return ""
    return typed(value, column, str)


def number(row: Row, column: str, *allowed: int) -> float:
    """The number in a column, also as text, which a csv file has; one of `allowed`, where any is named."""
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    # The text "nan" is a number for float(), and prefers neither reply.
    if value in allowed or (not allowed and math.isfinite(value)):
        return value
    expected = " or ".join(str(one) for one in allowed) or "a number"
    raise malformed(column, f"is not {expected}", row.get(column))


def messages(row: Row, column: str, role: str = "assistant") -> list[Message]:
    """The messages of a column; none where the row leaves it empty.

    The column holds text, which becomes one message of `role`; or typed blocks of text, which do so too; or one
    message; or a list of them. A message is {role, content} or ShareGPT's {from, value}.
    """
    value = row.get(column)
    if is_empty(value):
        return []

    value = typed(value, column, str, list, dict)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if all(_is_block(item) for item in value):
        return [{"role": role, "content": _text_of_blocks(value, column)}]
    return [_message(item, column) for item in value]


def _is_block(item: Any) -> bool:
    """Whether this is a typed block of content, such as {"type": "text", "text": "Hi"}, and no message."""
    return isinstance(item, dict) and "type" in item and not item.keys() & {"role", "from"}


def _message(value: Any, column: str) -> Message:
    """One message with its role in a template's word, its content as one text, and what else a template may read."""
    message = dict(typed(value, column, dict))
    role_key, content_key = ("from", "value") if "from" in message else ("role", "content")
    if message.keys() & ({"role", "content", "from", "value"} - {role_key, content_key}):
        raise malformed(column, "mixes role and content with from and value", message)
    for key in (role_key, content_key):
        is_call = key == content_key and message.get("tool_calls")
        if key not in message and not is_call:
            raise malformed(column, f"holds a message without {key!r}", message)
    role = message.pop(role_key)
    content = message.pop(content_key, "")
    if str(role) not in ROLES:
        raise malformed(column, f"holds a role that is none of {', '.join(ROLES)}", role)

    is_list_of_calls = role == "function_call" and not _are_text_blocks(content)
    if isinstance(content, list) and not is_list_of_calls:
        content = _text_of_blocks(content, column)
    if role == "function_call":
        message["tool_calls"] = _tool_calls(content, column)
        content = ""
    return {"role": ROLES[role], "content": typed(content, f"{column} content", str), **message}


def _are_text_blocks(content: Any) -> bool:
    """Whether this is a list of typed blocks of text alone."""
    return isinstance(content, list) and all(_is_block(item) and item["type"] == "text" for item in content)


def _text_of_blocks(content: list[Any], column: str) -> str:
    """The text of content in typed blocks: [{"type": "text", "text": "Hi"}], or with `value` in the place of `text`.

    A block of type image is a mark in it, whose image stands in a column of its own.
    """
    texts: list[str] = []
    for block in content:
        block = typed(block, column, dict)
        kind = str(block.get("type"))[:20]
        if kind == "image":
            texts.append(_mark_of(block, column))
            continue
        if kind != "text":
            raise malformed(column, f"holds content of type {kind}, where text and images are read", content)
        if "text" in block and "value" in block:
            raise malformed(column, "holds a block with both text and value", block)
        texts.append(typed(block.get("text", block.get("value")), f"{column} content", str))
    return "".join(texts)


def _mark_of(block: Row, column: str) -> str:
    for key, value in block.items():
        if key != "type" and not is_empty(value):
            raise malformed(column, f"holds an image in a block, as {key}: images are read from a column images", value)
    return IMAGE


def _tool_calls(content: Any, column: str) -> list[Row]:
    """ShareGPT's turn of function_call, the JSON of one call or of several, as a template reads tool calls."""
    calls = typed(content, column, list, dict)
    if isinstance(calls, dict):
        calls = [calls]
    return [{"type": "function", "function": call} for call in calls]

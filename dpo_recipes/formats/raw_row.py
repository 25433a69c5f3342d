"""A raw row, of one of FORMATS -> its pairs, or why there is none.

Beside what the form's own function reads, it is seen that nothing of the question stays unread, and that no text is
messages written as text or was rendered before.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from .image_marks import image_values, with_image_marks
from .messages import Drop, Message, Row, is_empty, malformed, plain_json, problem_of_template_kwargs, typed
from .pair import pairs_of_turns
from .pair_weights import weight_of_row
from .readers import FORMATS, PAIR, PASSED_ON, Format
from .rendered import RENDERED_BEFORE, rendered_by
from .several_replies import Candidate, Pairing, candidates_of_lists, candidates_of_order

# Columns that may hold a part of the question, by the names that data sets give them.
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
QUESTION_COLUMNS = (
    *SYSTEM_COLUMNS,
    "prompt",
    "conversations",
    "conversation",
    "instruction",
    "input",
    "question",
    "query",
    "history",
    "context",
    "trajectory",
    "post",
    "passage",
    "document",
)

# Messages as text, that a template would wrap as if they were one: "[{'role': 'user', ...".
MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']""")


class Reading(NamedTuple):
    """How raw rows are read, beside their form."""

    strict: bool = True  # the form was recognised, not named: then no part of a question may be left unread
    # The user accepts text that a chat template has rendered before, which is otherwise for the form `text`, named,
    # alone.
    may_be_rendered: bool = False
    pairing: Pairing = Pairing()
    every_turn: bool = False  # a pair of each turn that differs, not of the last turn alone


class Pair(NamedTuple):
    """A pair of a raw row."""

    label: str  # which of the row's pairs it is; "" where it has one
    # prompt, chosen and rejected: lists of messages, or strings where the form is `text`; tools: a list or None;
    # chat_template_kwargs; images, as they are stored, where there are any; what `pairs_of_turns` adds. Or why there
    # is no pair.
    pair: Row | Drop
    of_several_replies: bool = False


def explicit_pair(raw: Row, form: str, *, strict: bool, may_be_rendered: bool = False) -> Row | Drop:
    """The first pair of a raw row, or why it has none."""
    pairs = explicit_pairs(raw, form, Reading(strict, may_be_rendered))
    usable = [pair.pair for pair in pairs if not isinstance(pair.pair, Drop)]
    return usable[0] if usable else pairs[0].pair


def explicit_pairs(raw: Row, form: str, reading: Reading) -> list[Pair]:
    """The pairs of a raw row, one with most forms; each may be a Drop."""
    try:
        if is_repeated_header(raw):
            raise Drop("repeated header line")
        row = _select_columns(raw, FORMATS[form])
        candidates = _candidates(row, FORMATS[form], reading)
        weight = weight_of_row(raw)
    except RecursionError:
        return [Pair("", Drop("malformed: row is nested too deeply"))]
    except Drop as drop:
        return [Pair("", drop)]

    pairs: list[Pair] = []
    for label, candidate in candidates:
        pairs += _pairs_of_candidate(raw, candidate, form, reading, label, weight)
    return pairs


def _candidates(row: Row, data_format: Format, reading: Reading) -> list[Candidate]:
    """The row itself, or one for each two of its replies that make a pair."""
    if data_format.ordered:
        return candidates_of_order(row, reading.pairing)
    if "chosen" in row and "rejected" in row:
        return candidates_of_lists(row, reading.pairing)
    return [Candidate("", row)]


def _pairs_of_candidate(
    raw: Row, row: Row | Drop, form: str, reading: Reading, label: str, weight: float
) -> list[Pair]:
    """The pairs of one row of two sides: one, or of each turn that differs, whose labels have its number."""
    of_several = label != ""
    if isinstance(row, Drop):
        return [Pair(label, row, of_several)]
    try:
        turns = pairs_of_turns(FORMATS[form].reader(row), every_turn=reading.every_turn)
    except RecursionError:
        return [Pair(label, Drop("malformed: row is nested too deeply"), of_several)]
    except Drop as drop:
        return [Pair(label, drop, of_several)]

    pairs: list[Pair] = []
    for number_of_turn, pair in enumerate(turns):
        turn = f" turn {number_of_turn}" if len(turns) > 1 else ""
        if not isinstance(pair, Drop):
            pair = _checked(raw, row, pair, form, reading)
        if not isinstance(pair, Drop):
            pair["weight"] *= weight
        pairs.append(Pair(label + turn, pair, of_several))
    return pairs


def _checked(raw: Row, row: Row, pair: Row, form: str, reading: Reading) -> Row | Drop:
    """The pair with what is passed on beside it, where nothing is rendered, written as text or left unread."""
    is_named_text = form == "text" and not reading.strict
    try:
        if not is_named_text and not FORMATS[form].transcripts:
            _refuse_messages_as_text(row)
            if not reading.may_be_rendered:
                _refuse_rendered_text(pair)
        if reading.strict:
            _refuse_an_unread_question(raw, row, pair, form)
        return _with_images(raw, pair) | _passed_on(row)
    except Drop as drop:
        return drop


def _with_images(raw: Row, pair: Row) -> Row:
    """The pair with its images, and a mark for each of them in the prompt."""
    images = image_values(raw)
    if images and not is_empty(raw.get("tools")):
        raise malformed("tools", "stand beside images, and TRL 1.16 renders such pairs without them", raw["tools"])
    marked = with_image_marks(pair, len(images))
    return {**marked, "images": images} if images else marked


def is_repeated_header(raw: Row) -> bool:
    """Whether every cell says its own column's name, as where csv files were appended to each other.

    Each of them may begin with a byte-order mark, of which the first alone is no part of the rows.
    """
    if not raw:
        return False
    cells = [value.lstrip("\ufeff").strip() if isinstance(value, str) else value for value in raw.values()]
    return cells == [column.strip() for column in raw]


def _select_columns(raw: Row, data_format: Format) -> Row:
    """The columns that the form reads, each under its first name; those that it may lack only where they are there."""
    row: Row = {}
    for column in (*data_format.optional, *data_format.required, *PASSED_ON):
        names = column.split("|")
        present = [name for name in names if name in raw]
        filled = [name for name in present if not is_empty(raw[name])]
        if len(filled) > 1:
            raise malformed(column, "are two questions, or two sides", filled)
        if present:
            source = filled[0] if filled else present[0]
            row[names[0]] = plain_json(raw[source], source)
        elif column in data_format.required:
            raise malformed(column, "is missing", [*raw], missing_column=column)
    return row


def _refuse_messages_as_text(row: Row) -> None:
    """Drop a row of which a text is a list of messages: a template would take it for the words of one."""
    for column, value in row.items():
        if column not in PASSED_ON and isinstance(value, str) and MESSAGES_AS_TEXT.match(value):
            raise malformed(column, "is messages written as text", value)


def _refuse_rendered_text(pair: Row) -> None:
    """Drop a pair of which a message was rendered by a chat template before: another one would wrap it once more."""
    for column in PAIR:
        messages_of_column = pair[column]
        if isinstance(messages_of_column, str):
            role = "user" if column == "prompt" else "assistant"
            messages_of_column = [{"role": role, "content": messages_of_column}]
        for message in messages_of_column:
            family = rendered_by(message)
            if family:
                raise malformed(column, f"{RENDERED_BEFORE} {family}", message["content"])


def _refuse_an_unread_question(raw: Row, row: Row, pair: Row, form: str) -> None:
    """Drop a row of which a column may hold a part of the question, is not read, and says what the prompt does not.

    Beside whole conversations only a system text can be missing from them: other columns repeat the question.
    """
    has_conversations = FORMATS[form].whole_conversations
    if form == "preference":  # which has them where it has no prompt
        has_conversations = is_empty(row.get("prompt"))

    for column, value in raw.items():
        if not may_hold_question(column, SYSTEM_COLUMNS if has_conversations else QUESTION_COLUMNS):
            continue
        if column in FORMATS[form].reads or is_empty(value) or not value:  # 0 and False say nothing, either
            continue
        unread = str(value).strip()
        if not _is_in_prompt(unread, pair["prompt"]):
            raise malformed(column, f"holds something, which {form} does not read", unread)


def may_hold_question(column: str, names: tuple[str, ...] = QUESTION_COLUMNS) -> bool:
    """Whether a column has one of the names, in any case and with blanks around it: "Prompt", "system "."""
    return column.strip().lower() in names


def _is_in_prompt(unread: str, prompt: list[Message] | str) -> bool:
    """Whether a message of the prompt says it. The prompt of `text` is taken as it is, and says nothing twice."""
    if isinstance(prompt, str):
        return False
    return any(unread in message["content"] for message in prompt)


def _passed_on(row: Row) -> Row:
    """The tools and the switches of the chat template: a list, or None, and a dict; each may be stored as its JSON."""
    tools = _list_or_dict(row, "tools", list)
    kwargs = _list_or_dict(row, "chat_template_kwargs", dict)
    problem = problem_of_template_kwargs(kwargs)
    if problem:
        raise malformed("chat_template_kwargs", problem.removesuffix("."), kwargs)
    return {"tools": tools or None, "chat_template_kwargs": kwargs}


def _list_or_dict(row: Row, column: str, kind: type) -> Any:
    """The list or dict of a column, an empty one where the row has none."""
    value = row.get(column)
    if is_empty(value) or not value:
        return kind()
    return typed(value, column, kind)

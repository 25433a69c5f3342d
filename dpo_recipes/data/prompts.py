"""Prompts to sample replies to, from a file: text, messages, or the prompts of preference pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..formats.image_marks import image_values
from ..formats.messages import Drop, Row, is_empty, malformed, messages, text
from . import sources
from .read_row import row_name
from .replies import Messages
from .rows_of_files import row_of

# Where a row has its prompt: the first of these columns that it has.
TEXT_COLUMNS = ("prompt", "question", "instruction")
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")


def read_prompts(path: str) -> tuple[list[Messages], int]:
    """(every prompt of a file once, in its order, as messages that wait for a reply; how many rows repeated another).

    A .txt file has a prompt a line. Of a json, jsonl, csv or parquet file each row has `prompt`, `question`,
    `instruction` (with `input`) or `messages`; replies behind the last user message are left out. RecipeError for a
    row without a prompt, by file and row: what is asked decides what is learned.
    """
    is_text = path.lower().endswith(".txt")
    prompts = _lines(path) if is_text else _rows(path)
    if not prompts:
        raise RecipeError(f"{path} holds no prompts. Write one a line, or rows with a column named prompt.")

    distinct: list[Messages] = []
    seen: set[str] = set()
    for prompt in prompts:
        if repr(prompt) not in seen:
            seen.add(repr(prompt))
            distinct.append(prompt)
    return distinct, len(prompts) - len(distinct)


def _lines(path: str) -> list[Messages]:
    """The prompts of a text file; blank lines are none."""
    place = Path(os.path.expanduser(path))
    try:
        written = place.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}. Correct --prompts.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text: {error}. Write it again in UTF-8.") from None
    return [_asked(line.strip()) for line in written.split("\n") if not is_empty(line)]


def _rows(path: str) -> list[Messages]:
    """The prompts of a file of rows."""
    splits = sources.files_of(path, "--prompts")
    if len(splits) > 1:
        names = ", ".join(str(file) for files in splits.values() for file in files)
        raise RecipeError(f"--prompts={path!r} is a folder of several splits. Name one of its files: {names}")
    [split] = splits
    rows, spans = sources.pick(splits, split, path)

    prompts: list[Messages] = []
    for number, example in enumerate(rows):
        try:
            prompts.append(_prompt_of(row_of(example)))
        except Drop as drop:
            row = row_name(number, "", spans)
            raise RecipeError(f"{path}, row {row}: {drop}. Correct the row, or delete it.") from None
    return prompts


def _prompt_of(row: Row) -> Messages:
    """The conversation of a row up to its last user message; raises Drop where there is none."""
    if image_values(row):
        raise malformed("images", "stand beside the prompt, and replies are sampled to text alone", sorted(row))
    columns = [column for column in (*TEXT_COLUMNS, *CONVERSATION_COLUMNS) if not is_empty(row.get(column))]
    if not columns:
        known = ", ".join((*TEXT_COLUMNS, *CONVERSATION_COLUMNS))
        raise malformed("the row", f"has no prompt: none of {known}", sorted(row))
    column = columns[0]
    if column == "instruction":
        return _asked("\n".join(part for part in (text(row, "instruction"), text(row, "input")) if part))

    conversation = messages(row, column, role="user")
    while conversation and conversation[-1]["role"] != "user":
        conversation = conversation[:-1]
    if not conversation:
        raise malformed(column, "has no user message, to which a reply could be sampled", row[column])
    return conversation


def _asked(question: str) -> Messages:
    return [{"role": "user", "content": question}]


def as_text(prompts: list[Messages]) -> list[Any]:
    """The prompts for a model without a chat template: the text of each, which must be one user message alone."""
    for prompt in prompts:
        if len(prompt) > 1:
            raise RecipeError(
                "The prompts are conversations, and the model's tokenizer has no chat template to render them. Ways "
                "out: an instruct model, or prompts of one text each."
            )
    return [prompt[0]["content"] for prompt in prompts]

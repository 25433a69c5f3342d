"""The images of a pair: the columns that hold them, and the marks that stand for them in the texts."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from .messages import IMAGE, Drop, Message, Row, is_empty, malformed

COLUMNS = ("images", "image")  # of a list of them, and of one
IMAGES = "images"  # the column of a pair's images once they are read: path, width, height, key
IMAGE_TOKENS = "image_tokens"  # that of the tokens of a pair's images, beyond those that stand in for them
TAG = "<image>"  # which stands for an image in texts as LLaMA-Factory and ms-swift have them


def image_values(raw: Row) -> list[Any]:
    """The images of a raw row as they are stored there; none where it has no such column, or leaves it empty."""
    filled = [column for column in COLUMNS if not is_empty(raw.get(column))]
    if len(filled) > 1:
        raise malformed("images", "stand beside image: which of them is meant?", _short(raw[filled[1]]))
    if not filled:
        return []
    value = raw[filled[0]]
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list as a csv file has it
        with suppress(ValueError):
            value = json.loads(value)
    values = list(value) if isinstance(value, list | tuple) else [value]
    for item in values:
        if is_empty(item):
            raise malformed(filled[0], "holds an image without a file and without bytes", _short(value))
    return values


def _short(value: Any) -> Any:
    """What a message shows of an image, which may be bytes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def with_image_marks(pair: Row, count: int) -> Row:
    """The pair with a mark in its prompt for each of its images.

    Marks stand where the prompt has blocks of type image, or where its text says <image> as often as there are images;
    a prompt without either has them all before its first question, as TRL puts them. Drop where that does not fit.
    """
    prompt = pair["prompt"]
    if isinstance(prompt, str):
        if count:
            raise malformed("images", "have no place in text that no chat template renders", count)
        return pair
    for column in ("chosen", "rejected"):
        if _marks(pair[column]):
            raise malformed(
                column, "holds an image, and images are read in the questions alone", _as_written(pair[column])
            )
    if any(IMAGE in message["content"] and message["role"] != "user" for message in prompt):
        raise malformed("prompt", "holds an image that is not the user's", _as_written(prompt))

    marks = _marks(prompt)
    if not marks and not count:
        return pair
    if not marks:
        prompt = _placed(prompt, count)
        marks = _marks(prompt)
    if not count:
        raise malformed("images", f"are missing, and the prompt has places for {marks}", _as_written(prompt))
    if marks != count:
        raise malformed("images", f"are {count}, and the prompt has places for {marks}", _as_written(prompt))
    return {**pair, "prompt": prompt}


def _as_written(messages: list[Message]) -> str:
    """What some messages say, for a message of ours."""
    return " ".join(message["content"] for message in messages).replace(IMAGE, TAG)


def _marks(messages: list[Message]) -> int:
    return sum(message["content"].count(IMAGE) for message in messages)


def _placed(prompt: list[Message], count: int) -> list[Message]:
    """The prompt with marks where its text says <image>, or before the first question."""
    questions = [place for place, message in enumerate(prompt) if message["role"] == "user"]
    if not questions:
        raise Drop("empty prompt")
    placed = list(prompt)
    tagged = [place for place in questions if TAG in prompt[place]["content"]]
    for place in tagged:
        placed[place] = {**prompt[place], "content": prompt[place]["content"].replace(TAG, IMAGE)}
    if not tagged:
        first = prompt[questions[0]]
        placed[questions[0]] = {**first, "content": IMAGE * count + first["content"]}
    return placed


def blocks(messages: list[Message]) -> list[Message]:
    """The messages as a processor's chat template takes them: their content in typed blocks of text and images."""
    in_blocks = []
    for message in messages:
        content: list[Row] = []
        for place, text in enumerate(message["content"].split(IMAGE)):
            if place:
                content.append({"type": "image"})
            if text:
                content.append({"type": "text", "text": text})
        in_blocks.append({**message, "content": content})
    return in_blocks


def in_words(image: Row) -> str:
    """An image where a reader sees text, such as [image 640x480]."""
    return f"[image {image['width']}x{image['height']}]"

"""One raw row -> its pairs with the hashes that tell them from others, or the reasons to drop them."""

from __future__ import annotations

import hashlib
import json
from itertools import repeat
from typing import Any

from ..errors import RecipeError
from ..formats.image_marks import IMAGES
from ..formats.messages import Drop, Row
from ..formats.oddities import odd_bits
from ..formats.raw_row import Pair, Reading, explicit_pairs, is_repeated_header
from ..formats.readers import PAIR, PASSED_ON
from .images import IMAGE_FILES, files_of_images, images_of_files
from .rows_of_files import row_of
from .sources import Span

BY_READER = "dropped by the reader"
PUNCTUATION = ".,;:!?\"'`()[]*_\u2018\u2019\u201c\u201d\u2026\u3001\u3002\uff0c\uff01\uff1f\uff1a\uff1b"
KEYS = ("prompt_key", "pair_key", "swapped_key")  # 64 bits of the SHA-256 of what they name
NEAR = ("near_prompt_key", "near_pair_key")  # the same of what is left without punctuation: see `_near`
OF_ROW = ("number", "several")  # the number of the raw row, and what it has several of: SEVERAL_REPLIES, SEVERAL_TURNS
SEVERAL_REPLIES, SEVERAL_TURNS = 1, 2
ODD = ("odd_bits", "chosen_key", "rejected_key")  # what may be odd about a pair: ODDITIES, and a hash of each side


def read_rows(batch: dict[str, list[Any]], numbers: list[int], **how: Any) -> dict[str, list[Any]]:
    """The pairs of a batch of raw rows, as columns; `how` is what `read_row` needs beside the row."""
    columns: dict[str, list[Any]] = {}
    for place, number in enumerate(numbers):
        example = {name: values[place] for name, values in batch.items()}
        for pair in read_row(example, number, **how):
            for name, value in pair.items():
                columns.setdefault(name, []).append(value)
    return columns


def read_row(
    example: Row,
    number: int,
    *,
    form: str,
    kwargs: Row,
    reading: Reading,
    label: str,
    spans: list[Span],
    folders: list[str],
    reader: Any,
    where: str,
) -> list[Row]:
    """The pairs of a row with their KEYS, NEAR, OF_ROW and ODD; each may be a row of None beside the reason to drop it
    and what was found.
    """
    name = row_name(number, label, spans)
    raw = row_of(example)
    row: Row | None = raw
    if reader and not is_repeated_header(raw):
        row = _read_by_user(reader, raw, f"{where}, row {name}: data.reader")
        form, reading = "preference", reading._replace(strict=False)

    pairs = [Pair("", Drop(BY_READER))] if row is None else explicit_pairs(row, form, reading)
    several = _several(pairs)
    prompt_key: int | None = None
    read: list[Row] = []
    for pair_label, pair, _ in pairs:
        of_row = {"row": name + pair_label, "number": number, "several": several, IMAGE_FILES: None}
        if not isinstance(pair, Drop) and pair.get(IMAGES):
            pair, of_row[IMAGE_FILES] = _with_image_files(pair, folders)
        if isinstance(pair, Drop):
            nothing = dict.fromkeys((*PAIR, *PASSED_ON, IMAGES)) | dict.fromkeys((*KEYS, *NEAR, *ODD), 0)
            read.append({**nothing, "weight": 0.0, **of_row, "dropped": pair.reason, "found": pair.found})
            continue
        keys = _keys(pair, reading.every_turn)
        if prompt_key is None:
            prompt_key = keys["prompt_key"]
        keys["prompt_key"] = prompt_key  # the pairs of one row stay on one side of the hold-out
        read.append({**_columns(pair, raw, kwargs), **keys, **of_row, "dropped": "", "found": ""})
    return read


def _with_image_files(pair: Row, folders: list[str]) -> tuple[Row | Drop, list[Any] | None]:
    """(the pair with its images as they are known to be, or why they cannot be read; the files that tell it)."""
    try:
        image_files = files_of_images(pair[IMAGES], folders)
    except Drop as drop:
        return drop, None
    as_lists = [list(file) for file in image_files]
    try:
        return {**pair, IMAGES: images_of_files(image_files)}, as_lists
    except Drop as drop:
        return drop, as_lists


def _several(pairs: list[Pair]) -> int:
    """What a row has several of, as the sum of SEVERAL_REPLIES and SEVERAL_TURNS."""
    several = 0
    if any(pair.of_several_replies for pair in pairs):
        several += SEVERAL_REPLIES
    if any(not isinstance(pair.pair, Drop) and pair.pair["turns"] > 1 for pair in pairs):
        several += SEVERAL_TURNS
    return several


def _columns(pair: Row, raw: Row, kwargs: Row) -> Row:
    """The columns of a pair that tell what it says, and what is odd about it."""
    columns = {name: pair[name] for name in (*PAIR, *PASSED_ON, "weight")}
    columns["chat_template_kwargs"] = pair["chat_template_kwargs"] | kwargs  # the recipe's over the row's own
    columns[IMAGES] = pair.get(IMAGES)
    columns["odd_bits"] = odd_bits(pair, raw)
    for side in ("chosen", "rejected"):
        columns[f"{side}_key"] = _hash(json.dumps(pair[side], sort_keys=True).encode())
    return columns | _near_keys(pair)


def row_name(number: int, label: str, spans: list[Span]) -> str:
    """The number in the split, whatever slice of it was picked; behind the split's name where there are several."""
    for split, first, count in spans:
        if number < count:
            split_label = f"{split}:" if len(spans) > 1 else ""
            return f"{label}{split_label}{first + number}"
        number -= count
    return f"{label}{number}"


def _read_by_user(reader: Any, row: Row, where: str) -> Row | None:
    """What the user's own function makes of a row: prompt, chosen and rejected, or None to drop it."""
    try:
        pair = reader(row)
    except Exception as error:  # the user's function
        raise RecipeError(f"{where} raised {type(error).__name__}: {error}. None would drop the row.") from error
    if pair is not None and not (isinstance(pair, dict) and {*PAIR} <= pair.keys()):
        raise RecipeError(f"{where} returned {pair!r:.60}, not a dict with prompt, chosen and rejected, or None.")
    return pair


def _keys(pair: Row, every_turn: bool) -> dict[str, int]:
    """The KEYS of a pair: of what it asks, of all of it, and of the same pair the other way round.

    Where `every_turn` makes a pair, a conversation is known by its first question, which all of its turns have.
    """
    prompt, chosen, rejected, *passed_on = (
        json.dumps(pair[column], sort_keys=True).encode() for column in (*PAIR, *PASSED_ON)
    )
    # Prompts that differ in case and white space alone ask the same.
    questions = _questions(pair)[:1] if every_turn else _questions(pair)
    same_question = [" ".join(question.casefold().split()) for question in questions] + _image_keys(pair)
    passed_on += [key.encode() for key in _image_keys(pair)]
    return {
        "prompt_key": _hash(json.dumps(same_question).encode()),
        "pair_key": _hash(prompt, chosen, rejected, *passed_on),
        "swapped_key": _hash(prompt, rejected, chosen, *passed_on),
    }


def _questions(pair: Row) -> list[str]:
    """What is asked: the user's messages, or all of a prompt of text."""
    if isinstance(pair["prompt"], str):
        return [pair["prompt"]]
    return [message["content"] for message in pair["prompt"] if message["role"] == "user"]


def _image_keys(pair: Row) -> list[str]:
    """By what the images of a pair are told from others: the same question about another image asks something else."""
    return [image["key"] for image in pair.get(IMAGES, [])]


def _near_keys(pair: Row) -> dict[str, int]:
    """The NEAR of a pair: the same for two that differ in case, white space and the punctuation around words alone."""
    questions = [_near(question) for question in _questions(pair)] + _image_keys(pair)
    sides = []
    for side in ("chosen", "rejected"):
        texts = [pair[side]] if isinstance(pair[side], str) else [message["content"] for message in pair[side]]
        sides.append([_near(text) for text in texts])
    return {
        "near_prompt_key": _hash(json.dumps(questions).encode()),
        "near_pair_key": _hash(json.dumps([questions, *sides]).encode()),
    }


def _near(text: str) -> str:
    """The words in lower case, without the punctuation around them: what stands in a word, as in 3.5, stays."""
    words = map(str.strip, text.casefold().split(), repeat(PUNCTUATION))  # in C, as this is done for each word
    return " ".join(filter(None, words))


def _hash(*texts: bytes) -> int:
    """64 bits of the SHA-256 of the texts, as a signed integer."""
    return int.from_bytes(hashlib.sha256(b"|".join(texts)).digest()[:8], "little", signed=True)

"""The parts of both sides: what each path gives to the train and to the evaluation pairs, and the form it has."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..errors import RecipeError
from ..formats.messages import Row
from ..formats.recognise import choose_format
from ..recipe.data import Data
from . import sources
from .images import undecoded
from .read_row import row_name
from .rows_of_files import row_of
from .sources import Span

SAMPLE = 100  # rows of a part from which its form is recognised


@dataclass
class Part:
    """What one path gives to one side: the train or the evaluation pairs."""

    path: str
    where: str  # as a message names it
    raw: Any  # datasets.Dataset, as it is stored
    spans: list[Span]  # of the rows that were picked, in order
    share: float = 1.0  # of its pairs to use
    label: str = ""  # before its row numbers
    form: str = "reader"
    folders: list[str] = field(default_factory=list)  # in which the names of images are looked for


def load_parts(data: Data, paths: dict[str, float], name: str) -> tuple[list[Part], list[Part]]:
    """The parts of the train and of the evaluation pairs; none of these where pairs are held out."""
    train_parts: list[Part] = []
    eval_parts: list[Part] = []
    without_eval: list[str] = []  # single files, which have no other split
    eval_split, eval_slice = sources.name_and_slice(str(data.eval))

    splits_of: dict[str, Any] = {}
    field = "data.mix" if data.mix else "data.path"
    for path in paths:
        splits_of[path] = sources.files_of(path, field) if _is_local(path) else sources.hub(data, path)
    if all(list(splits) == [""] for splits in splits_of.values()):
        _refuse_split_of_a_single_file(name, data)

    for path, share in paths.items():
        splits = splits_of[path]
        is_single_file = list(splits) == [""]
        if is_single_file:  # in a mix it serves as whatever split is trained on
            splits = {sources.name_and_slice(data.train)[0]: splits[""]}
        label = f"{path}:" if len(paths) > 1 else ""

        load = sources.stream if data.streaming else sources.pick
        raw, spans = load(splits, data.train, path)
        where = f"{path} ({data.train})"
        train_parts.append(Part(path, where, undecoded(raw), spans, share, label, folders=_folders(path)))

        if not isinstance(data.eval, str) or sources.is_path(eval_split):
            continue
        if is_single_file and eval_split not in splits:
            without_eval.append(path)
            continue
        raw, spans = sources.pick(splits, data.eval, path)
        where = f"{path} ({data.eval})"
        eval_parts.append(Part(path, where, undecoded(raw), spans, share, label, folders=_folders(path)))

    if sources.is_path(eval_split) or (without_eval and os.path.exists(eval_split)):
        raw, spans = sources.pick(sources.files_of(eval_split, "data.eval"), eval_slice, eval_split)
        where = str(data.eval)
        return train_parts, [Part(where, where, undecoded(raw), spans, folders=_folders(eval_split))]
    if without_eval and eval_parts:
        raise RecipeError(
            f"{without_eval[0]} has no split {data.eval!r}, as others have. Set data.eval to a share, or to a file."
        )
    return train_parts, eval_parts


def _refuse_split_of_a_single_file(name: str, data: Data) -> None:
    """An error for a split that a single file cannot have: all of it is called train."""
    if sources.split_names(data.train) != {"train"}:
        raise RecipeError(
            f"data.train={data.train!r}: {name} is a single file, which has no splits. Leave data.train out, or take a "
            "slice: data.train=train[:90%]. A folder has splits: files named after them."
        )
    if not isinstance(data.eval, str):
        return
    is_elsewhere = _is_local(sources.name_and_slice(data.eval)[0])
    if not is_elsewhere and sources.split_names(data.eval) != {"train"}:
        raise RecipeError(
            f"data.eval={data.eval!r}: {name} is a single file, which has no splits. Give a share to hold out, "
            "data.eval=0.1, another file, or a slice: data.train=train[:90%] data.eval=train[90%:]."
        )


def _folders(path: str) -> list[str]:
    """Where a file or folder of rows has the images that it names: beside the rows, whatever the working folder is."""
    place = os.path.abspath(os.path.expanduser(path))
    if not _is_local(path):
        return []
    return [place, os.path.join(place, "data")] if os.path.isdir(place) else [os.path.dirname(place)]


def _is_local(path: str) -> bool:
    return sources.is_path(path) or os.path.exists(path)


def recognise_forms(parts: list[Part], data: Data) -> list[str]:
    """Give each part its form, unless a reader of the user's own reads them all; what should be noted of them."""
    notes: list[str] = []
    if data.reader:
        return notes
    for part in parts:
        sample = [row_of(row) for row in islice(part.raw, SAMPLE)]
        part.form = choose_format(
            sample,
            part.where,
            named=data.format,
            max_dropped=data.max_dropped,
            may_be_rendered=may_be_rendered(data),
            row_names=[row_name(number, part.label, part.spans) for number in range(len(sample))],
        )
        if part.form == "preference" and any(_has_text_prompt(row) for row in sample):
            notes.append(
                "Each prompt of plain text is read as a user's message and both sides as an assistant's replies, which "
                "the chat template then writes out. To train on the text as it is: data.format=text."
            )
        if part.form == "text" and not any("prompt" in row for row in sample):
            notes.append("There is no prompt column: the words that the sides share at the start are the prompt.")
    return notes


def may_be_rendered(data: Data) -> bool:
    """Whether the user accepts the marks of a chat template in the texts."""
    return "special_tokens" in data.allow


def _has_text_prompt(row: Row) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, str) and prompt != ""


def one_kind_of_pairs(train_parts: list[Part], eval_parts: list[Part], name: str) -> tuple[str, bool]:
    """(the forms of the train pairs, as the report names them; whether all pairs are text).

    A chat template is applied to all pairs or to none: text beside messages is refused.
    """
    train_forms = " + ".join(dict.fromkeys(part.form for part in train_parts))
    eval_forms = " + ".join(dict.fromkeys(part.form for part in eval_parts or train_parts))
    if train_forms == eval_forms == "text":
        return train_forms, True
    if "text" in (part.form for part in (*train_parts, *eval_parts)):
        raise RecipeError(
            f"{name}: the train pairs were read as {train_forms!r}, the evaluation pairs as {eval_forms!r}: a template "
            "fits one only. Name the form of all with data.format."
        )
    return train_forms, False


def refuse_idle_fields(data: Data, paths: dict[str, float], text: bool, name: str) -> None:
    """An error for fields of the recipe that would do nothing."""
    if all(_is_local(path) for path in paths):
        for field in ("subset", "data_dir", "revision"):
            refuse_idle_field(data, field, f"{name} is local, not on the hub")
    if text:
        for field in ("chat_template", "chat_template_kwargs", "template_date"):
            refuse_idle_field(data, field, f"{name} was read as text, without a template")
        if data.system != "keep":
            refuse_idle_field(data, "system", f"{name} was read as text, without system messages")


def refuse_idle_field(data: Data, field: str, why: str) -> None:
    value = getattr(data, field)
    if value:
        raise RecipeError(f"data.{field}={value!r:.40} does nothing: {why}. Delete it.")

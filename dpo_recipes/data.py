"""Raw preference rows -> explicit `prompt` / `chosen` / `rejected`; what is held out; what was dropped, and why.

`sources` finds the rows and `rows` reads each of them. Here too are the two things that a chat template must be asked
before it is applied to the pairs: whether it prints today's date, and whether it reads what it is given.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from array import array
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import rows, sources
from .errors import RecipeError
from .recipe import Data
from .rows import Row

if TYPE_CHECKING:
    from datasets import Dataset

# `datasets` caches a function's results under its name: without its text a new release would be served the old rows.
CODE = hashlib.sha256(Path(__file__).read_bytes() + Path(rows.__file__).read_bytes()).hexdigest()
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@dataclass
class Read:
    """Pairs for TRL: columns prompt, chosen, rejected, and where there are any tools and chat_template_kwargs."""

    train: Dataset
    eval: Dataset
    text: bool  # True: plain strings, to which no chat template is applied; False: lists of messages
    report: dict[str, Any]  # JSON-able: path, train, eval, format, text, fingerprint, notes


def read(data: Data, path: str, *, num_proc: int | None = None) -> Read:
    """Load `path` (data.path with its placeholders resolved) and make its pairs explicit.

    What is held out depends on the pairs alone, so that it is the same for every seed of a sweep. RecipeError for anything missing,
    unreadable, ambiguous or of a wrong type, and when more than data.max_dropped of a split cannot be used; the hub's
    OSError and ConnectionError pass through.
    """
    local = sources.is_path(path) or Path(path).exists()
    for name in ("subset", "data_dir", "revision"):
        if local and (value := getattr(data, name)) is not None:
            raise RecipeError(f"data.{name}={value!r} does nothing: {path} is local, not on the hub. Delete it.")
    splits = sources.files_of(path) if local else sources.hub(data, path)
    if single := list(splits) == [""]:
        splits = {sources.names_in(data.train)[0]: splits[""]}
    notes: list[str] = []
    raw, share, where = None, 0.0, f"{path} ({data.eval})"
    if not isinstance(data.eval, str):
        share = data.eval
    elif single and sources.is_path(data.eval):
        raw, where = sources.pick(sources.files_of(data.eval), "", data.eval), data.eval
    elif single and sources.names_in(data.eval)[0] not in splits:
        share = 0.05
        notes.append(f"{path} is one file without a split {data.eval!r}: 5 % of its pairs are held out instead.")
    else:
        raw = sources.pick(splits, data.eval, path)

    rows_of_train = sources.pick(splits, data.train, path)
    train, form, part = _explicit(rows_of_train, data, f"{path} ({data.train})", notes, num_proc)
    report: dict[str, Any] = {"path": path, "train": {"split": data.train, **part}}
    if raw is None:
        train, evaluation = _hold_out(train, share, path)
        held = len(evaluation)
        report["train"] |= {"kept": len(train), "held_out": held}
        report["eval"] = {"split": f"{share:.3g} of {data.train}", "rows": held, "kept": held, "dropped": {}}
    else:
        evaluation, other, part = _explicit(raw, data, where, notes, num_proc)
        report["eval"] = {"split": data.eval, **part}
        if (other == "text") != (form == "text"):
            raise RecipeError(
                f"{path}: the train pairs were read as {form!r}, the evaluation pairs as {other!r}, so that a chat "
                "template would be applied to one of them only. Name the form of both with data.format."
            )
        trained = set(_prompt_keys(train))
        if seen := sum(key in trained for key in _prompt_keys(evaluation)):
            notes.append(f"{seen} of the {len(evaluation)} evaluation pairs have a prompt that is also trained on.")
    for name in ("chat_template", "chat_template_kwargs", "template_date"):
        if form == "text" and getattr(data, name):
            raise RecipeError(
                f"data.{name} does nothing: the rows of {path} are plain text, to which no chat template is applied. "
                "Delete it, or give a prompt column and data.format='preference'."
            )
    report |= {"format": form, "text": form == "text", "fingerprint": _fingerprint(train, evaluation)}
    return Read(train, evaluation, form == "text", report | {"notes": list(dict.fromkeys(notes))})


def _explicit(dataset: Dataset, data: Data, where: str, notes: list[str], num_proc: int | None) -> tuple[Any, str, Row]:
    """The kept pairs, their format, and the report's part: rows, kept, dropped."""
    from datasets import Features, Json, List, Value

    names = dataset.column_names
    wanted = [c for c in names if c in (sources.RAW, *rows.PASSED, *rows.UNREAD)]
    raw = sources.each_row(dataset.select_columns(wanted)) if wanted else ()
    shape = rows.look(raw, where, [c for c in names if c != sources.RAW])
    form = rows.choose(shape, where, named=data.format, few=data.max_dropped * shape.rows)
    columns, kwargs = [c for c in rows.PASSED if c in shape.columns], data.chat_template_kwargs
    message = {"role": Value("string"), "content": Value("string")} if shape.keys <= {"role", "content"} else Json()
    features = dict.fromkeys(("prompt", *rows.SIDES), Value("string") if form == "text" else List(message))
    if form != "text":
        features |= {c: Json() for c in rows.PASSED[3:] if c in columns or c == "chat_template_kwargs" and kwargs}
    read = dataset.map(
        _read_row, features=Features(features | {"dropped": Value("string")}), remove_columns=names, num_proc=num_proc,
        fn_kwargs={"form": form, "columns": columns, "kwargs": kwargs, "out": list(features), "code": CODE},
    )  # fmt: skip
    dropped: dict[str, Any] = {}
    kept = []
    for number, row in enumerate(sources.each_row(read.select_columns("dropped"))):
        if reason := row["dropped"]:
            entry = dropped.setdefault(reason, {"count": 0, "rows": []})
            entry["count"] += 1
            entry["rows"] = [*entry["rows"], number][:3]
        else:
            kept.append(number)
    if (lost := len(read) - len(kept)) > data.max_dropped * len(read) or not kept:
        each = (f"{reason}: {d['count']} (rows {str(d['rows'])[1:-1]} ...)" for reason, d in dropped.items())
        allow = f"or allow it: data.max_dropped={math.ceil(100 * lost / len(read)) / 100:g}."
        raise RecipeError(
            f"{where}: {lost} of {len(read)} rows cannot be used, read as {form!r}. {'; '.join(each)}. Correct or "
            f"remove them, {allow if kept else 'or name the right form with data.format.'}"
        )
    if form == "preference" and "text" in shape.kinds.get("prompt", {}):
        notes.append("Text became user and assistant messages; data.format='text' keeps it, without a chat template.")
    if form == "text" and "prompt" not in columns:
        notes.append("There is no prompt column: the words that chosen and rejected share at the start are the prompt.")
    read = read.remove_columns("dropped")
    part = {"rows": len(read), "kept": len(kept), "dropped": dropped}
    return read.select(kept) if lost else read, form, part


def _read_row(example: Row, *, form: str, columns: list[str], kwargs: Row, out: list[str], code: str) -> Row:
    """One pair with the columns `out`, or a row of None beside the reason to drop it; `code` is for the cache's key."""
    row = json.loads(example[sources.RAW]) if sources.RAW in example else example
    pair = rows.READERS[form]({c: row.get(c) for c in columns})
    if isinstance(pair, str):
        return dict.fromkeys(out) | {"dropped": pair}
    own = {"tools": rows.bare(rows.parsed(row.get("tools")))}
    own["chat_template_kwargs"] = (rows.bare(rows.parsed(row.get("chat_template_kwargs"))) or {}) | kwargs
    return pair | {c: own[c] for c in out if c in own} | {"dropped": ""}


def _prompt_keys(dataset: Dataset) -> array[int]:
    """64 bits of each row's prompt; the order they put prompts in has nothing to do with the prompts."""
    prompts = (json.dumps(row, sort_keys=True) for row in sources.each_row(dataset.select_columns("prompt")))
    return array("Q", (int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) for prompt in prompts))


def _hold_out(dataset: Dataset, share: float, path: str) -> tuple[Dataset, Dataset]:
    """Train and evaluation pairs; all pairs of one prompt are on one side, the same on every machine."""
    keys = _prompt_keys(dataset)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    cut = max(1, round(share * len(keys)))
    while cut < len(keys) and keys[order[cut]] == keys[order[cut - 1]]:
        cut += 1
    if cut == len(keys):
        raise RecipeError(
            f"{path}: holding out {share:.3g} of {len(keys)} pairs by prompt leaves none to train on, as they have "
            "too few different prompts. Add pairs, or name others with data.eval."
        )
    return dataset.select(sorted(order[cut:])), dataset.select(sorted(order[:cut]))


def _fingerprint(*parts: Dataset) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for row in sources.each_row(part):
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()


def pin_date(template: str, date: str) -> str:
    """The Jinja template with each strftime_now("<format>") replaced by that date (YYYY-MM-DD), in English.

    SmolLM3 and Llama 3.2 print today's date: their tokens, and all that is computed from them, would change daily.
    """
    day = datetime.fromisoformat(date)
    names = {"%B": MONTHS[day.month - 1], "%A": DAYS[day.weekday()]}
    names |= {"%b": names["%B"][:3], "%h": names["%B"][:3], "%a": names["%A"][:3]}

    def literal(call: re.Match[str]) -> str:
        english = re.sub("%[%BbhAa]", lambda code: names.get(code[0], code[0]), call[2])
        return call[1] + day.strftime(english) + call[1]

    return re.sub(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", literal, template)


def unread_kwargs(template: str, kwargs: Row) -> list[str]:
    """The names among `kwargs` that the chat template never reads; RecipeError if it is no Jinja."""
    import jinja2

    plain = re.sub(r"{%[-+]?\s*(end)?generation\s*[-+]?%}", "", template)  # a tag that only Transformers knows
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except jinja2.TemplateSyntaxError as error:
        where = f"The chat template's line {error.lineno}"
        raise RecipeError(f"{where} is not valid Jinja: {error.message} Correct data.chat_template.") from None
    read = {name.name for name in parsed.find_all(jinja2.nodes.Name) if name.ctx == "load"}
    return [name for name in kwargs if name not in read]

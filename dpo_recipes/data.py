"""Raw preference rows -> explicit `prompt` / `chosen` / `rejected`; what is held out; what was dropped, and why."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from . import rows, sources
from .errors import RecipeError
from .recipe import Data
from .rows import Row


@dataclass
class Read:
    """Pairs for TRL: columns prompt, chosen, rejected, and where there are any tools and chat_template_kwargs."""

    train: Any  # datasets.Dataset
    eval: Any
    text: bool  # True: plain strings, to which no chat template is applied; False: lists of messages
    report: dict[str, Any]  # JSON-able: path, train, eval, format, text, fingerprint, notes


def read(data: Data, path: str, *, num_proc: int | None = None) -> Read:
    """Load `path` (data.path with its placeholders resolved) and make its pairs explicit.

    What is held out depends on the pairs alone: it is the same for every seed. RecipeError for anything missing,
    unreadable or ambiguous, and when more than data.max_dropped of a split cannot be used; the hub's OSError and
    ConnectionError pass through.
    """
    local = sources.is_path(path) or Path(path).exists()
    splits = sources.files_of(path) if local else sources.hub(data, path)
    if single := list(splits) == [""]:
        splits = {data.train.split("[")[0].strip(): splits[""]}
    notes: list[str] = []
    raw, share, where = None, 0.05, f"{path} ({data.eval})"
    if not isinstance(data.eval, str):
        share = data.eval
    elif sources.is_path(data.eval):
        raw, where = sources.pick(sources.files_of(data.eval), "", data.eval), data.eval
    elif single and data.eval.split("[")[0].strip() not in splits:
        notes.append(f"{path} is one file without a split {data.eval!r}: 5 % of its pairs are held out instead.")
    else:
        raw = sources.pick(splits, data.eval, path)

    picked = sources.pick(splits, data.train, path)
    train, form, part = _explicit(picked, data, f"{path} ({data.train})", notes, num_proc)
    report: dict[str, Any] = {"path": path, "train": {"split": data.train, **part}}
    if raw is None:
        train, evaluation = _hold_out(train, share, path)
        report["train"] |= {"kept": len(train), "held_out": (held := len(evaluation))}
        report["eval"] = {"split": f"{share:.3g} of {data.train}", "rows": held, "kept": held, "dropped": {}}
    else:
        evaluation, other, part = _explicit(raw, data, where, notes, num_proc)
        report["eval"] = {"split": data.eval, **part}
        if "text" in {form, other} and form != other:
            why = f"the train pairs were read as {form!r}, the evaluation pairs as {other!r}: a template fits one only."
            raise RecipeError(f"{path}: {why} Name the form of both with data.format.")
        trained = set(_digests(train.select_columns("prompt")))
        if seen := sum(prompt in trained for prompt in _digests(evaluation.select_columns("prompt"))):
            notes.append(f"{seen} of the {len(evaluation)} evaluation pairs have a prompt that is also trained on.")
    idle = dict.fromkeys(("subset", "data_dir", "revision") if local else (), "is local, not on the hub")
    template = ("chat_template", "chat_template_kwargs", "template_date") if form == "text" else ()
    idle |= dict.fromkeys(template, "was read as plain text, to which no chat template is applied")
    for name, why in idle.items():
        if value := getattr(data, name):
            raise RecipeError(f"data.{name}={value!r:.40} does nothing: {path} {why}. Delete it.")
    fingerprint = hashlib.sha256(b"".join([*_digests(train), b"|", *_digests(evaluation)])).hexdigest()
    report |= {"format": form, "text": form == "text", "fingerprint": fingerprint, "notes": list(dict.fromkeys(notes))}
    return Read(train, evaluation, form == "text", report)


def _explicit(dataset: Any, data: Data, where: str, notes: list[str], num_proc: int | None) -> tuple[Any, str, Row]:
    """The kept pairs, their format, and the report's part: rows, kept, dropped."""
    from datasets import Features, Json, Value

    names, kwargs = dataset.column_names, data.chat_template_kwargs
    looked = dataset.select_columns([c for c in names if c in (sources.RAW, *rows.PASSED, *rows.UNREAD)])
    seen = rows.look(map(sources.row_of, looked), where, [c for c in names if c != sources.RAW])
    form = rows.choose(seen, where, named=data.format, few=data.max_dropped)
    columns, kind = [c for c in rows.PASSED if c in seen[0]], Value("string") if form == "text" else Json()
    own = [c for c in rows.PASSED[3:] if c in columns or c == "chat_template_kwargs" and kwargs]
    out = [*rows.PAIR, *(own if form != "text" else ())]
    features = Features(dict.fromkeys(out, kind) | {"dropped": Value("string")})
    how = {"form": form, "columns": columns, "kwargs": kwargs, "out": out, "code": sources.CODE}
    read = dataset.map(_read_row, features=features, remove_columns=names, num_proc=num_proc, fn_kwargs=how)
    reasons = read["dropped"][:]
    dropped = {
        reason: {"count": reasons.count(reason), "rows": [n for n, r in enumerate(reasons) if r == reason][:3]}
        for reason in dict.fromkeys(filter(None, reasons))
    }
    kept = [number for number, reason in enumerate(reasons) if not reason]
    if (lost := len(reasons) - len(kept)) > data.max_dropped * len(reasons) or not kept:
        each = "; ".join(f"{reason}: {d['count']} (rows {str(d['rows'])[1:-1]} ...)" for reason, d in dropped.items())
        allow = f"allow it: data.max_dropped={math.ceil(100 * lost / len(reasons)) / 100:g}."
        what = f"Correct or remove them, or {allow if kept else 'name the right form with data.format.'}"
        raise RecipeError(f"{where}: {lost} of {len(reasons)} rows cannot be used, read as {form!r}. {each}. {what}")
    if form == "preference" and seen[1].get("prompt") == "text":
        notes.append("Text became user and assistant messages; data.format='text' keeps it, without a chat template.")
    if form == "text" and "prompt" not in columns:
        notes.append("There is no prompt column: the words that chosen and rejected share at the start are the prompt.")
    part = {"rows": len(reasons), "kept": len(kept), "dropped": dropped}
    return read.remove_columns("dropped").select(kept), form, part


def _read_row(example: Row, *, form: str, columns: list[str], kwargs: Row, out: list[str], code: str) -> Row:
    """One pair with the columns `out`, or a row of None beside the reason to drop it; `code` is for the cache's key."""
    row = sources.row_of(example)
    pair = rows.READERS[form]({c: row.get(c) for c in columns})
    if isinstance(pair, str):
        return dict.fromkeys(out) | {"dropped": pair}
    own = {c: rows.bare(row.get(c)) for c in out[3:]}
    if "chat_template_kwargs" in own:
        own["chat_template_kwargs"] = (own["chat_template_kwargs"] or {}) | kwargs
    return pair | own | {"dropped": ""}


def _digests(dataset: Any) -> list[bytes]:
    """The SHA-256 of each row, the same on every machine; to sort by it is to shuffle."""
    return [hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest() for row in dataset]


def _hold_out(dataset: Any, share: float, path: str) -> tuple[Any, Any]:
    """Train and evaluation pairs; all pairs of one prompt are on one side, the same on every machine."""
    prompts = _digests(dataset.select_columns("prompt"))
    last = sorted(prompts)[max(1, round(share * len(prompts))) - 1]
    train, held = ([i for i, prompt in enumerate(prompts) if (prompt <= last) is side] for side in (False, True))
    if not train:
        why = f"of {len(prompts)} pairs by prompt leaves none to train on: too few prompts. Name others with data.eval."
        raise RecipeError(f"{path}: holding out {share:.3g} {why}")
    return dataset.select(train), dataset.select(held)


def pin_date(template: str, date: str) -> str:
    """The Jinja template with that date (YYYY-MM-DD) for each strftime_now("<format>"). SmolLM3 and Llama 3.2 print
    today's: their tokens, and all that is computed from them, would change daily."""
    day, call = datetime.fromisoformat(date), r"""strftime_now\(\s*(["'])(.*?)\1\s*\)"""
    return re.sub(call, lambda found: found[1] + day.strftime(found[2]) + found[1], template)


def unread_kwargs(template: str, kwargs: Row) -> list[str]:
    """The names among `kwargs` that the chat template never reads; RecipeError if it is no Jinja."""
    import jinja2

    plain = re.sub(r"{%[-+]?\s*(end)?generation\s*[-+]?%}", "", template)  # a tag that only Transformers knows
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except jinja2.TemplateSyntaxError as error:
        what = f"is not valid Jinja: {error.message} Correct data.chat_template."
        raise RecipeError(f"The chat template's line {error.lineno} {what}") from None
    read = {name.name for name in parsed.find_all(jinja2.nodes.Name) if name.ctx == "load"}
    return [name for name in kwargs if name not in read]

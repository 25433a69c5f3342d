"""Raw preference rows -> explicit `prompt` / `chosen` / `rejected`; what is held out; what was dropped, and why."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..formats.messages import Drop, Row
from ..formats.readers import FORMATS, PAIR, PASSED_ON, QUESTION_COLUMNS, explicit_pair
from ..formats.recognise import choose_format
from ..recipe.recipe import Data
from ..runs.source_hash import source_hash
from . import sources

# Drops that say nothing against the data, and so do not count for data.max_dropped.
HARMLESS = ("tie", "dropped by the reader", "exact duplicate", "outside its share of the mix",
            "prompt is in the evaluation pairs")  # fmt: skip
KEYS = ("prompt_key", "pair_key", "swapped_key")  # 64 bits of the SHA-256 of what they name


def count_drop(dropped: dict[str, Row], reason: str, row: str) -> None:
    """Count a row in `dropped`, reason -> {"count", "rows"}, which names the first three of each reason."""
    drop = dropped.setdefault(reason, {"count": 0, "rows": []})
    drop["count"] += 1
    if len(drop["rows"]) < 3:
        drop["rows"].append(row)


@dataclass
class Read:
    """Pairs for TRL: columns prompt, chosen, rejected, row (its number) and, where any has them, those of PASSED_ON."""

    train: Any  # datasets.Dataset
    eval: Any
    text: bool  # True: plain strings, to which no chat template is applied; False: lists of messages
    report: dict[str, Any]  # JSON-able: path, train, eval, format, text, contradictions, fingerprint, notes, sources


@dataclass
class _Part:
    path: str
    where: str
    raw: Any  # datasets.Dataset, as it is stored
    share: float  # of its pairs to use
    label: str  # before its row numbers
    spans: list[tuple[str, int, int]]  # split, first row and number of rows that were picked, in order
    form: str = "reader"


def read(data: Data, paths: dict[str, float], *, num_proc: int | None = None) -> Read:
    """Load `paths` (data.paths with their placeholders resolved: path -> share) and make their pairs explicit.

    What is held out depends on the pairs alone: it is the same for every seed. RecipeError for anything missing,
    unreadable or ambiguous, and when more than data.max_dropped of a split cannot be used; the hub's OSError and
    ConnectionError pass through.
    """
    import numpy as np

    if data.streaming and (len(paths) > 1 or not isinstance(data.eval, str)):
        raise RecipeError(
            "data.streaming holds nothing out and mixes nothing: name one path, and a split as data.eval."
        )
    name, spec, notes, single = " + ".join(paths), str(data.eval), list[str](), list[str]()
    file, *cut = re.split(r"(?=\[)", spec, maxsplit=1)
    train, tests, local = list[_Part](), list[_Part](), [p for p in paths if sources.is_path(p) or Path(p).exists()]
    for path, share in paths.items():
        splits = sources.files_of(path) if path in local else sources.hub(data, path)
        if alone := list(splits) == [""]:
            splits = {data.train.split("[")[0].strip(): splits[""]}
        label = f"{path}:" * (len(paths) > 1)
        raw = sources.stream(splits, data.train, path) if data.streaming else sources.pick(splits, data.train, path)
        train.append(_Part(path, f"{path} ({data.train})", raw[0], share, label, raw[1]))
        if alone and file.strip() not in splits:
            single.append(path)
        elif isinstance(data.eval, str) and not sources.is_path(file):
            raw = sources.pick(splits, spec, path)
            tests.append(_Part(path, f"{path} ({spec})", raw[0], share, label, raw[1]))
    if sources.is_path(file) or single and Path(file).is_dir():
        raw = sources.pick(sources.files_of(file), "".join(cut), file)
        tests = [_Part(spec, spec, raw[0], 1.0, "", raw[1])]
    elif single and tests:
        raise RecipeError(f"{single[0]} has no split {spec!r}, as others have. Set data.eval to a share, or to a file.")
    elif single and isinstance(data.eval, str):
        notes.append(f"{name} has no split {spec!r}: 5 % of its pairs are held out instead.")
    for part in () if data.reader else (*train, *tests):
        sample = [sources.row_of(row) for row, _ in zip(part.raw, range(100), strict=False)]
        part.form = choose_format(sample, part.where, named=data.format, max_dropped=data.max_dropped)
        if part.form == "preference" and any(isinstance(row.get("prompt") or 0, str) for row in sample):
            notes.append("Text became user and assistant messages; data.format='text' keeps it, without a template.")
        if part.form == "text" and not any("prompt" in row for row in sample):
            notes.append("There is no prompt column: the words that the sides share at the start are the prompt.")
    form, other = (" + ".join(dict.fromkeys(part.form for part in side)) for side in (train, tests or train))
    if (text := "text" in f"{form} {other}".split()) and (form != other or "+" in form):
        why = f"the train pairs were read as {form!r}, the evaluation pairs as {other!r}: a template fits one only."
        raise RecipeError(f"{name}: {why} Name the form of all with data.format.")
    for fields, idle, why in (
        (("subset", "data_dir", "revision"), len(local) == len(paths), "is local, not on the hub"),
        (("chat_template", "chat_template_kwargs", "template_date"), text, "was read as text, without a template"),
    ):
        for field in fields if idle else ():
            if value := getattr(data, field):
                raise RecipeError(f"data.{field}={value!r:.40} does nothing: {name} {why}. Delete it.")

    held, held_keys, tested = _gather(tests, data, num_proc, ()) if tests else (None, [()], {})
    report: dict[str, Any] = {"path": name, "format": form, "text": text, "notes": list(dict.fromkeys(notes))}
    if data.streaming:
        dropped = dict[str, Row]()
        pairs = _streamed(train[0], data, set(held_keys[0].tolist()), dropped)
        report |= {"train": {"split": data.train, "dropped": dropped}, "eval": {"split": spec, **tested}}
        return Read(pairs, held, text, report)
    pairs, keys, trained = _gather(train, data, num_proc, held_keys[0])
    if not tests:
        share = 0.05 if isinstance(data.eval, str) else data.eval
        out = keys[0] <= np.sort(keys[0])[max(1, round(share * len(pairs))) - 1]  # all pairs of one prompt, or none
        if out.all():
            why = f"of {len(out)} pairs by prompt leaves none to train on: too few prompts. Name others with data.eval."
            raise RecipeError(f"{name}: holding out {share:.3g} {why}")
        held, pairs = (pairs.select(np.flatnonzero(side)) for side in (out, ~out))
        held_keys, keys = keys[:, out], keys[:, ~out]
        spec, tested = f"{share:.3g} of {data.train}", {"rows": len(held), "kept": len(held), "dropped": {}}
        trained |= {"kept": len(pairs), "held_out": len(held)}
    twice = np.flatnonzero(np.isin(keys[1], keys[2]))
    digest = hashlib.sha256(b"|".join(one[1].astype("<i8").tobytes() for one in (keys, held_keys)))
    report |= {
        "train": {"split": data.train, **trained}, "eval": {"split": spec, **tested},
        "fingerprint": digest.hexdigest(),
        "contradictions": {"count": len(twice), "rows": pairs.select_columns("row")[twice[:3]]["row"]},
    }  # fmt: skip
    if len(paths) > 1:
        report["sources"] = {part.path: part.form for part in (*train, *tests)}
    return Read(pairs, held, text, report)


def _gather(parts: list[_Part], data: Data, num_proc: int | None, barred: Any) -> tuple[Any, Any, Row]:
    """The usable pairs of the parts, each once and none with a prompt of `barred`; their KEYS, an array of shape (3,
    pairs); rows, kept and dropped, of all parts together."""
    import datasets
    import numpy as np

    made = [_explicit(part, data, num_proc) for part in parts]
    whole = datasets.concatenate_datasets(made)
    names = whole.select_columns(["row", "found"])
    table = whole.select_columns(["dropped", *KEYS, *PASSED_ON]).with_format("arrow")[:]
    reasons = table["dropped"].combine_chunks().dictionary_encode()
    why = np.array(reasons.dictionary.to_pylist(), dtype=object)[reasons.indices.to_numpy()]
    keys = np.stack([table[key].to_numpy() for key in KEYS])
    ends = np.cumsum([0, *map(len, made)]).tolist()
    spans = list(zip(ends, ends[1:], strict=False))

    def count(start: int, end: int) -> Row:
        at = {reason: start + np.flatnonzero(why[start:end] == reason) for reason in dict.fromkeys(why[start:end])}
        kept = len(at.pop("", ()))
        dropped = {reason: {"count": len(n), "rows": names[n[:3]]["row"]} for reason, n in at.items()}
        return {"rows": end - start, "kept": kept, "dropped": dropped}

    for part, (start, end) in zip(parts, spans, strict=True):
        seen, left = count(start, end), start + np.flatnonzero(why[start:end] == "")
        harmless = sum(drop["count"] for reason, drop in seen["dropped"].items() if reason in HARMLESS)
        if (lost := end - start - len(left) - harmless) / (end - start) > data.max_dropped or not len(left):
            each = []
            for reason, drop in seen["dropped"].items():
                found = names[start + why[start:end].tolist().index(reason)]["found"]
                each.append(f"{reason}: {drop['count']} (rows {', '.join(drop['rows'])} ...{found and f': {found}'})")
            allow = f", or allow it: data.max_dropped={math.ceil(100 * lost / (end - start)) / 100:g}" * (len(left) > 0)
            what = f"Correct {'data.reader' if data.reader else 'or remove them'}{allow}."
            lose = f"{end - start - len(left)} of {end - start} rows cannot be used, read as {part.form!r}."
            raise RecipeError(f"{part.where}: {lose} {'; '.join(each)}. {what}")
        by_key = left[np.argsort(keys[1][left], kind="stable")]  # as good as drawn by lot, and the same everywhere
        why[by_key[max(1, round(part.share * len(left))) :]] = "outside its share of the mix"
    left = np.flatnonzero(why == "")
    why[np.delete(left, np.unique(keys[1][left], return_index=True)[1])] = "exact duplicate"
    why[(why == "") & np.isin(keys[0], barred)] = "prompt is in the evaluation pairs"
    if not len(kept := np.flatnonzero(why == "")):
        raise RecipeError(f"{parts[0].where}: no pair is left: the evaluation pairs have all the prompts. Use others.")
    unused = ["dropped", "found", *KEYS]
    for name in PASSED_ON:
        values = {value for chunk in table[name].chunks for value in chunk.storage.unique().to_pylist()}
        unused += [name] if values <= {None, "{}"} or parts[0].form == "text" else []
    return whole.remove_columns(unused).select(kept), keys[:, kept], count(0, ends[-1])


def _streamed(part: _Part, data: Data, barred: set[int], dropped: dict[str, Row]) -> Any:
    """The pairs of a stream as they are read, none with a prompt of `barred`; what is dropped is counted in `dropped`,
    in every epoch again, and not where a data loader reads in processes of its own."""

    lost = 0  # in this pass

    def usable(row: Row) -> bool:
        nonlocal lost
        number = int(row["row"])
        lost *= number > 0
        if reason := row["dropped"] or ("prompt is in the evaluation pairs" if row["prompt_key"] in barred else ""):
            count_drop(dropped, reason, row["row"])
            lost += reason not in HARMLESS
            if number >= 99 and lost / (number + 1) > data.max_dropped:
                what = f"{lost} of the first {number + 1} rows cannot be used. The last: {reason}: {row['found']}"
                raise RecipeError(f"{part.where}: {what} Correct them, or allow it with data.max_dropped.")
        return not reason

    made = part.raw.map(
        _read_row, with_indices=True, fn_kwargs=_how(part, data) | {"reader": data.reader, "where": part.where},
        remove_columns=part.raw.column_names,
    )  # fmt: skip
    return made.filter(usable).remove_columns(["dropped", "found", *KEYS])


def _explicit(part: _Part, data: Data, num_proc: int | None) -> Any:
    """The rows as pairs, or as None beside the reason to drop them, with KEYS."""
    from datasets import Features, Json, Value
    from multiprocess import get_start_method

    raw, reader, kind = part.raw, data.reader, Value("string") if part.form == "text" else Json()
    if not reader and sources.RAW not in raw.column_names:
        raw = raw.select_columns(
            [c for c in raw.column_names if c in FORMATS[part.form].reads or c in QUESTION_COLUMNS]
        )
    features = dict.fromkeys(PAIR, kind) | dict.fromkeys(PASSED_ON, Json()) | dict.fromkeys(KEYS, Value("int64"))
    features |= dict.fromkeys(("row", "dropped", "found"), Value("string"))
    source = reader and secrets.token_hex()  # what a user's function reads beside the row no cache can know
    how = _how(part, data)
    code = source_hash("formats", "data.sources", "data.preference_dataset")  # all that decides what a row becomes
    key = hashlib.sha256(repr([raw._fingerprint, how, code, source]).encode()).hexdigest()[:32]
    if get_start_method() != "fork" and (reader or num_proc is None):  # other ways run a user's script anew
        num_proc = None
    elif num_proc is None and len(raw) >= 2000:
        num_proc = len(os.sched_getaffinity(0))
    return raw.map(
        _read_row, with_indices=True, fn_kwargs={**how, "reader": reader, "where": part.where}, new_fingerprint=key,
        features=Features(features), remove_columns=raw.column_names, desc=f"Reading {part.where}",
        num_proc=num_proc if (num_proc or 0) > 1 else None,
    )  # fmt: skip


def _how(part: _Part, data: Data) -> Row:
    """What `_read_row` needs beside the row."""
    return {"form": part.form, "kwargs": data.chat_template_kwargs, "strict": not data.format,
            "label": part.label, "spans": part.spans}  # fmt: skip


def _read_row(
    example: Row, number: int, *, form: str, kwargs: Row, strict: bool, label: str, spans: Any, reader: Any, where: str
) -> Row:
    """One pair with its KEYS, or a row of None beside the reason to drop it and what was found."""
    for split, first, count in spans:  # the number in the split, whatever slice of it was picked
        if number < count:
            label, number = label + (f"{split}:" if len(spans) > 1 else ""), first + number
            break
        number -= count
    row, out = sources.row_of(example), {"row": f"{label}{number}", "dropped": "", "found": ""}
    if reader:
        place = f"{where}, row {out['row']}: data.reader"
        try:
            row, form, strict = reader(row), "preference", False
        except Exception as error:
            raise RecipeError(f"{place} raised {type(error).__name__}: {error}. None would drop the row.") from error
        if row is not None and not (isinstance(row, dict) and {*PAIR} <= row.keys()):
            raise RecipeError(f"{place} returned {row!r:.60}, not a dict with prompt, chosen and rejected, or None.")
    pair = Drop("dropped by the reader") if row is None else explicit_pair(row, form, strict=strict)
    if isinstance(pair, Drop):
        out |= dict(zip(("dropped", "found"), pair.args, strict=False))
        return dict.fromkeys((*PAIR, *PASSED_ON)) | dict.fromkeys(KEYS, 0) | out
    pair["chat_template_kwargs"] |= kwargs
    prompt, chosen, rejected, *own = (json.dumps(pair[c], sort_keys=True).encode() for c in (*PAIR, *PASSED_ON))
    asked = [m["content"] for m in pair["prompt"] if m["role"] == "user"] if form != "text" else [pair["prompt"]]
    same = json.dumps([" ".join(text.casefold().split()) for text in asked]).encode()  # but for case and white space
    content = [same], [prompt, chosen, rejected, *own], [prompt, rejected, chosen, *own]
    for key, texts in zip(KEYS, content, strict=True):
        pair[key] = int.from_bytes(hashlib.sha256(b"|".join(texts)).digest()[:8], "little", signed=True)
    return pair | out

"""Where raw rows come from: a file, a folder or a hub data set; and which of them a split or slice names."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..errors import RecipeError, nearest
from ..recipe.recipe import Data

SUFFIXES = (".json", ".jsonl", ".csv", ".json.gz", ".jsonl.gz", ".csv.gz", ".parquet", ".arrow")
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
RAW = "__row__"  # json and csv rows travel as their own text: Arrow would guess types and fill in missing keys
# `datasets` caches a function's results under its name: without its text a new release would be served the old rows.
CODE = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(Path(__file__).parents[1].glob("**/*.py")))).hexdigest()


def is_path(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.lower().endswith(SUFFIXES[:-1])


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def files_of(path: str) -> dict[str, list[Path]]:
    """Split -> its files; a single file, or one saved Dataset, has the one split ""."""
    place, splits = Path(path).expanduser(), dict[str, list[Path]]()
    if not place.exists():
        close = nearest(place.name, [p.name for p in place.parent.glob("*")]) or " Correct data.path or data.eval."
        raise RecipeError(f"{path} does not exist: there is no such file or folder in {place.parent}.{close}")
    if place.is_file() and _suffix(place):
        return {"": [place]}
    saved = sorted((*place.glob("data-*.arrow"), *place.glob("*/data-*.arrow")))  # by save_to_disk
    for file in saved or sorted((*place.glob("*"), *place.glob("data/*"))):  # data/ as in a clone from the hub
        if suffix := _suffix(file):
            name = re.sub(r"-\d{5}-of-\d{5}.*", "", file.name[: -len(suffix)])
            name = name if not saved else "" if file.parent == place else file.parent.name
            splits.setdefault(name, []).append(file)
    for name, files in splits.items():
        if {len(files)} != ({int(n) for file in files for n in re.findall(r"-of-(\d{5})", file.name)} or {1}):
            found = f"{' and '.join(file.name for file in files)} are not one whole split {name!r}"
            raise RecipeError(f"{path}: {found}. Keep one file, or all the parts of one.")
    if not splits:
        raise RecipeError(f"{path} holds no pairs: a file, or a folder of files, is read that ends in {SUFFIXES[:-1]}.")
    return splits


def hub(data: Data, path: str) -> dict[str, Any]:
    """The splits of a hub data set; OSError and ConnectionError where the hub cannot be reached."""
    import datasets

    try:
        how = {"data_dir": data.data_dir, "revision": data.revision, "streaming": data.streaming}
        return datasets.load_dataset(path, data.subset, **how)
    except (ValueError, RuntimeError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        cause = error if isinstance(error, FileNotFoundError) else error.__cause__ or error
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise cause from None  # the connection broke in the middle
        what = "Check data.path, data.subset, data.data_dir and data.revision, and log in if it is private or gated."
        raise RecipeError(f"{path} cannot be loaded: {_short(cause)} {what}") from None


def _short(error: BaseException) -> str:
    return (shorten(str(error), 300, placeholder=" ...") or type(error).__name__).rstrip(".") + "."


def pick(splits: dict[str, Any], spec: str, path: str) -> tuple[Any, list[tuple[str, int, int]]]:
    """The rows that a split, a slice such as train[:10%], or a sum of them names; and the split, the first row and the
    number of rows of each."""
    import datasets

    picked, spans = [], []
    for part in spec.split("+"):
        name, bracket, cut = part.strip().partition("[")
        if name not in splits:
            raise RecipeError(f"{path} has no split {name!r}. It has: {', '.join(splits)}.{nearest(name, splits)}")
        rows = _load(splits[name]) if isinstance(splits[name], list) else splits[name]
        if isinstance(rows, datasets.IterableDataset):  # the evaluation pairs beside a stream
            rows = datasets.Dataset.from_list(list(rows))
        try:  # under another name: a file may be called train-v2.jsonl, which has not the form of a split
            [at] = datasets.ReadInstruction.from_spec("rows" + bracket + cut).to_absolute({"rows": len(rows)})
        except (ValueError, AssertionError) as error:
            what = f"{path}: {spec!r} is no split: {_short(error)} Write a slice as train[:1000] or train[5%:]."
            raise RecipeError(what) from None
        if at.from_ < at.to:
            picked.append(rows.select(range(at.from_, at.to)))
            spans.append((name, at.from_, at.to - at.from_))
    if not picked:
        raise RecipeError(f"{path}: {spec!r} selects no rows. Choose a slice within the split.")
    return datasets.concatenate_datasets(picked), spans


def stream(splits: dict[str, Any], spec: str, path: str) -> tuple[Any, list[tuple[str, int, int]]]:
    """The rows of a split as an IterableDataset, read when they are asked for."""
    if spec not in splits:
        what = f"{nearest(spec, splits)} What is streamed has no slices: trl.max_steps says how much is read."
        raise RecipeError(f"{path} has no split {spec!r}. It has: {', '.join(splits)}.{what}")
    rows = _load(splits[spec], streaming=True) if isinstance(splits[spec], list) else splits[spec]
    return rows, [(spec, 0, sys.maxsize)]


def _load(files: list[Path], streaming: bool = False) -> Any:
    import datasets

    names, kind = [str(file.resolve()) for file in files], _suffix(files[0])
    with _readable(files):
        if kind in (".parquet", ".arrow"):
            return datasets.load_dataset(kind[1:], data_files={"train": names}, split="train", streaming=streaming)
        stamps = [f"{file.stat().st_size}-{file.stat().st_mtime_ns}" for file in files]
        features = datasets.Features({RAW: datasets.Value("string")})
        how = {"names": names, "stamps": stamps, "code": CODE}  # the last two are there for the cache's key
        if streaming:
            return datasets.IterableDataset.from_generator(_streamed_rows, features=features, gen_kwargs=how)
        return datasets.Dataset.from_generator(_raw_rows, features=features, gen_kwargs=how)


@contextmanager
def _readable(files: list[Path]) -> Iterator[None]:
    """Say which file could not be read, and why."""
    try:
        yield
    except Exception as error:  # of many kinds and wrappings: datasets, pyarrow, csv, gzip, zlib, Unicode
        cause, where = error.__cause__ or error, ", ".join(map(str, files[:3]))
        if isinstance(cause, OSError) and cause.errno in FULL and cause.filename not in map(str, files):
            raise cause from None  # of the cache, not of the file
        empty = "corresponds to no data" in str(cause)
        why = "has no rows." if empty else f"is not readable as {_suffix(files[0])[1:]}: {_short(cause)}"
        raise RecipeError(f"{where} {why} Write it again: whole, in UTF-8, with one row for each pair.") from None


def _streamed_rows(names: list[str], **how: Any) -> Iterator[dict[str, str]]:
    with _readable([Path(name) for name in names]):
        yield from _raw_rows(names, **how)


def _raw_rows(names: list[str], stamps: list[str], code: str) -> Iterator[dict[str, str]]:
    """The rows of json, json lines and csv files as json."""
    for name in names:
        opened = gzip.open if name.lower().endswith(".gz") else open
        with opened(name, "rt", encoding="utf-8-sig", newline="") as file:
            for place, row, *text in (_csv_rows if ".csv" in _suffix(Path(name)) else _json_rows)(file):
                if not isinstance(row, dict):
                    raise ValueError(f"{place} is {row!r:.40}, not an object with columns")
                yield {RAW: text[0] if text else json.dumps(row)}


def _csv_rows(file: Any) -> Iterator[tuple[Any, ...]]:
    csv.field_size_limit(2**31 - 1)
    # Not pandas, which reads the replies "None" and "NA" as missing.
    reader = csv.DictReader(file, strict=True, skipinitialspace=True)
    if twice := [name for n, name in enumerate(reader.fieldnames or ()) if name in (reader.fieldnames or ())[:n]]:
        raise ValueError(f"line 1 names the column {twice[0]!r} twice")
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has {'more' if None in row else 'fewer'} cells than line 1")
        yield f"line {reader.line_num}", row


def _json_rows(file: Any) -> Iterator[tuple[Any, ...]]:
    array = file.read(99).lstrip().startswith("[")
    file.seek(0)
    if array:
        yield from ((f"item {number}", row) for number, row in enumerate(json.load(file)))
    for number, line in enumerate(() if array else file, 1):
        try:
            if line.strip():
                yield f"line {number}", json.loads(line), line
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not one whole JSON object ({error.msg})") from None


def row_of(example: dict[str, Any]) -> dict[str, Any]:
    return json.loads(example[RAW]) if RAW in example else dict(example)

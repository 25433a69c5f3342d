"""Where raw rows come from: a file, a folder of files, or a hub data set; and which of them a split or slice names.

The errors of `datasets`, pyarrow, csv and gzip are many and wrapped; here each becomes one that names the file and,
where it can be known, the line.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RecipeError, nearest
from .recipe import Data

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".json", ".jsonl", ".csv", ".json.gz", ".jsonl.gz", ".csv.gz", ".parquet")
RAW = "__row__"  # json and csv rows travel as their own text: Arrow would guess types and fill in missing keys
# `datasets` caches a function's results under its name: without its text a new release would be served the old rows.
CODE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def names_in(spec: str) -> list[str]:
    return [part.split("[")[0].strip() for part in spec.split("+")]


def is_path(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.lower().endswith(SUFFIXES)


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in SUFFIXES[::-1] if path.name.lower().endswith(suffix)), None)


def files_of(path: str) -> dict[str, list[Path]]:
    """Split -> its files; a single file, or one saved Dataset, has the one split ""."""
    place = Path(path).expanduser()
    if not place.exists():
        there = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        close = nearest(place.name, there) or " Correct data.path or data.eval."
        raise RecipeError(f"{path} does not exist: there is no such file or folder in {place.parent}.{close}")
    if place.is_file() and _suffix(place):
        return {"": [place]}
    splits: dict[str, list[Path]] = {}
    for file in sorted((*place.glob("data-*.arrow"), *place.glob("*/data-*.arrow"))):  # written by save_to_disk
        splits.setdefault("" if file.parent == place else file.parent.name, []).append(file)
    if splits:
        return splits
    for file in sorted((*place.glob("*"), *place.glob("data/*"))):  # data/ as in a clone from the hub
        if suffix := _suffix(file):
            name = re.sub(r"-\d{5}-of-\d{5}.*", "", file.name[: -len(suffix)])
            splits.setdefault(name, []).append(file)
    for name, files in splits.items():
        if len(files) > 1 and not all("-of-" in file.name for file in files):
            both = " and ".join(file.name for file in files)
            raise RecipeError(f"{path}: {both} are both the split {name!r}. Keep one, or name one as data.path.")
    if not splits:
        raise RecipeError(f"{path} holds no pairs: a file, or a folder of files, is read that ends in {SUFFIXES}.")
    return splits


def hub(data: Data, path: str) -> dict[str, Dataset]:
    """The splits of a hub data set; OSError and ConnectionError where the hub cannot be reached."""
    import datasets

    try:
        return datasets.load_dataset(path, data.subset, data_dir=data.data_dir, revision=data.revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        what = "Check data.path and data.revision, and log in if it is private or gated."
        raise RecipeError(f"{path} cannot be loaded: {_short(error)} {what}") from None
    except (ValueError, RuntimeError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        if isinstance(cause := error.__cause__ or error, OSError) and not isinstance(cause, FileNotFoundError):
            raise cause from None  # the connection broke in the middle
        what = "Check data.subset, data.data_dir and data.revision."
        raise RecipeError(f"{path} cannot be loaded: {_short(cause)} {what}") from None


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) < 300 else text[:300] + " ...").rstrip(".") + "."


def pick(splits: dict[str, Any], spec: str, path: str) -> Dataset:
    """The rows that a split, a slice such as train[:10%], or a sum of them names."""
    import datasets

    for name in names_in(spec):
        if name not in splits:
            raise RecipeError(f"{path} has no split {name!r}. It has: {', '.join(splits)}.{nearest(name, splits)}")
    loaded = {name: _load(splits[name]) if isinstance(splits[name], list) else splits[name] for name in names_in(spec)}
    try:  # a name alone need not have the form of a slice: a file may be called train-v2.jsonl
        known = {name: len(rows) for name, rows in loaded.items()}
        parts = [] if spec in loaded else datasets.ReadInstruction.from_spec(spec).to_absolute(known)
    except (ValueError, AssertionError) as error:
        what = "Write a slice as train[:1000] or train[5%:]."
        raise RecipeError(f"{path}: {spec!r} is no split: {_short(error)} {what}") from None
    picked = [loaded[p.splitname].select(range(p.from_, p.to)) for p in parts if p.from_ < p.to]
    picked += [loaded[spec]] if known.get(spec) else []
    if not picked:
        raise RecipeError(f"{path}: {spec!r} selects none of {sum(known.values())} rows. Choose a slice within them.")
    return datasets.concatenate_datasets(picked) if len(picked) > 1 else picked[0]


def _load(files: list[Path]) -> Dataset:
    import datasets

    names, kind = [str(file.resolve()) for file in files], _suffix(files[0]) or ".arrow"
    try:
        if kind in (".parquet", ".arrow"):
            return datasets.load_dataset(kind[1:], data_files={"train": names}, split="train")
        stamps = [f"{file.stat().st_size}-{file.stat().st_mtime_ns}" for file in files]
        return datasets.Dataset.from_generator(
            _raw_rows,
            features=datasets.Features({RAW: datasets.Value("string")}),
            gen_kwargs={"names": names, "stamps": stamps, "code": CODE},
        )
    except Exception as error:  # of many kinds and wrappings: datasets, pyarrow, csv, gzip, zlib, Unicode
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetsError) and error.__cause__ else error
        where, empty = ", ".join(map(str, files[:3])), "corresponds to no data" in str(cause)
        why = "has no rows." if empty else f"is not readable as {kind[1:]}: {_short(cause)}"
        raise RecipeError(f"{where} {why} Write it again: whole, in UTF-8, with one row for each pair.") from None


def _raw_rows(names: list[str], stamps: list[str], code: str) -> Iterator[dict[str, str]]:
    """The rows of json, json lines and csv files as json; `stamps` and `code` are there for the cache's key."""
    csv.field_size_limit(sys.maxsize)
    for name in names:
        read = _csv_rows if ".csv" in (_suffix(Path(name)) or "") else _json_rows
        opened = gzip.open if name.lower().endswith(".gz") else open
        with opened(name, "rt", encoding="utf-8-sig", newline="") as file:
            for row in read(file):
                yield {RAW: json.dumps(row)}


def _csv_rows(file: Any) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(file, strict=True)  # not pandas, which reads the replies "None" and "NA" as missing
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has {'more' if None in row else 'fewer'} cells than line 1")
        yield row


def _json_rows(file: Any) -> Iterator[dict[str, Any]]:
    while (first := file.read(1)).isspace():
        pass
    file.seek(0)
    for number, item in enumerate(json.load(file) if first == "[" else file):
        place, row = f"item {number}", item
        if first != "[":
            place = f"line {number + 1}"
            if not item.strip():
                continue
            try:
                row = json.loads(item)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place} is not one whole JSON object ({error.msg})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place} is {row!r:.40}, not an object with columns")
        yield row


def each_row(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Row by row, decoded a thousand at a time."""
    for batch in dataset.iter(1000):
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            yield json.loads(row[RAW]) if RAW in row else row

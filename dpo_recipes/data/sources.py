"""Where raw rows come from: a file, a folder or a hub data set; and which of them a split or slice names."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import lzma
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..errors import RecipeError, nearest
from ..recipe.data import FILE_SUFFIXES, Data
from ..runs.source_hash import source_hash
from ..runs.unwritable import UNWRITABLE
from . import other_files

SUFFIXES = (*FILE_SUFFIXES, ".arrow")  # the last as save_to_disk leaves them in a folder

# Rows of json and csv files travel as their own text in this one column: Arrow would guess types and fill in missing
# keys.
RAW = "__row__"

# What follows the split in the name of a part: "-00000-of-00002" in "train-00000-of-00002.parquet", on the hub with a
# hash behind it. The groups are the number of the part and how many there are.
PART = re.compile(r"-(\d{5})-of-(\d{5}).*")

# Files that datasets writes beside rows.
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")

# Keys under which a JSON file may hold all its rows.
KEYS_OF_ROWS = ("data", "rows", "records", "items", "examples", "instances", "pairs", "train", "test", "validation")

Splits = dict[str, Any]  # split -> its files, or its rows as datasets has them
Span = tuple[str, int, int]  # split, number of the first row in it, number of rows


def is_path(path: str) -> bool:
    """Whether a name is that of a file or a folder, and not of a data set or model on the hub."""
    starts_like_path = path.startswith((".", "/", "~")) or other_files.is_address(path)
    return starts_like_path or path.lower().endswith(FILE_SUFFIXES) or other_files.has_other_ending(path)


def _suffix(path: Path) -> str:
    """The ending that says how a file is read, such as ".jsonl.gz"; "" where it is not read."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


# Splits


def name_and_slice(part: str) -> tuple[str, str]:
    """What data.train or data.eval names, and which of its rows: "train[:10%]" is ("train", "[:10%]")."""
    name, bracket, bounds = part.strip().partition("[")
    return name.strip(), bracket + bounds


def split_names(spec: str) -> set[str]:
    """The splits of which data.train or data.eval takes rows, such as train and test of "train[:10%]+test"."""
    return {name_and_slice(part)[0] for part in spec.split("+")}


def files_of(path: str, field: str = "data.path") -> dict[str, list[Path]]:
    """Split -> its files; a single file, or one saved Dataset, has the one split "".

    `field` is where the recipe names the path. Raises RecipeError for a path that is not there or may not be read, one
    that holds no pairs, and a split of which a part is missing.
    """
    other_files.refuse_address(path, field)
    place = Path(os.path.expanduser(path))
    _refuse_what_is_not_there(path, place, field)
    if place.is_file():
        if not _suffix(place):
            other_files.refuse_other_ending(path, place)
        return {"": [place]}

    _refuse_a_model(path, place, field)
    splits = _saved_splits(place) or _splits_by_name(place)
    if not splits:
        raise _no_pairs(path, place)
    for name, files in splits.items():
        _refuse_missing_parts(path, name, files)
        for file in files:
            _refuse_what_is_not_there(str(file), file, field)
    return splits


def _refuse_what_is_not_there(path: str, place: Path, field: str) -> None:
    """RecipeError unless this is a file or a folder that may be read."""
    try:
        kind = place.stat().st_mode
    except (OSError, ValueError) as error:  # the latter for a name with a NUL in it
        raise _not_there(path, place, field, error) from None
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise RecipeError(f"{field}={path!r} is neither a file nor a folder. Write the rows to a file, and name it.")
    if not os.access(place, os.R_OK):
        raise RecipeError(f"{path} may not be read by this user. Allow it: chmod u+r, or name a copy as {field}.")


def _not_there(path: str, place: Path, field: str, error: OSError | ValueError) -> RecipeError:
    """The error for a path that leads nowhere."""
    if os.path.islink(place):
        return RecipeError(
            f"{path} is a link to {os.readlink(place)}, which leads nowhere. Correct the link or {field}."
        )
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        reason = getattr(error, "strerror", error)
        return RecipeError(f"{field}={path!r:.200} cannot be looked at: {reason}. Correct it.")
    if re.search(r"[*?]", place.name) and any(place.parent.glob(place.name)):
        return RecipeError(f"{path} is a pattern, which is not read. Name one file, or a folder, as {field}.")

    advice = nearest(place.name, [neighbour.name for neighbour in place.parent.glob("*")])
    advice = advice or f" Correct {field}."
    return RecipeError(f"{path} does not exist: there is no such file or folder in {place.parent}.{advice}")


def _refuse_a_model(path: str, folder: Path, field: str) -> None:
    """RecipeError for the folder of a model or of a run."""
    names = {file.name for file in folder.iterdir()}
    if "adapter_config.json" in names or {"config.json", "tokenizer_config.json"} <= names:
        raise RecipeError(f"{field}={path!r} is the folder of a model. Name it as model=, and a data set as {field}.")
    if {"recipe.json", "trl.json"} <= names:
        raise RecipeError(f"{field}={path!r} is the folder of a run, which holds no pairs. Name a data set.")


def _no_pairs(path: str, folder: Path) -> RecipeError:
    """The error for a folder without files that are read: what is in it, or in its own folders."""
    entries = sorted(folder.iterdir())
    deeper = [file for file in sorted(folder.glob("*/*")) if _suffix(file) in FILE_SUFFIXES]
    if not entries:
        return RecipeError(f"{path} holds no pairs: it is an empty folder. {other_files.WHAT_IS_READ}")
    if deeper:
        return RecipeError(f"{path} holds no pairs itself. Name the folder in it that does: {deeper[0].parent}")
    names = ", ".join(entry.name for entry in entries[:5])
    more = " ..." if len(entries) > 5 else ""
    return RecipeError(f"{path} holds no pairs: it has {names}{more}. {other_files.WHAT_IS_READ}")


def _saved_splits(folder: Path) -> dict[str, list[Path]]:
    """The splits that save_to_disk left: a DatasetDict's in a folder each, a Dataset in the folder itself."""
    splits: dict[str, list[Path]] = {}
    for file in sorted((*folder.glob("data-*.arrow"), *folder.glob("*/data-*.arrow"))):
        name = "" if file.parent == folder else file.parent.name
        splits.setdefault(name, []).append(file)
    return splits


def _splits_by_name(folder: Path) -> dict[str, list[Path]]:
    """The splits whose files lie in the folder, or in its data/ as in a clone from the hub."""
    splits: dict[str, list[Path]] = {}
    for file in sorted((*folder.glob("*"), *folder.glob("data/*"))):
        suffix = _suffix(file)
        if suffix and file.name not in ABOUT_DATA:
            name = PART.sub("", file.name[: -len(suffix)])
            splits.setdefault(name, []).append(file)
    return splits


def _refuse_missing_parts(path: str, name: str, files: list[Path]) -> None:
    """An error unless the split is one file, or as many parts as their names say that there are."""
    names = [file.name for file in files]
    parts = [part for part in map(PART.search, names) if part]
    numbers = {part[1] for part in parts}
    counts = {int(part[2]) for part in parts}
    one_file = len(files) == 1 and not parts
    all_parts = len(numbers) == len(files) and counts == {len(files)}
    if not (one_file or all_parts):
        raise RecipeError(
            f"{path}: {' and '.join(names)} are not one whole split {name!r}. Keep one file, or all the parts of one."
        )


def hub(data: Data, path: str) -> Splits:
    """The splits of a hub data set.

    Raises RecipeError for what the hub does not have, OSError and ConnectionError where it cannot be reached.
    """
    import datasets

    try:
        return datasets.load_dataset(
            path, data.subset, data_dir=data.data_dir, revision=data.revision, streaming=data.streaming
        )
    except (ValueError, RuntimeError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        cause = error if isinstance(error, FileNotFoundError) else error.__cause__ or error
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise cause from None  # the connection broke in the middle
        _refuse_subset(data, path, str(cause))
        raise RecipeError(
            f"{path} cannot be loaded: {_short(cause)} Check data.path, data.subset, data.data_dir and data.revision, "
            "and log in if it is private or gated."
        ) from None


def _refuse_subset(data: Data, path: str, message: str) -> None:
    """RecipeError where datasets says that a set has several subsets, or not this one; its list may be long."""
    listed = re.search(r"(?:Available: |available configs: )\[(.*?)\]", message, re.DOTALL)
    if listed is None:
        return
    subsets = re.findall(r"'([^']*)'", listed[1])
    names = shorten(", ".join(subsets), 200, placeholder=" ...")
    if data.subset is None:
        raise RecipeError(f"{path} has several subsets: {names}. Name one: data.subset={subsets[0]}.") from None
    raise RecipeError(
        f"{path} has no subset {data.subset!r}. It has: {names}.{nearest(data.subset, subsets)} Correct data.subset."
    ) from None


def _short(error: BaseException) -> str:
    """The start of what an error says, or its name where it says nothing, as a sentence."""
    message = shorten(str(error), 300, placeholder=" ...") or type(error).__name__
    return message.rstrip(".") + "."


# Rows of a split


def pick(splits: Splits, spec: str, path: str) -> tuple[Any, list[Span]]:
    """The rows that a split, a slice such as train[:10%], or a sum of them names; and the span of each.

    Raises RecipeError for a split that is not there, a slice that is none, and a spec that selects no rows.
    """
    import datasets

    picked: list[Any] = []
    spans: list[Span] = []
    for part in spec.split("+"):
        name, cut = name_and_slice(part)
        if name not in splits:
            advice = nearest(name, splits) or " Name one of them."
            raise RecipeError(f"{path} has no split {name!r}. It has: {', '.join(splits)}.{advice}")
        rows = _rows(splits[name])
        first, end = _bounds(cut, len(rows), spec, path)
        if first < end:
            picked.append(rows.select(range(first, end)))
            spans.append((name, first, end - first))
    if not picked:
        raise RecipeError(f"{path}: {spec!r} selects no rows. Choose a slice within the split.")
    return datasets.concatenate_datasets(picked), spans


def _rows(split: Any) -> Any:
    """The datasets.Dataset of a split."""
    import datasets

    if isinstance(split, list):
        return _load(split)
    if isinstance(split, datasets.IterableDataset):  # the evaluation pairs beside a stream
        return datasets.Dataset.from_list(list(split))
    return split


def _bounds(cut: str, rows: int, spec: str, path: str) -> tuple[int, int]:
    """The first row, and the one behind the last, of a slice such as "[:10%]", or of "", which is all of them."""
    import datasets

    try:
        # Under another name: a file may be called train-v2.jsonl, which has not the form of a split.
        [bounds] = datasets.ReadInstruction.from_spec(f"rows{cut}").to_absolute({"rows": rows})
    except (ValueError, AssertionError) as error:
        raise RecipeError(
            f"{path}: {spec!r} is no split: {_short(error)} Write a slice as train[:1000] or train[5%:]."
        ) from None
    return bounds.from_, bounds.to


def stream(splits: Splits, spec: str, path: str) -> tuple[Any, list[Span]]:
    """The rows of a split as an IterableDataset, read when they are asked for; and their span, of unknown length."""
    if spec not in splits:
        raise RecipeError(
            f"{path} has no split {spec!r}. It has: {', '.join(splits)}.{nearest(spec, splits)} "
            "What is streamed has no slices: trl.max_steps says how much is read."
        )
    split = splits[spec]
    rows = _load(split, streaming=True) if isinstance(split, list) else split
    return rows, [(spec, 0, sys.maxsize)]


# Rows of files


def _load(files: list[Path], streaming: bool = False) -> Any:
    """The rows of files of one kind, as a datasets.Dataset, which is cached, or as an IterableDataset."""
    import datasets

    names = [str(file.resolve()) for file in files]
    kind = _suffix(files[0])
    with _readable(files):
        for file in files:
            other_files.refuse_other_start(file)
        if kind in (".parquet", ".arrow"):
            names = [glob.escape(name) for name in names]  # datasets takes them for patterns
            return datasets.load_dataset(kind[1:], data_files={"train": names}, split="train", streaming=streaming)

        # datasets finds cached rows by these arguments. The last two are there to read anew what has changed: a file,
        # or how this module reads it.
        arguments = {
            "names": names,
            "stamps": [f"{file.stat().st_size}-{file.stat().st_mtime_ns}" for file in files],
            "code": source_hash("data.sources"),
        }
        features = datasets.Features({RAW: datasets.Value("string")})
        if streaming:
            return datasets.IterableDataset.from_generator(_streamed_rows, features=features, gen_kwargs=arguments)
        return datasets.Dataset.from_generator(_raw_rows, features=features, gen_kwargs=arguments)


@contextmanager
def _readable(files: list[Path]) -> Iterator[None]:
    """Say which file could not be read, and why."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # of many kinds and wrappings: datasets, pyarrow, csv, gzip, zlib, Unicode
        cause = error.__cause__ or error
        names = [str(file) for file in files]
        names += [str(file.resolve()) for file in files]
        is_of_file = not isinstance(cause, OSError) or str(cause.filename) in names
        if isinstance(cause, OSError) and (cause.errno in UNWRITABLE or cause.filename) and not is_of_file:
            raise cause from None  # of the cache, not of the file

        where = ", ".join(str(file) for file in files[:3])
        if isinstance(cause, UnicodeDecodeError):
            raise RecipeError(other_files.wrong_encoding(where, cause)) from None
        problem = f"is not readable as {_suffix(files[0])[1:]}: {_short(cause)}"
        if "corresponds to no data" in str(cause):  # as datasets says it
            problem = "has no rows."
        raise RecipeError(f"{where} {problem} Write it again: whole, in UTF-8, with one row for each pair.") from None


def _streamed_rows(names: list[str], **key: Any) -> Iterator[dict[str, str]]:
    """The rows as below; errors come while the stream is read, long after it was opened."""
    with _readable([Path(name) for name in names]):
        yield from _raw_rows(names, **key)


def _raw_rows(names: list[str], stamps: list[str], code: str) -> Iterator[dict[str, str]]:
    """The rows of json, json lines and csv files, each as its JSON in the column RAW."""
    for name in names:
        rows_of = _csv_rows if ".csv" in _suffix(Path(name)) else _json_rows
        with _opened(name) as packed, TextIOWrapper(packed, encoding="utf-8-sig", newline="") as file:
            for place, row, text in rows_of(file):
                if not isinstance(row, dict):
                    raise ValueError(f"{place} is {row!r:.40}, not an object with columns")
                yield {RAW: text}


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    """The bytes of a file, unpacked where its name says that it is compressed; they can be read twice."""
    suffix = Path(name).suffix.lower()
    if suffix == ".zst":
        with _zstd_opened(name) as file:
            yield file
        return
    open_bytes: Any = {".gz": gzip.open, ".xz": lzma.open}.get(suffix, open)
    with open_bytes(name, "rb") as file:
        yield file


@contextmanager
def _zstd_opened(name: str) -> Iterator[Any]:
    """So too for zstd, which Python reads itself from 3.14 on; Arrow, which datasets needs anyway, is asked for it."""
    import pyarrow

    with tempfile.TemporaryFile() as unpacked:  # as Arrow's stream has no way back to its start
        with pyarrow.input_stream(name, compression="zstd") as packed:
            shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        yield unpacked


def _csv_rows(file: Any) -> Iterator[tuple[str, Any, str]]:
    """The place, the row and its JSON of each row of a csv file. Not by pandas, which reads "None" and "NA" as missing.

    Raises ValueError for a column that is named twice and for a row that has not a cell for each column.
    """
    csv.field_size_limit(2**31 - 1)  # a cell may be longer than the 131,072 characters that are allowed at first
    reader = csv.DictReader(file, strict=True, skipinitialspace=True)
    header = reader.fieldnames or []
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and delimiter in header[0]:
            raise ValueError(f"line 1 has {name} between its columns, where commas are read")
    columns: set[str] = set()
    for column in header:
        if column in columns:
            raise ValueError(f"line 1 names the column {column!r} twice")
        columns.add(column)

    for row in reader:
        place = f"line {reader.line_num}"
        if None in row:  # where DictReader puts the cells that have no column
            raise ValueError(f"{place} has more cells than line 1")
        if None in row.values():
            raise ValueError(f"{place} has fewer cells than line 1")
        yield place, row, json.dumps(row)


def _json_rows(file: Any) -> Iterator[tuple[str, Any, str]]:
    """The place, the value and its JSON of each item of an array, or of each line that holds one.

    Raises ValueError for what is no JSON, an object that names a key twice, and an object that holds all the rows.
    """
    opens_array = file.read(99).lstrip().startswith("[")
    file.seek(0)
    if opens_array:
        for number, item in enumerate(json.load(file, object_pairs_hook=_object)):
            yield f"item {number}", item, json.dumps(item)
        return

    first_row: dict[str, Any] = {}
    rows = 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            file.seek(0)
            _refuse_one_object(file.read() if number == 1 else "")
            raise ValueError(f"{place} is not one whole JSON object ({error.msg})") from None
        except _KeyTwice as error:
            raise ValueError(f"{place} names {error} twice in one object") from None
        if not rows and isinstance(value, dict):
            first_row = value
        rows += 1
        yield place, value, line
    if rows == 1:
        _refuse_all_rows(first_row)


class _KeyTwice(ValueError):
    """An object names this key twice: of the two values JSON's readers keep the last, and say nothing."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwice(repr(next(key for key in keys if keys.count(key) > 1)))
    return value


def _refuse_one_object(text: str) -> None:
    """ValueError for text that is one object over several lines."""
    try:
        value = json.loads(text)
    except ValueError:
        return
    _refuse_all_rows(value)
    raise ValueError("it is one object over several lines, where each line holds one; put it in [ ] if it is one row")


def _refuse_all_rows(value: dict[str, Any]) -> None:
    """ValueError for an object that is no row: it holds the rows under a key, or a list for each column."""
    for key, rows in value.items():
        if key in KEYS_OF_ROWS and isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            raise ValueError(f"its rows stand under the key {key!r}: write that list alone")
    columns = [value[column] for column in value if column in ("prompt", "chosen", "rejected")]
    are_lists = all(isinstance(column, list) and all(isinstance(cell, str) for cell in column) for column in columns)
    are_numbered = all(isinstance(column, dict) and "0" in column for column in columns)
    if len(columns) > 1 and (are_lists or are_numbered):
        raise ValueError(
            "it is one object of columns, where rows are read. From pandas: "
            "to_json('pairs.jsonl', orient='records', lines=True)"
        )


def row_of(example: dict[str, Any]) -> dict[str, Any]:
    """The raw row that a row of `pick` or `stream` stands for."""
    if RAW in example:
        return json.loads(example[RAW])
    return dict(example)

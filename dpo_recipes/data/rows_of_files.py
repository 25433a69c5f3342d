"""The rows of files as they are written: json, json lines and csv, also compressed; parquet and Arrow by datasets."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import lzma
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..errors import RecipeError
from ..recipe.data import FILE_SUFFIXES
from ..runs.source_hash import source_hash
from ..runs.unwritable import UNWRITABLE
from . import other_files
from .rows_cache import refuse_damaged_cache

SUFFIXES = (*FILE_SUFFIXES, ".arrow")  # the last as save_to_disk leaves them in a folder

# Rows of json and csv files travel as their own text in this one column: Arrow would guess types and fill in missing
# keys.
RAW = "__row__"

# Keys under which a JSON file may hold all its rows.
KEYS_OF_ROWS = ("data", "rows", "records", "items", "examples", "instances", "pairs", "train", "test", "validation")


def suffix_of(path: Path) -> str:
    """The ending that says how a file is read, such as ".jsonl.gz"; "" where it is not read."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def rows_of_files(files: list[Path], streaming: bool = False) -> Any:
    """The rows of files of one kind, as a datasets.Dataset, which is cached, or as an IterableDataset."""
    import datasets

    names = [str(file.resolve()) for file in files]
    kind = suffix_of(files[0])
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
            "code": source_hash("data.rows_of_files"),
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
        if cause is error:  # not of the file: datasets wraps what reading that has raised
            refuse_damaged_cache(error, ", ".join(str(file) for file in files[:3]))
        names = [str(file) for file in files]
        names += [str(file.resolve()) for file in files]
        is_of_file = not isinstance(cause, OSError) or str(cause.filename) in names
        if isinstance(cause, OSError) and (cause.errno in UNWRITABLE or cause.filename) and not is_of_file:
            raise cause from None  # of the cache, not of the file

        where = ", ".join(str(file) for file in files[:3])
        if isinstance(cause, UnicodeDecodeError):
            raise RecipeError(other_files.wrong_encoding(where, cause)) from None
        problem = f"is not readable as {suffix_of(files[0])[1:]}: {start_of(cause)}"
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
        rows_of = _csv_rows if ".csv" in suffix_of(Path(name)) else _json_rows
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
    are_lists = all(_is_list_of_texts(column) for column in columns)
    are_numbered = all(isinstance(column, dict) and "0" in column for column in columns)
    if len(columns) > 1 and (are_lists or are_numbered):
        raise ValueError(
            "it is one object of columns, where rows are read. From pandas: "
            "to_json('pairs.jsonl', orient='records', lines=True)"
        )


def _is_list_of_texts(column: Any) -> bool:
    return isinstance(column, list) and all(isinstance(cell, str) for cell in column)


def row_of(example: dict[str, Any]) -> dict[str, Any]:
    """The raw row that a row of `pick` or `stream` stands for."""
    if RAW in example:
        return json.loads(example[RAW])
    return dict(example)


def start_of(error: BaseException) -> str:
    """The start of what an error says, or its name where it says nothing, as a sentence."""
    message = shorten(str(error), 300, placeholder=" ...") or type(error).__name__
    return message.rstrip(".") + "."

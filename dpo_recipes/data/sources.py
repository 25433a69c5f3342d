"""Where raw rows come from: a file, a folder or a hub data set; and which of them a split or slice names."""

from __future__ import annotations

import csv
import errno
import gzip
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
from ..runs.source_hash import source_hash

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".json.gz", ".jsonl.gz", ".csv.gz", ".parquet")
SUFFIXES = (*FILE_SUFFIXES, ".arrow")  # the last as save_to_disk leaves them in a folder

# What the system says when a file cannot be written: the disk or the quota is full, or the folder is not ours.
UNWRITABLE = (
    errno.ENOSPC,
    errno.EFBIG,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
)

# Rows of json and csv files travel as their own text in this one column: Arrow would guess types and fill in missing
# keys.
RAW = "__row__"

# What follows the split in the name of a part: "-00000-of-00002" in "train-00000-of-00002.parquet", on the hub with a
# hash behind it. The groups are the number of the part and how many there are.
PART = re.compile(r"-(\d{5})-of-(\d{5}).*")

Splits = dict[str, Any]  # split -> its files, or its rows as datasets has them
Span = tuple[str, int, int]  # split, number of the first row in it, number of rows


def is_path(path: str) -> bool:
    """Whether a name is that of a file or a folder, and not of a data set or model on the hub."""
    return path.startswith((".", "/", "~")) or path.lower().endswith(FILE_SUFFIXES)


def _suffix(path: Path) -> str:
    """The ending that says how a file is read, such as ".jsonl.gz"; "" where it is not read."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


# Splits


def files_of(path: str) -> dict[str, list[Path]]:
    """Split -> its files; a single file, or one saved Dataset, has the one split "".

    Raises RecipeError for a path that is not there, a folder that holds no pairs, and a split of which a part is
    missing.
    """
    place = Path(path).expanduser()
    if not place.exists():
        advice = nearest(place.name, [neighbour.name for neighbour in place.parent.glob("*")])
        advice = advice or " Correct data.path or data.eval."
        raise RecipeError(f"{path} does not exist: there is no such file or folder in {place.parent}.{advice}")
    if place.is_file() and _suffix(place):
        return {"": [place]}

    splits = _saved_splits(place) or _splits_by_name(place)
    if not splits:
        raise RecipeError(f"{path} holds no pairs: a file, or a folder of files, is read that ends in {FILE_SUFFIXES}.")
    for name, files in splits.items():
        _refuse_missing_parts(path, name, files)
    return splits


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
        if suffix:
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
        raise RecipeError(
            f"{path} cannot be loaded: {_short(cause)} Check data.path, data.subset, data.data_dir and data.revision, "
            "and log in if it is private or gated."
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
        name, bracket, cut = part.strip().partition("[")
        if name not in splits:
            raise RecipeError(f"{path} has no split {name!r}. It has: {', '.join(splits)}.{nearest(name, splits)}")
        rows = _rows(splits[name])
        first, end = _bounds(bracket + cut, len(rows), spec, path)
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
        if kind in (".parquet", ".arrow"):
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
    except Exception as error:  # of many kinds and wrappings: datasets, pyarrow, csv, gzip, zlib, Unicode
        cause = error.__cause__ or error
        names = [str(file) for file in files]
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE and cause.filename not in names:
            raise cause from None  # of the cache, not of the file

        where = ", ".join(names[:3])
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
        open_text = gzip.open if name.lower().endswith(".gz") else open
        rows_of = _csv_rows if ".csv" in _suffix(Path(name)) else _json_rows
        with open_text(name, "rt", encoding="utf-8-sig", newline="") as file:
            for place, row, text in rows_of(file):
                if not isinstance(row, dict):
                    raise ValueError(f"{place} is {row!r:.40}, not an object with columns")
                yield {RAW: text}


def _csv_rows(file: Any) -> Iterator[tuple[str, Any, str]]:
    """The place, the row and its JSON of each row of a csv file. Not by pandas, which reads "None" and "NA" as missing.

    Raises ValueError for a column that is named twice and for a row that has not a cell for each column.
    """
    csv.field_size_limit(2**31 - 1)  # a cell may be longer than the 131,072 characters that are allowed at first
    reader = csv.DictReader(file, strict=True, skipinitialspace=True)
    columns: set[str] = set()
    for column in reader.fieldnames or ():
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
    """The place, the value and its JSON of each item of an array, or of each line that holds one."""
    opens_array = file.read(99).lstrip().startswith("[")
    file.seek(0)
    if opens_array:
        for number, item in enumerate(json.load(file)):
            yield f"item {number}", item, json.dumps(item)
        return

    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not one whole JSON object ({error.msg})") from None
        yield place, value, line


def row_of(example: dict[str, Any]) -> dict[str, Any]:
    """The raw row that a row of `pick` or `stream` stands for."""
    if RAW in example:
        return json.loads(example[RAW])
    return dict(example)

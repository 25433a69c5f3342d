"""Where raw rows come from: a file, a folder or a hub data set; and which of them a split or slice names."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..errors import RecipeError, nearest
from ..recipe.data import FILE_SUFFIXES, Data
from ..runs.unreachable import HUB_ADVICE, unreachable_reason
from . import other_files
from .rows_cache import refuse_damaged_cache
from .rows_of_files import rows_of_files, start_of, suffix_of

# What follows the split in the name of a part: "-00000-of-00002" in "train-00000-of-00002.parquet", on the hub with a
# hash behind it. The groups are the number of the part and how many there are.
PART = re.compile(r"-(\d{5})-of-(\d{5}).*")

# Files that datasets writes beside rows.
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")

Splits = dict[str, Any]  # split -> its files, or its rows as datasets has them
Span = tuple[str, int, int]  # split, number of the first row in it, number of rows


def is_path(path: str) -> bool:
    """Whether a name is that of a file or a folder, and not of a data set or model on the hub."""
    starts_like_path = path.startswith((".", "/", "~")) or other_files.is_address(path)
    return starts_like_path or path.lower().endswith(FILE_SUFFIXES) or other_files.has_other_ending(path)


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
        if not suffix_of(place):
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
    where = "here" if place.parent == Path() else f"in {place.parent}"
    return RecipeError(f"{path} does not exist: there is no such file or folder {where}.{advice}")


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
    deeper = [file for file in sorted(folder.glob("*/*")) if suffix_of(file) in FILE_SUFFIXES]
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
        suffix = suffix_of(file)
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

    Raises RecipeError for what the hub does not have and where it breaks off, OSError where the disk does.
    """
    import datasets

    try:
        return datasets.load_dataset(
            path, data.subset, data_dir=data.data_dir, revision=data.revision, streaming=data.streaming
        )
    except Exception as error:  # of whichever library the hub is asked through
        unreachable = unreachable_reason(error)
        if unreachable:
            raise RecipeError(f"{path} cannot be loaded: {unreachable}. {HUB_ADVICE}") from error
        cause = error if isinstance(error, FileNotFoundError) else error.__cause__ or error
        refuse_damaged_cache(cause, path, Path(datasets.config.HF_DATASETS_CACHE, path.replace("/", "___")))
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise cause from None  # of the disk
        if not isinstance(error, (ValueError, RuntimeError, FileNotFoundError, datasets.exceptions.DatasetsError)):
            raise  # a fault of the code, not of what was asked for
        _refuse_subset(data, path, str(cause))
        raise RecipeError(
            f"{path} cannot be loaded: {start_of(cause)} Check data.path, data.subset, data.data_dir and "
            "data.revision, and log in if it is private or gated."
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
        return rows_of_files(split)
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
            f"{path}: {spec!r} is no split: {start_of(error)} Write a slice as train[:1000] or train[5%:]."
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
    rows = rows_of_files(split, streaming=True) if isinstance(split, list) else split
    return rows, [(spec, 0, sys.maxsize)]

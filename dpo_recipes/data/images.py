"""The images of pairs as files: where they lie, how large they are, and what is wrong with one.

An image that a data file holds itself is written once to the cache, under a hash of its bytes; one that it names is
read where it is. Each is decoded whole while pairs are read, so that none breaks a run in the middle.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..formats.image_marks import COLUMNS, IMAGES
from ..formats.messages import Drop, Row, malformed
from ..runs import environment, files
from .batches import batches

IMAGE_FILES = "image_files"  # the files they are read from, with their sizes and times, also of pairs that are dropped
ABSENT = -1  # the size of a file that is not there

File = tuple[str, int, int]  # path, bytes, time of its last change in nanoseconds


def undecoded(raw: Any) -> Any:
    """Rows whose images stay the bytes or file names that they are stored as."""
    import datasets

    for column in COLUMNS:
        feature = (raw.features or {}).get(column)
        if isinstance(feature, datasets.Image):
            raw = raw.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            raw = raw.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return raw


def files_of_images(values: list[Any], folders: list[str]) -> list[File]:
    """The file of each image of a row; relative names are looked for in `folders`. Drop for what is no image."""
    if values and importlib.util.find_spec("PIL") is None:
        raise RecipeError("The pairs have images, and Pillow is missing (pip install 'dpo-recipes[vision]').")
    return [_stamped(_path_of(value, folders)) for value in values]


def images_of_files(image_files: list[File]) -> list[Row]:
    """{"path", "width", "height", "key"} of each image; `key` is a hash of its file.

    Drop for one that cannot be read.
    """
    return [_image(*file) for file in image_files]


def _path_of(value: Any, folders: list[str]) -> str:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _stored(value)
    if not isinstance(value, str):
        raise malformed("images", f"holds a {type(value).__name__}, neither a file nor its bytes", value)
    if "://" in value or value.startswith("data:"):
        raise malformed("images", "holds an address, where files are read", value)
    places = [os.path.join(folder, os.path.expanduser(value)) for folder in folders]  # an absolute name stays itself
    return next((place for place in places if os.path.isfile(place)), places[0] if places else value)


def _stored(data: bytes) -> str:
    """The file in the cache that holds these bytes, written if it is not there."""
    name = hashlib.sha256(data).hexdigest()
    path = environment.cache() / "images" / name[:2] / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, data)
    return str(path)


def _stamped(path: str) -> File:
    try:
        kept = os.stat(path)
    except (OSError, ValueError):  # the latter for a name with a NUL in it
        return path, ABSENT, 0
    return path, kept.st_size, kept.st_mtime_ns


@functools.lru_cache(maxsize=2**16)  # many pairs may have one image
def _image(path: str, size: int, changed: int) -> Row:
    """What is known of a file, which is decoded as `datasets` does it, and so turned as its EXIF says."""
    if size == ABSENT:
        raise Drop("malformed: images names a file that is not there", path)
    try:
        width, height = opened(path).size
    except Exception as error:  # of Pillow's many readers
        raise Drop("malformed: images names a file that is no whole image", path) from error
    key = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return {"path": path, "width": width, "height": height, "key": key}


def opened(path: str) -> Any:
    """The image of a file, as `datasets` gives it to TRL."""
    import datasets

    return datasets.Image().decode_example({"path": path, "bytes": None})


def changed_since(pairs: Any) -> list[File]:
    """The files of stored pairs that are no longer what they were when the pairs were read, as they are now."""
    changed: dict[str, File] = {}
    for _, table in batches(pairs, [IMAGE_FILES]):
        column = table[IMAGE_FILES]
        if column.null_count == len(column):
            continue
        for stored in column.to_pylist():
            for file in _parsed(stored):
                now = _stamped(file[0])
                if now != file:
                    changed[file[0]] = now
    return sorted(changed.values())


def _parsed(stored: Any) -> list[File]:
    """The files of a row as Arrow has them, which is JSON."""
    values = json.loads(stored) if isinstance(stored, str) else stored
    return [(str(path), int(size), int(changed)) for path, size, changed in values or []]


def count_images(pairs: Any) -> dict[str, Any]:
    """How many of the pairs have how many images, and how many different ones there are: JSON-able."""
    counts: dict[int, int] = {}
    keys: set[str] = set()
    for images in pairs.select_columns([IMAGES])[IMAGES]:
        images = images or []
        counts[len(images)] = counts.get(len(images), 0) + 1
        keys.update(image["key"] for image in images)
    return {"pairs": {str(number): counts[number] for number in sorted(counts)}, "different": len(keys)}

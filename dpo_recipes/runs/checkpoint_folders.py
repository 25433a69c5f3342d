"""The checkpoint folders of a run: which of them are whole."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import RecipeError
from .files import sizes_in, write_json
from .full_memory import is_out_of_memory

WHOLE = "whole.json"  # the last file of a checkpoint: the size in bytes of every other one


def mark_whole(checkpoint: Path, written_by_others: Mapping[str, int] | None = None) -> None:
    """Say, in a file that is there whole or not at all, that everything of a checkpoint has been written.

    `written_by_others`: name -> bytes of files that other machines have written, which may not be seen from here yet.
    """
    write_json(checkpoint / WHOLE, {**(written_by_others or {}), **sizes_of(checkpoint)})


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint has the size with which it was written. RecipeError where nobody can tell."""
    try:
        sizes = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        raise RecipeError(
            f"The checkpoint {checkpoint} cannot be read: {error.strerror}. Make it readable, or move it away."
        ) from None
    return sizes == sizes_of(checkpoint)


def damage(checkpoint: Path) -> str | None:
    """Which file of a whole checkpoint cannot be opened, in words; None where all can.

    A file may have its size and hold zeros, as after a loss of power, or something else where it begins or ends. What
    is damaged within is found by what loads it.
    """
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix == ".safetensors" and not _has_header(path):
            return f"{path.relative_to(checkpoint)} has no header that can be read"
        if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
            return f"{path.relative_to(checkpoint)} is no file of torch"
    return None


def _has_header(path: Path) -> bool:
    """Whether a file of safetensors begins with the table of its tensors: its length in 8 bytes, then JSON."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return False
        (length,) = struct.unpack("<Q", start)
        if length > size - 8:
            return False
        try:
            return isinstance(json.loads(file.read(length)), dict)
        except ValueError:  # no JSON, or no UTF-8
            return False


@contextmanager
def readable(checkpoint: str | None) -> Iterator[None]:
    """RecipeError where what is read in here of a checkpoint is damaged though its files have their size."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # of whichever library reads its file
        if is_out_of_memory(error):
            raise
        raise RecipeError(
            f"The checkpoint {checkpoint} cannot be loaded: {type(error).__name__}: {error}. Move it away, and the run "
            "goes on from the one before."
        ) from error


def sizes_of(checkpoint: Path) -> dict[str, int]:
    """Name inside the checkpoint -> bytes."""
    return sizes_in(checkpoint, WHOLE)


def whole_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder of them, the last step first."""
    return sorted(filter(is_whole, folder.glob("checkpoint-*")), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step after which it was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def remove_unfinished(folder: Path) -> None:
    """Remove the checkpoints that were cut short."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not is_whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)

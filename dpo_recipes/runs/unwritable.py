"""A place that cannot be written: how each library says so, and where else there is room."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .environment import cache

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

# What libraries that write for themselves put into errors of their own types (safetensors, torch, C++ streams, Arrow),
# in lower case -> the same in words.
SIGNS = {
    "no space left": "no space is left on the disk",
    "os error 28": "no space is left on the disk",
    "file too large": "the file is too large for the disk, or for a limit on file sizes",
    "os error 27": "the file is too large for the disk, or for a limit on file sizes",
    "disk quota exceeded": "the disk quota is used up",
    "os error 122": "the disk quota is used up",
    "read-only file system": "the file system is read-only",
    "no usable temporary directory": "no folder for temporary files can be written, TMPDIR names another",
    "pytorchstreamwriter failed": "the file could not be written whole, as on a full disk",
    "inline_container.cc": "the file could not be written whole, as on a full disk",
    "basic_ios::clear": "the file could not be written whole, as on a full disk",
}


def unwritable_reason(error: BaseException) -> str | None:
    """Why a file or folder could not be written, in words, where that is what an error says; else None."""
    for link in chain(error):
        if isinstance(link, OSError) and link.errno in UNWRITABLE:
            return str(link.strerror)
        text = str(link).lower()
        for sign, words in SIGNS.items():
            if sign in text:
                return words
    return None


def unwritable_place(error: BaseException) -> str | None:
    """The file or folder that the error names, if it names one."""
    for link in chain(error):
        if isinstance(link, OSError) and link.filename:
            return str(link.filename)
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def places_with_room(size: int, preferred: Path) -> list[Path]:
    """Folders in which so many bytes fit: the preferred one, then the user's cache and the temporary folder by room."""
    others = [cache() / "rescued", Path(tempfile.gettempdir()) / "dpo-recipes-rescued"]
    others.sort(key=_free, reverse=True)
    return [place for place in [preferred, *others] if _free(place) > size]


def _free(place: Path) -> int:
    """Bytes free where a folder is, or would be."""
    for folder in (place, *place.absolute().parents):
        if folder.is_dir() and os.access(folder, os.W_OK):
            return shutil.disk_usage(folder).free
    return 0

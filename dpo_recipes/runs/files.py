"""Files and folders that are written whole or not at all: to a temporary name beside them, then renamed."""

import contextlib
import glob
import json
import numbers
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing; a failure leaves what stood there before. Raises OSError."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8, or nothing. Raises OSError, and UnicodeEncodeError for half a character."""
    write_bytes(path, text.encode("utf-8"))


def to_json(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """A value as JSON that every reader takes: a number that is not finite, for which JSON has no word, becomes null.

    What else JSON has no word for, as a path, becomes text. Raises ValueError for a value that contains itself.
    """
    text = json.dumps(value, default=_plain)  # in which Python writes NaN and Infinity, as no other reader takes them
    finite = json.loads(text, parse_constant=_null)
    return json.dumps(finite, indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def _plain(value: Any) -> Any:
    """What JSON can hold in place of a value that it cannot: NumPy's numbers as Python's, and text."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return str(value)


def _null(constant: str) -> None:
    """JSON's word for NaN, Infinity and -Infinity."""


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    lines = [to_json(row) + "\n" for row in rows]
    write_text(path, "".join(lines))


def write_folder(path: Path, fill: Callable[[Path], None], *, replace: bool = False) -> None:
    """Let `fill` write into a temporary folder, then rename it to `path`; a failure leaves nothing behind.

    Nor does what a process had begun to write for `path` that was killed. OSError where a folder stands there, unless
    it is to be replaced; then a failure leaves that.
    """
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process of the same number that was killed
    _remove_abandoned(path)
    before = _temporary(path.with_name(f"{path.name}.before"))
    try:
        with _new_and_held(temporary):
            fill(temporary)
            if replace and path.is_dir():
                os.rename(path, before)
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


CONTENTS = ".contents.json"  # in a folder that is made once: the length of each of its files


def make_once(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder that is kept for later; again where files of it have gone or been cut since. Raises OSError."""

    def fill_and_list(folder: Path) -> None:
        fill(folder)
        write_json(folder / CONTENTS, sizes_in(folder, CONTENTS))

    if not is_whole(path):
        write_folder(path, fill_and_list, replace=path.is_dir())


def is_whole(path: Path) -> bool:
    """Whether a folder has what it was made with: each file, and as long as it was. Of an older version only some."""
    if not path.is_dir() or not any(path.iterdir()):
        return False
    try:
        contents = json.loads((path / CONTENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    sizes = sizes_in(path, CONTENTS)
    return all(sizes.get(name) == size for name, size in contents.items())


def sizes_in(folder: Path, without: str) -> dict[str, int]:
    """Each file's name in the folder -> its bytes, but for files called `without`; a dead link is no file."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != without:
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes


@contextlib.contextmanager
def _new_and_held(folder: Path) -> Iterator[None]:
    """A new folder, locked while it is written, so that others know that somebody does; where there are no locks not.

    The lock ends with the process, however that ends.
    """
    folder.mkdir(parents=True)
    lock = _lock(folder)
    while lock is None:  # another process has taken it for abandoned before it was locked
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        lock = _lock(folder)
    try:
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """The open and locked folder; -1 where it cannot be locked at all, None where it is not there or is locked."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        return -1
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:  # a file system that knows no locks
        os.close(lock)
        return -1
    try:
        is_still_there = os.path.samestat(os.fstat(lock), os.stat(folder))
    except FileNotFoundError:
        is_still_there = False
    if not is_still_there:
        os.close(lock)
        return None
    return lock


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary folders for `path` that no process holds any more: the disk would fill with them."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        lock = _lock(folder) if folder.is_dir() else None
        if lock is not None and lock >= 0:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def remove_temporary(folder: Path) -> None:
    """Remove what processes that were killed had begun to write in a folder, where no other writes."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name in the same folder, so that renaming moves no bytes; hidden, and of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")

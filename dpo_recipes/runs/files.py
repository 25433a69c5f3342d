"""Files and folders that are written whole or not at all: to a temporary name beside them, then renamed."""

import json
import os
import shutil
from collections.abc import Callable
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


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; what JSON has no word for, as a path, is written as text."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
    write_text(path, "".join(lines))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder, then rename it to `path`; a failure leaves nothing behind."""
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process of the same number that was killed
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name in the same folder, so that renaming moves no bytes; hidden, and of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")

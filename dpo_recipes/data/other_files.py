"""Files that are no json, jsonl, csv or parquet file of rows: how each is known, what it is, and what to do with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..errors import RecipeError

WHAT_IS_READ = "Files that are read end in .json, .jsonl, .csv (these also with .gz, .xz or .zst) or .parquet."
LOOKED_AT = 512  # bytes at the start of a file

TO_LINES = "Write it as JSON lines: one object a row, with prompt, chosen and rejected."
UNPACK = "Unpack it, and name the file or the folder that was in it."


class Ending(NamedTuple):
    """What the names of files end in that are not read."""

    endings: tuple[str, ...]
    what: str
    way_out: str


ENDINGS = (
    Ending((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar"), "an archive", UNPACK),
    Ending((".gz", ".zst", ".bz2", ".xz", ".lz4"), "a compressed file", "Unpack it, or compress .jsonl to .jsonl.gz."),
    Ending(
        (".tsv", ".tab"),
        "a table with tabs between its cells",
        "Write it with commas: pandas.read_csv(OLD, sep='\\t', keep_default_na=False).to_csv(NEW, index=False)",
    ),
    Ending((".xlsx", ".xls", ".ods", ".numbers"), "a spreadsheet", "Save it as CSV in UTF-8."),
    Ending((".txt", ".md"), "text without columns", f"{TO_LINES} If it is that, call it .jsonl."),
    Ending((".ndjson", ".jsonlines"), "JSON lines under another name", "Call it .jsonl."),
    Ending((".yaml", ".yml", ".toml", ".xml", ".html"), "a document, not rows", TO_LINES),
    Ending(
        (".py", ".ipynb", ".sh"), "code", "A data set is a file of rows; a recipe is named first: train my_recipe.py"
    ),
    Ending(
        (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz"),
        "a file that only Python can open, and that may run code",
        f"Open it where you trust it. {TO_LINES}",
    ),
    Ending((".safetensors", ".gguf", ".ckpt"), "weights of a model", "A model is named with model=."),
    Ending(
        (".feather", ".orc", ".h5", ".hdf5", ".avro", ".db", ".sqlite", ".sqlite3", ".duckdb", ".lance"),
        "a table in another form",
        "Write it as parquet: pandas.DataFrame.to_parquet('pairs.parquet')",
    ),
)


class Start(NamedTuple):
    """The first bytes of a file that is something else than its name says."""

    start: bytes
    what: str
    way_out: str


TO_UTF8 = "Write it in UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > NEW)."
STARTS = (
    Start(b"PAR1", "a parquet file", "Call it .parquet."),
    Start(b"ARROW1", "an Arrow file", "Load it with datasets, and write it as parquet."),
    Start(b"\xff\xff\xff\xff", "an Arrow stream", "Load it with datasets, and write it as parquet."),
    Start(b"\x1f\x8b", "compressed with gzip", "Add .gz to its name."),
    Start(b"PK\x03\x04", "a zip archive or a spreadsheet", f"{UNPACK} Save a spreadsheet as CSV in UTF-8."),
    Start(b"BZh", "compressed with bzip2", "Unpack it."),
    Start(b"\xfd7zXZ", "compressed with xz", "Add .xz to its name."),
    Start(b"\x28\xb5\x2f\xfd", "compressed with zstd", "Add .zst to its name."),
    Start(b"SQLite format 3", "a database", "Write its table as parquet."),
    Start(b"\x89PNG", "an image", TO_LINES),
    Start(b"\xff\xd8\xff", "an image", TO_LINES),
    Start(b"%PDF", "a PDF", TO_LINES),
    Start(b"\xff\xfe", "text in UTF-16", TO_UTF8),
    Start(b"\xfe\xff", "text in UTF-16", TO_UTF8),
    Start(b"\x00\x00\xfe\xff", "text in UTF-32", "Write it in UTF-8 (iconv -f UTF-32 -t UTF-8 OLD > NEW)."),
    Start(b"<!DOCTYPE", "a web page", "Download the file itself, not the page about it."),
    Start(b"<html", "a web page", "Download the file itself, not the page about it."),
    Start(b"version https://git-lfs", "a pointer of Git LFS, not the file", "Fetch the file: git lfs pull"),
)
# How the files that are read begin, where that is always the same.
OWN_STARTS = {
    ".parquet": (b"PAR1",),
    ".gz": (b"\x1f\x8b",),
    ".xz": (b"\xfd7zXZ",),
    ".zst": (b"\x28\xb5\x2f\xfd",),
    ".arrow": (b"ARROW1", b"\xff\xff\xff\xff"),
}

ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+]*)://(?P<rest>.*)", re.IGNORECASE)
HUB_PAGE = re.compile(r"(www\.)?huggingface\.co/datasets/(?P<id>[^/?#]+/[^/?#]+)")


def is_address(path: str) -> bool:
    """Whether a name is a URL, such as https://... or s3://..., which no folder or file here has."""
    return bool(ADDRESS.match(path))


def has_other_ending(path: str) -> bool:
    """Whether a name ends like that of a file, of a kind that is not read."""
    return any(path.lower().endswith(ending.endings) for ending in ENDINGS)


def refuse_address(path: str, field: str) -> None:
    """RecipeError for a URL: the hub's id in it, or to download it."""
    address = ADDRESS.match(path)
    if address is None:
        return
    way_out = "Download it, and name the file here; or name a hub data set by its id, such as trl-lib/tldr-preference."
    page = HUB_PAGE.match(address["rest"])
    if page:
        way_out = f"Name the data set on the hub by its id: {field}={page['id']}"
    elif address["scheme"].lower() == "file":
        way_out = f"Name the file itself: {field}={address['rest']}"
    raise RecipeError(f"{field}={path!r} is an address, which is not read. {way_out}")


def refuse_other_ending(path: str, file: Path) -> None:
    """RecipeError for a file of a kind that is not read, by its name or else by its first bytes."""
    for ending in ENDINGS:
        if file.name.lower().endswith(ending.endings):
            raise RecipeError(f"{path} is {ending.what}. {WHAT_IS_READ} {ending.way_out}")
    refuse_other_start(file)
    raise RecipeError(f"{path} has no ending that says how to read it: rename it. {WHAT_IS_READ}")


def refuse_other_start(file: Path) -> None:
    """RecipeError for a file that holds something else than its name says, or nothing; OSError where none may read."""
    with open(file, "rb") as opened:
        start = opened.read(LOOKED_AT)
    if not start:
        raise RecipeError(f"{file} has no rows: it is an empty file. {WHAT_IS_READ}")

    own = OWN_STARTS.get(file.suffix.lower(), ())
    if start.startswith(own):
        return
    for other in STARTS:
        if start.lstrip().startswith(other.start):
            raise RecipeError(f"{file} is {other.what}, not what its name says. {other.way_out}")
    if own:
        return  # its own library says what is wrong
    if b"\0" in start:
        raise RecipeError(f"{file} is not text in UTF-8: byte {start.index(0)} is 0. {WHAT_IS_READ}")


def wrong_encoding(file: str, error: UnicodeDecodeError) -> str:
    """What to say of text that is not in UTF-8."""
    byte = error.object[error.start]
    return (
        f"{file} is not in UTF-8: byte 0x{byte:02x} ({error.reason}). Write it in UTF-8; from Latin-1 by "
        "(iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW)."
    )

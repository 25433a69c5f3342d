"""A hash of our own source text, for the keys of cached results."""

import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@functools.cache
def source_hash(*modules: str) -> str:
    """SHA-256 of the text of modules of this package, named from inside it: "formats.readers", or "formats" for all.

    `datasets` finds a cached result again by the names of the functions that made it. Without the text of the code in
    the key, a new release would be served what an old one computed. The modules are named, so that a change elsewhere
    in the package does not make every cache stale.

    Raises ModuleNotFoundError for a name that is no module and no folder of this package.
    """
    digest = hashlib.sha256()
    for module in modules:
        for file in _files(module):
            digest.update(file.relative_to(PACKAGE).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _files(module: str) -> list[Path]:
    """The file of a module, or all files of a folder of modules."""
    place = PACKAGE.joinpath(*module.split("."))
    if place.is_dir():
        return sorted(place.rglob("*.py"))

    file = place.with_name(f"{place.name}.py")
    if not file.is_file():
        raise ModuleNotFoundError(f"dpo_recipes has no module {module!r}.")
    return [file]

"""One HTML file about a run, finished or not, or about several laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError, UsageError
from ..run_page.contents import contents
from ..run_page.page import page
from ..runs import files
from ..runs.folder import PAGE


def report(runs: Sequence[Path | str] | Path | str, *, to: Path | str | None = None) -> Path:
    """Write the page of a run folder, or of several, and return its path.

    A folder of run folders stands for all of them. The page of one run goes into it as report.html, that of several
    into the folder that holds them, unless `to` names a file. RecipeError where a folder is no run, or holds a damaged
    file.
    """
    named = [runs] if isinstance(runs, (str, Path)) else list(runs)
    folders: list[Path] = []
    for name in named:
        folders += [folder for folder in _runs_in(Path(name)) if folder not in folders]
    if not folders:
        raise UsageError("Name a run folder, as in `dpo-recipes report runs/NAME`.")

    place = Path(to) if to is not None else _place(folders)
    text = page([contents(folder) for folder in folders])
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(place, text)
    except OSError as error:
        raise RecipeError(
            f"{place} cannot be written: {error.strerror}. Choose another place with --to FILE."
        ) from None
    return place


def _runs_in(folder: Path) -> list[Path]:
    """A run folder itself, or the run folders in a folder, by name."""
    if (folder / "recipe.json").exists():
        return [folder]
    return sorted(file.parent for file in folder.glob("*/recipe.json")) or [folder]


def _place(folders: list[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / PAGE
    return folders[0].parent / PAGE

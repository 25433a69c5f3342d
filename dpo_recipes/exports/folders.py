"""The folder of an export: new, whole or not at all, with what of a run's model is no weight."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ..errors import RecipeError, UsageError
from ..runs import files
from ..runs.unwritable import unwritable_reason


def refuse_existing(place: Path, option: str = "--out FOLDER") -> None:
    """UsageError where something is there already: an export overwrites nothing."""
    if place.exists():
        raise UsageError(f"{place} is there already. Remove it, or name another: {option}")


def write_export(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write the folder; RecipeError, and no folder, where the place takes none."""
    try:
        files.write_folder(folder, fill)
    except Exception as error:  # of whichever library finds the disk full
        reason = unwritable_reason(error)
        if reason is None or isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{folder} cannot be written: {reason}. Choose another place: --out FOLDER") from error


def copy_what_is_no_weight(model: Path, where: Path) -> None:
    """Tokenizer, chat template, generation config, code of the model's own: all that is neither weights nor card."""
    for file in sorted(model.iterdir()):
        is_weights = file.suffix == ".safetensors" or file.name.endswith(".safetensors.index.json")
        if file.is_file() and not is_weights and file.name not in ("README.md", "adapter_config.json"):
            shutil.copy2(file, where / file.name)

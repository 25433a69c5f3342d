"""The cache in which `datasets` keeps the rows that it has read: whether it is damaged, and how it is filled anew.

Leans on datasets 5.2: of a damaged file in there, Arrow's or JSON's error comes out as it is; of what is being read for
the first time, it comes as the cause of a DatasetGenerationError.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import RecipeError
from ..runs.unwritable import unwritable_reason


def refuse_damaged_cache(error: BaseException, name: str, folder: Path | None = None) -> None:
    """RecipeError where an error is of what the cache has of a data set. `folder` is its place, where that is known."""
    import datasets

    folder = folder or Path(datasets.config.HF_DATASETS_CACHE)
    is_of_arrow = type(error) is OSError and error.errno is None  # one of the disk has a number
    is_of_facts = isinstance(error, json.JSONDecodeError)
    if unwritable_reason(error) or not folder.is_dir():
        return
    if is_of_arrow or is_of_facts or str(folder) in str(error):
        reason = str(error).rstrip(".")
        raise RecipeError(
            f"What the cache of data sets has of {name} is damaged or gone: {reason}. Remove it, and run again; it is "
            f"filled anew: rm -r {folder}"
        ) from error

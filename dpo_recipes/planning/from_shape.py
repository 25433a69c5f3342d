"""A plan from the shape of a model alone: where nothing of it is at hand, or not allowed to be fetched yet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, resolve
from ..runs import files
from ..training.session import Session
from ..training.tqdm_bars import quieten
from .shapes import config_of


class SessionOfShape(Session):
    """What a plan needs of a session: a folder with config.json, and no pairs, so that one fills max_length."""

    def __init__(self, recipe: Recipe, console: Console, device: Device, folder: str):
        quieten()
        self.recipe = recipe
        self.console = console
        self.device = device
        self.settings = resolve(recipe, device)
        self.report = {}
        self._configs = {}
        self.model_path = folder
        self.reference_path = ""
        self.reference_adapter = ""

    @property
    def has_images(self) -> bool:
        """There are no pairs."""
        return False


@contextmanager
def session_of_shape(recipe: Recipe, console: Console, device: Device) -> Iterator[SessionOfShape | None]:
    """A session for a plan; None where the shape is not known, or where there is more than a model and a new adapter.

    UsageError where the recipe's batch does not divide over the device's processes.
    """
    config = config_of(recipe.model, recipe.revision)
    has_more = recipe.reference is not None or (recipe.adapter is not None and recipe.adapter.continue_from)
    if config is None or has_more or recipe.max_length is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="dpo-recipes-") as folder:
        files.write_json(Path(folder) / "config.json", config)
        yield SessionOfShape(recipe, console, device, folder)

"""The folder of one run: made anew for each, and read back as values."""

import contextlib
import glob
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import RecipeError, nearest

PAGE = "report.html"  # the last file that a run writes


def create(runs: Path, name: str) -> "Run":
    """A new folder runs/<name>-<UTC time>; RecipeError where it cannot be written."""
    stem = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path = runs / stem
    attempt = 1
    while True:
        try:
            path.mkdir(parents=True)
            return Run(path)
        except FileExistsError:  # another run of the same second
            if not path.exists():  # it is `runs` that is in the way: a link that leads nowhere
                raise RecipeError(
                    f"The run folder {path} cannot be made: {runs} is a link that leads nowhere. Choose another place "
                    "with --runs FOLDER."
                ) from None
            attempt += 1
            path = runs / f"{stem}-{attempt}"
        except OSError as error:
            raise RecipeError(
                f"The run folder {path} cannot be made: {error.strerror}. Choose another place with --runs FOLDER."
            ) from None


@contextlib.contextmanager
def in_use(run: "Run") -> Iterator[None]:
    """While this goes on, no other process goes on with the run. RecipeError where one does already.

    The lock is on the folder itself and ends with the process, however that ends, so that nothing is left behind.
    """
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    folder = os.open(run.path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise RecipeError(f"Another process is training in {run.path}.") from None
    except OSError:  # a file system that knows no locks
        pass
    try:
        yield
    finally:
        os.close(folder)


class Run:
    """A run folder, finished or not.

    RecipeError where there is no such folder, and where a file is asked for that is damaged or not written yet.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_dir():
            others = [folder.name for folder in self.path.parent.glob("*/")]
            of_that_recipe = sorted(Path("runs").glob(f"{glob.escape(self.path.name)}-*/"))
            advice = nearest(self.path.name, others)
            if of_that_recipe:
                advice = f" The last run of a recipe of that name: {of_that_recipe[-1]}"
            raise RecipeError(f"There is no run folder {self.path}.{advice}")

    @property
    def model_folder(self) -> Path:
        """Of the weights that the run has trained, or of its adapter."""
        return self.path / "model"

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end: it has a model, and the answers, which are written last."""
        return self.model_folder.is_dir() and (self.path / "samples.jsonl").exists()

    @property
    def is_in_use(self) -> bool:
        """Whether a process is training in it."""
        try:
            with in_use(self):
                return False
        except RecipeError:
            return True

    @property
    def recipe(self) -> dict[str, dict[str, Any]]:
        """Dotted key -> {"value", "origin"} of this run."""
        return self._json("recipe.json")

    @property
    def evaluation(self) -> dict[str, dict[str, Any]]:
        """Held-out numbers, `before` and `after`."""
        return self._json("evaluation.json")

    @property
    def data(self) -> dict[str, Any]:
        """What was read, kept and dropped."""
        return self._json("data.json")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions of what was installed, the machine and the time."""
        return self._json("environment.json")

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Of each held-out pair: its row, its log-ratios in nats, its lengths in tokens."""
        return self._json_lines("pairs.jsonl")

    @property
    def reference(self) -> dict[str, Any]:
        """Who the reference was."""
        return self._json("reference.json")

    @property
    def weights(self) -> dict[str, dict[str, Any]]:
        """What the weights of each model are known by that the recipe names, by its field."""
        known: dict[str, dict[str, Any]] = self.reference.get("weights", {})  # which runs of an earlier version lack
        return known

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict per logged step."""
        return [row for row in self._json_lines("metrics.jsonl") if "rule" not in row]

    @property
    def observations(self) -> list[dict[str, Any]]:
        """What the rules of the guard have seen while training: `step`, `rule`, `level`, `seen` and `advice`."""
        return [row for row in self._json_lines("metrics.jsonl") if "rule" in row]

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Answers of both models to the same prompts."""
        return self._json_lines("samples.jsonl")

    def load_model(self) -> tuple[Any, Any]:
        """(model, tokenizer): the trained policy, the adapter on its base as it was trained.

        RecipeError where that base has other weights today.
        """
        from ..models.model_folder import base_of_run
        from ..models.trained import load_trained
        from ..models.weight_hash import refuse_changed_weights

        loaded = load_trained(self.model_folder, self.recipe)
        if self.recipe["adapter"]["value"] is not None:
            revision = self.recipe["revision"]["value"]
            base = base_of_run(self.model_folder)
            refuse_changed_weights("model", base, revision, self.weights.get("model"), self.path)
        return loaded

    def _json(self, name: str) -> Any:
        return self._read(name, json.loads)

    def _json_lines(self, name: str) -> Any:
        return self._read(name, _parse_lines)

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecipeError(f"{self.path} has no {name}: the run has not come that far.") from None
        except ValueError as error:  # no JSON, or no UTF-8
            raise RecipeError(f"{self.path / name} is damaged: {error}.") from None


def _parse_lines(text: str) -> Any:
    """The JSON values of a file that has one a line.

    Read as one array, so that an error names its line; and not with splitlines(), which would also split at
    characters that an answer may hold.
    """
    rows = text.rstrip("\n").replace("\n", ",\n")
    return json.loads(f"[{rows}]")

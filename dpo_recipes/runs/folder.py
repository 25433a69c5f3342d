"""What one run leaves on disk, written to a temporary name and renamed, and how it is read back."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ..errors import Finding, RecipeError, nearest

PACKAGES = ("dpo-recipes", "torch", "trl", "transformers", "datasets", "peft", "accelerate", "bitsandbytes")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: to a temporary name beside it, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder, then rename it to `path`; a failure leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def create(runs: Path, name: str) -> "Run":
    """A new folder runs/<name>-<UTC time>; RecipeError where it cannot be written."""
    stem, attempt = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}", 1
    while True:
        path = runs / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir(parents=True)
            return Run(path)
        except FileExistsError:
            attempt += 1
        except OSError as error:
            remedy = "Choose another place with --runs FOLDER."
            raise RecipeError(f"The run folder {path} cannot be made: {error.strerror}. {remedy}") from None


def cache() -> Path:
    """Where what can be made again is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpo-recipes"


def installed() -> dict[str, str]:
    return {name: found.version for name in PACKAGES for found in [*distributions(name=name)][:1]}


def versions() -> Finding:
    """The installed versions against those that the tests ran with: constraints.txt, in a wheel or in a checkout."""
    own, found = Path(__file__).parents[1] / "constraints.txt", installed()
    text = (own if own.is_file() else own.parents[1] / own.name).read_text(encoding="utf-8")
    tested = dict(line.split("==") for line in text.splitlines() if "==" in line)
    differ = [f"{p} {v}, tested {tested[p]}" for p, v in found.items() if v.split("+")[0] != tested.get(p, v)]
    if differ:
        return Finding(
            "warn", "versions", f"{'; '.join(differ)}. To have the tested ones: pip install -c constraints.txt"
        )
    return Finding("pass", "versions", "as tested: " + ", ".join(f"{p} {v}" for p, v in found.items()))


def environment(seed: int, device: dict[str, Any]) -> dict[str, Any]:
    """Versions, git commit, machine and seed: what is needed to say why two runs differ."""
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return {
        "versions": installed(), "python": platform.python_version(), "platform": platform.platform(),
        "git_commit": commit, "seed": seed, "device": device, "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


class Run:
    """A run folder, finished or not."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_dir():
            near = nearest(self.path.name, [folder.name for folder in self.path.parent.glob("*/")])
            raise RecipeError(f"There is no run folder {self.path}.{near}")

    def _json(self, name: str, lines: bool = False) -> Any:
        try:
            text = (self.path / name).read_text(encoding="utf-8")
            # As one array, so that an error names its line; replies may hold characters that splitlines() splits at.
            return json.loads("[" + text.rstrip("\n").replace("\n", ",\n") + "]" if lines else text)
        except FileNotFoundError:
            raise RecipeError(f"{self.path} has no {name}: the run has not come that far.") from None
        except ValueError as error:
            raise RecipeError(f"{self.path / name} is damaged: {error}.") from None

    recipe = property(lambda self: self._json("recipe.json"), doc='Dotted key -> {"value", "origin"} of this run.')
    evaluation = property(lambda self: self._json("evaluation.json"), doc="Held-out numbers, `before` and `after`.")
    data = property(lambda self: self._json("data.json"), doc="What was read, kept and dropped.")
    reference = property(lambda self: self._json("reference.json"), doc="Who the reference was.")
    metrics = property(lambda self: self._json("metrics.jsonl", lines=True), doc="One dict per logged step.")
    samples = property(lambda self: self._json("samples.jsonl", lines=True), doc="Answers of both models.")

    def load_model(self) -> tuple[Any, Any]:
        """(model, tokenizer): the trained policy, the adapter on its base as it was trained."""
        from ..models.weights import load_trained

        return load_trained(self.path, self.recipe)

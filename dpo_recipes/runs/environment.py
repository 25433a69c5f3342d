"""Where a run took place: the installed versions, the machine, and the place of what can be made again."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import Finding, RecipeError

PACKAGES = ("dpo-recipes", "torch", "trl", "transformers", "datasets", "peft", "accelerate", "bitsandbytes")
PACKAGE = Path(__file__).parents[1]


def cache() -> Path:
    """The folder for what can be made again; XDG_CACHE_HOME moves it."""
    home = os.environ.get("XDG_CACHE_HOME")
    if home:
        return Path(home) / "dpo-recipes"
    try:
        return Path.home() / ".cache" / "dpo-recipes"
    except RuntimeError:  # a user without an entry, as in some containers
        raise RecipeError(
            "There is no home folder to keep a cache in: set HOME or XDG_CACHE_HOME to a folder."
        ) from None


def installed() -> dict[str, str]:
    """The versions of the packages that decide a run's numbers; one that is not installed is left out."""
    present = {}
    for package in PACKAGES:
        try:
            present[package] = version(package)
        except PackageNotFoundError:
            continue
    return present


def versions() -> Finding:
    """The installed versions against those that the tests ran with, which constraints.txt holds."""
    present = installed()
    tested = _tested()

    differences = []
    for package, number in present.items():
        release = number.split("+")[0]  # 2.13.0+cu130 is a build of 2.13.0
        if package in tested and tested[package] != release:
            differences.append(f"{package} {number}, tested {tested[package]}")

    if differences:
        text = f"{'; '.join(differences)}. To have the tested ones: pip install -c constraints.txt"
        return Finding("warn", "versions", text)
    named = ", ".join(f"{package} {number}" for package, number in present.items())
    return Finding("pass", "versions", f"as tested: {named}")


def _tested() -> dict[str, str]:
    """Package -> tested version."""
    file = PACKAGE / "constraints.txt"  # a wheel carries it in the package
    if not file.is_file():
        file = PACKAGE.parent / "constraints.txt"  # in a checkout it stands beside the package
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def environment(seed: int, device: dict[str, Any]) -> dict[str, Any]:
    """Versions, git commit, machine and seed: what is needed to say why two runs differ."""
    return {
        "versions": installed(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": _git_commit(),
        "seed": seed,
        "device": device,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """The commit of the folder in which the run was started; None outside git, or without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()

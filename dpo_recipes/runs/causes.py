"""Why runs may differ, from their folders alone: what they were trained on, from what, how, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..recipe.choices import CHOSEN
from .folder import Run

# Values of a recipe that say how a run computed, and leave what it computed alone.
OF_THE_MACHINE = ("micro_batch_size", "dtype", "attn_implementation", "pair_sharing")
# What is compared by what came of it, and not by how the recipe puts it.
SAID_ELSEWHERE = ("model", "revision", "reference", "seed", "prepare")
RESULT_OF_THE_DATA = ("data.path", "data.mix", "data.train", "data.eval", "data.format")


class Cause(NamedTuple):
    """One thing in which runs differ."""

    kind: str  # pairs, template, start, reference, recipe, seed, versions or machine
    name: str
    values: tuple[Any, ...]  # one of each run; None where it has none


def causes(runs: Sequence[Run]) -> list[Cause]:
    """Everything in which runs differ that their folders tell, what changes a result the most first.

    The pairs, how they were written out, the start, the reference, the recipe's values, the seed, the versions of
    libraries, and last the machine and how it computed, which change no more than the rounding.
    """
    found = [
        *_pairs_that_differ(runs),
        *_differing("template", "chat template", [_short(run.data.get("template_sha256")) for run in runs]),
        *_differing("start", "model", [_start(run) for run in runs]),
        *_differing("reference", "reference", [_reference(run) for run in runs]),
    ]
    recipes = [_recipe_values(run) for run in runs]
    chosen = {name for run in runs for name, entry in run.recipe.items() if entry["origin"] == CHOSEN}
    has_same_pairs = not any(cause.kind == "pairs" for cause in found)
    of_the_machine: list[Cause] = []
    for name in _names(recipes):
        if name in SAID_ELSEWHERE or (has_same_pairs and name in RESULT_OF_THE_DATA):
            continue
        differing = _differing("recipe", name, [values.get(name) for values in recipes])
        if name in OF_THE_MACHINE or name in chosen:
            of_the_machine += [cause._replace(kind="machine") for cause in differing]
        else:
            found += differing
    found += _differing("seed", "seed", [values.get("seed") for values in recipes])
    return found + _of_the_environment(runs) + of_the_machine


def _of_the_environment(runs: Sequence[Run]) -> list[Cause]:
    """The versions of what is installed, then the machine."""
    environments = [run.environment for run in runs]
    versions = [{**each.get("versions", {}), "python": each.get("python")} for each in environments]
    found: list[Cause] = []
    for name in _names(versions):
        found += _differing("versions", name, [installed.get(name) for installed in versions])
    found += _differing("versions", "git commit", [_short(each.get("git_commit")) for each in environments])
    found += _differing("machine", "platform", [each.get("platform") for each in environments])
    devices = [each.get("device", {}) for each in environments]
    for name in _names(devices):
        found += _differing("machine", name, [device.get(name) for device in devices])
    return found


def _differing(kind: str, name: str, values: list[Any]) -> list[Cause]:
    """The cause, where the values are not all the same."""
    if all(value == values[0] for value in values):
        return []
    return [Cause(kind, name, tuple(values))]


def _names(dictionaries: Sequence[dict[str, Any]]) -> list[str]:
    """Every key of any of them, in the order in which they come."""
    return list(dict.fromkeys(name for dictionary in dictionaries for name in dictionary))


def _recipe_values(run: Run) -> dict[str, Any]:
    return {name: entry["value"] for name, entry in run.recipe.items()}


def _pairs_that_differ(runs: Sequence[Run]) -> list[Cause]:
    """The cause, where the runs had other pairs, or others of them held out, whatever their files are called."""
    data = [run.data for run in runs]
    known_by = [each.get("fingerprint") or each.get("path") for each in data]  # a stream has no fingerprint
    if not _differing("pairs", "", known_by):
        return []
    words = tuple(f"{each['train'].get('kept', 'a stream')} of {each.get('path')}" for each in data)
    if not _differing("pairs", "", list(words)):
        words = tuple(f"{text} ({_short(digest)})" for text, digest in zip(words, known_by, strict=True))
    return [Cause("pairs", "which pairs", words)]


def _start(run: Run) -> str:
    who = run.reference
    revision = f"@{who['revision']}" if who.get("revision") else ""
    return f"{who.get('model')}{revision}"


def _reference(run: Run) -> str:
    who = run.reference
    return f"{who.get('kind')} ({_short(who.get('fingerprint'))})"


def _short(digest: str | None) -> str | None:
    """The start of a hash, which is enough to tell two apart."""
    return digest[:8] if digest else digest

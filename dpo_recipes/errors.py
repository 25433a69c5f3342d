"""The two errors a user meets, and the nearest right spelling.

A message says where and what, why it cannot work, and what to do. Library code raises; only `cli` prints and exits.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal, NamedTuple


class RecipeError(Exception):
    """A recipe, a data file, a model or a run that cannot work as it stands. Exit code 1."""


class UsageError(RecipeError):
    """Something mistyped: an unknown recipe, key, value form or loss. Exit code 2."""


class Finding(NamedTuple):
    """One line of `dpo-recipes check`: what was looked at, and what was found there."""

    level: Literal["pass", "info", "warn", "fail", "skipped"]  # info: a number to know, and nothing to judge
    name: str
    text: str


def stop_at_fails(findings: Iterable[Finding]) -> None:
    """RecipeError where findings are fails: a line for each of them."""
    fails = [f"{finding.name}: {finding.text}" for finding in findings if finding.level == "fail"]
    if fails:
        raise RecipeError("\n".join(fails))


def nearest(name: str, names: Iterable[str]) -> str:
    """The sentence ` Did you mean 'x'?`, or nothing when no name is close."""
    match = nearest_name(name, names)
    return f" Did you mean {match!r}?" if match is not None else ""


def nearest_name(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that is spelled most alike, but for case; None when no name is close."""
    spelled = {n.lower(): n for n in names}
    match = get_close_matches(name.lower(), spelled, n=1, cutoff=cutoff)
    return spelled[match[0]] if match else None

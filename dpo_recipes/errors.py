"""The two errors a user meets, and the nearest right spelling.

A message has three parts, always: where and what; why it cannot work; what to do next. Library code raises;
only `cli` prints and exits (1: yours to fix, 2: usage). Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RecipeError(Exception):
    """A recipe, a data file, a model or a run that cannot work as it stands. Exit code 1."""


class UsageError(RecipeError):
    """Something mistyped: an unknown recipe, key, value form or loss. Exit code 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """The sentence ` Did you mean 'x'?`, or nothing when no name is close."""
    spelled = {n.lower(): n for n in names}
    match = get_close_matches(name.lower(), spelled, n=1, cutoff=0.6)
    return f" Did you mean {spelled[match[0]]!r}?" if match else ""

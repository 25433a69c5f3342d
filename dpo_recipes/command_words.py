"""The words of the command line that typer would take for something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import UsageError, nearest_name
from .recipe.recipe import Recipe
from .runs.resumption import LAST

AS_GOOD_AS_THE_SAME = 0.8  # of 1, by difflib


def with_run_of_resume(words: Sequence[str]) -> list[str]:
    """`--resume` alone stands for the last run: typer knows no option whose value may be left out."""
    completed = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        names_no_run = not following or following.startswith("-") or "=" in following
        completed.append(f"{word}={LAST}" if word == "--resume" and names_no_run else word)
    return completed


def refuse_mistyped_options(words: Iterable[str], options: Sequence[str]) -> None:
    """UsageError for what is nearly an option: of a verb that takes KEY=VALUE it would be taken for one of these.

    A name of the recipe's, such as --seed, is no mistyped option: how it is set is said where changes are read.
    """
    for word in words:
        name = word.partition("=")[0]
        is_of_the_recipe = name.removeprefix("--") in Recipe.__dataclass_fields__
        if not name.startswith("--") or name in options or is_of_the_recipe:
            continue
        meant = nearest_name(name, options, cutoff=AS_GOOD_AS_THE_SAME)
        if meant is not None:
            raise UsageError(
                f"{word!r} is neither an option (see --help) nor KEY=VALUE, such as beta=0.05. Did you mean {meant!r}?"
            )

"""`key=value,value` on the command line -> every combination of the values, as the changes of one recipe each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ..errors import UsageError

OPENING, CLOSING = "([{", ")]}"
MOST_RUNS = 1000  # more can only be a slip


def grid(assignments: Sequence[str], seeds: int | None = None) -> list[list[str]]:
    """The assignments of each run: one value of every key, the last key changing first.

    Values are parted by commas that stand in no brackets and no quotes: `beta=0.1,0.5 loss={sigmoid:1,sft:0.1},ipo`.
    `seeds`: each combination so often, with seed=0, 1 and so on. UsageError for a value that is missing or stands
    twice, and where there is one combination alone.
    """
    if seeds is not None and any(assignment.partition("=")[0].strip() == "seed" for assignment in assignments):
        raise UsageError("--seeds counts the seeds from 0, and seed= names them: keep one of the two.")
    choices = [_choices(assignment) for assignment in assignments]
    if seeds is not None:
        choices.append([f"seed={seed}" for seed in range(seeds)])

    runs = [list(combination) for combination in itertools.product(*choices)]
    if len(runs) < 2:
        raise UsageError("Nothing is swept: give a key several values, beta=0.05,0.1,0.5, or several --seeds.")
    if len(runs) > MOST_RUNS:
        raise UsageError(f"These are {len(runs):,} runs. At most {MOST_RUNS:,} can be meant.")
    return runs


def _choices(assignment: str) -> list[str]:
    """`key=value` for each value of a key."""
    key, equals, text = assignment.partition("=")
    values = [value.strip() for value in _parted(text)]
    if not equals or not all(values):
        raise UsageError(f"{assignment!r} is no KEY=VALUE,VALUE, such as beta=0.05,0.1,0.5.")
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise UsageError(f"{assignment!r} has {repeated[0]} twice.")
    return [f"{key}={value}" for value in values]


def _parted(text: str) -> list[str]:
    """The parts of a text between its commas, but for commas in brackets or quotes."""
    parts = [""]
    depth = 0
    quote = ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts

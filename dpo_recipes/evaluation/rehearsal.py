"""A recipe's reward and measures, called on a real held-out pair before training, so that a fault is known by then."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from ..data.replies import Messages, question
from ..errors import Finding, RecipeError

Score = Callable[[str, str], float]  # (prompt, completion) -> a number: a recipe's reward or one of its measures

LONG = 10.0  # seconds that all calls of an evaluation may take without a word about it
SHOWN = 60  # characters of a text that a message shows


def rehearse(scores: dict[str, Score], pairs: Iterable[dict[str, Any]], calls: int) -> list[Finding]:
    """A finding for each function, from the first held-out pair: both its sides, and the empty answer a model may give.

    `calls`: how often the evaluation will call each of them.
    """
    pair = next(iter(pairs), None)
    if not scores or pair is None:
        return []
    try:
        prompt = prompt_text(pair["prompt"])
    except RecipeError as error:
        return [Finding("fail", name, str(error)) for name in scores]
    completions = [_text_of(pair["chosen"]), _text_of(pair["rejected"]), ""]
    return [_rehearsed(name, score, prompt, completions, calls) for name, score in scores.items()]


def prompt_text(prompt: Messages | str) -> str:
    """What a reward gets as its prompt: plain text as it is, of messages the last user's."""
    return prompt if isinstance(prompt, str) else question(prompt)


def _text_of(side: Messages | str) -> str:
    if isinstance(side, str):
        return side
    return str(side[0].get("content") or "")


def _rehearsed(name: str, score: Score, prompt: str, completions: list[str], calls: int) -> Finding:
    printed = io.StringIO()
    seconds = []
    try:
        for completion in completions:
            begun = time.perf_counter()
            with contextlib.redirect_stdout(printed):
                number_of(name, score, prompt, completion)
            seconds.append(time.perf_counter() - begun)
    except RecipeError as error:
        return Finding("fail", name, str(error))

    remarks = []
    whole = calls * min(seconds)  # the first call may have loaded something
    if whole > LONG:
        remarks.append(
            f"{name}() took {min(seconds):.2g} s a call; the evaluation calls it {calls:,} times, which takes about "
            f"{timedelta(seconds=round(whole))}."
        )
    if printed.getvalue():
        remarks.append(f"{name}() prints, and the evaluation calls it {calls:,} times.")
    if remarks:
        return Finding("warn", name, " ".join(remarks))
    return Finding("pass", name, f"{name}() gives a number for a held-out pair and for an empty answer")


def number_of(name: str, score: Score, prompt: str, completion: str) -> float:
    """score(prompt, completion), a finite number; RecipeError for an error or anything else, with what it was given."""
    given = f"prompt={_shortened(prompt)} (text; of messages, the last user's) and completion={_shortened(completion)}"
    try:
        value: Any = score(prompt, completion)
    except (Exception, SystemExit) as error:  # the user's function
        raise RecipeError(f"{name}() failed with {given}: {type(error).__name__}: {error}.") from error

    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # NumPy's and torch's single numbers
    if not isinstance(value, (int, float)):
        returned = "None" if value is None else f"a {type(value).__name__}, {_shortened(value)},"
        raise RecipeError(f"{name}() must return a number, and returned {returned} with {given}.")
    if not math.isfinite(value):
        raise RecipeError(f"{name}() must return a finite number, and returned {value} with {given}.")
    return float(value)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

"""Checks the fields of a value: their types in words, their limits, and the nearest right spelling."""

from __future__ import annotations

import contextlib
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import date
from typing import Any, Literal

from ..errors import UsageError, nearest
from ..losses.selection import name_of

ALLOWED = (
    "border",
    "start_token",
    "end_token",
    "special_tokens",
    "truncated",
    "contradictions",
)  # stops of the data report, by name

# Field -> what holds for its value unless that is None, and how a message says it.
LIMITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    **dict.fromkeys(("beta", "learning_rate", "num_train_epochs"),
                    (lambda v: 0 < v < float("inf"), "a positive, finite number")),
    **dict.fromkeys(("r", "alpha", "global_batch_size", "micro_batch_size"), (lambda v: v >= 1, "at least 1")),
    "loss": (lambda v: v != {}, "at least one loss"),
    "max_length": (lambda v: v >= 2, "at least 2"),
    "seed": (lambda v: 0 <= v < 2**32, "in [0, 2**32)"),
    "dropout": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "max_dropped": (lambda v: 0 <= v <= 1, "a share in [0, 1]"),
    "mix": (lambda v: all(0 < w <= 1 for w in v.values()), "paths with the share of their pairs to use, in (0, 1]"),
    "eval": (lambda v: v[-1] != "%" and v.lower() not in ("none", "true", "false") if isinstance(v, str) else 0 < v < 1,
             "a split, a file, or the share to hold out, between 0 and 1"),
    "allow": (lambda v: {*v} <= {*ALLOWED}, f"a list of findings to allow: {', '.join(ALLOWED)}"),
    "template_date": (lambda v: date.fromisoformat(v).isoformat() == v, "a date as YYYY-MM-DD, such as 2025-07-08"),
    "target_modules": (lambda v: all(v) and v and not {"all_linear", "lm_head"} & {*v, str(v)},
                       "'all-linear' or names of modules; never the head, whose weight TRL reads past any adapter"),
}  # fmt: skip


class Value:
    """A dataclass that remembers which of its fields were given, and refuses a value of the wrong type or range."""

    given: frozenset[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> typing.Self:
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset([*list(hints(cls))[: len(args)], *kwargs]))  # not compared
        return self

    def evolve(self, *unset: str, **changes: Any) -> typing.Self:
        """The same value with some fields changed; what was left at its default stays so, and `unset` returns to it."""
        return type(self)(**{name: getattr(self, name) for name in self.given.difference(unset)} | changes)

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value, (limit, words) = getattr(self, name), LIMITS.get(name, (lambda _: True, ""))
            why = wrong(value, hint)
            if fits(value, hint) and value != "":
                with contextlib.suppress(ValueError):
                    if value is None or limit(value):
                        continue
                why = f"must be {words}."
            shown = name_of(value) if callable(value) else repr(value)
            raise UsageError(f"{type(self).__name__}.{name}={shown} {why}")
        for refused, why in self.refusals():
            if refused:
                raise UsageError(why)

    def refusals(self) -> Iterable[tuple[Any, str]]:
        """(whether it is refused, why) of values that are right alone and do not go together."""
        return ()


def hints(cls: type) -> dict[str, Any]:
    """Field name -> resolved type, in the order of declaration."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in fields(cls)}


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type a field declares; an int is a float, a bool is not an int."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if len(members(hint)) > 1:
        return any(fits(value, member) for member in members(hint))
    if origin is Literal:
        return value in args
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if origin is list:
        return isinstance(value, list) and all(fits(v, args[0]) for v in value)
    if origin is Callable:
        return callable(value)
    kinds = (int, float) if hint is float else object if hint is Any else hint
    return isinstance(value, kinds) and not (isinstance(value, bool) and hint in (int, float))


def expected(hint: Any) -> str:
    """A type in words, as the messages say it: `must be ...`."""
    words = {
        int: "a whole number", float: "a number such as 0.1 or 5e-7", str: "text", bool: "true or false",
        type(None): "none", dict: "a dict such as {'name': value}", list: "a list such as ['q_proj', 'v_proj']",
        Literal: "one of " + ", ".join(map(str, typing.get_args(hint))), Callable: "a function",
    }  # fmt: skip
    if len(members(hint)) > 1:
        return " or ".join(dict.fromkeys(map(expected, members(hint))))
    return words.get(typing.get_origin(hint) or hint) or f"{hint.__name__}(...)"


def wrong(value: Any, hint: Any) -> str:
    """What a value of the wrong type must be, and the nearest word where a field lists its words."""
    listed = [word for member in members(hint) for word in typing.get_args(member) if isinstance(word, str)]
    return f"must be {expected(hint)}.{nearest(value, listed) if isinstance(value, str) else ''}"

"""Checks the fields of a value: their types, in words; their limits; and the nearest right spelling.

A field declares its type and, where not every value of that type will do, its limit:
`beta: Annotated[float, POSITIVE] = 0.1`. It may declare several: the first that is broken is told.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from ..errors import UsageError, nearest
from ..losses.selection import name_of


class Limit(NamedTuple):
    """What holds for the value of a field unless that is None, and the words that follow `must be` in a message."""

    holds: Callable[[Any], bool]
    words: str


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


POSITIVE = Limit(_is_positive, "a positive, finite number")


def at_least(least: int) -> Limit:
    def is_large_enough(value: int) -> bool:
        return value >= least

    return Limit(is_large_enough, f"at least {least}")


def at_most(most: float, reason: str) -> Limit:
    """A value beyond which nothing can be meant; `reason` says what is."""

    def is_small_enough(value: float) -> bool:
        return value <= most

    return Limit(is_small_enough, f"at most {most:,}: {reason}")


def not_below(least: float, reason: str) -> Limit:
    """So too, in the other direction."""

    def is_large_enough(value: float) -> bool:
        return value >= least

    return Limit(is_large_enough, f"at least {least:,}: {reason}")


class Value:
    """A dataclass that remembers which of its fields were given, and refuses a value of the wrong type or range."""

    given: frozenset[str]  # names of fields; no field itself, so that values compare without it

    def __new__(cls, *args: Any, **kwargs: Any) -> typing.Self:
        self = super().__new__(cls)
        by_position = list(field_types(cls))[: len(args)]
        object.__setattr__(self, "given", frozenset([*by_position, *kwargs]))  # the dataclass is frozen
        return self

    def evolve(self, *unset: str, **changes: Any) -> typing.Self:
        """The same value with some fields changed; what was left at its default stays so, and `unset` returns to it."""
        kept = {name: getattr(self, name) for name in self.given.difference(unset)}
        return type(self)(**kept | changes)

    def __post_init__(self) -> None:
        limits = _limits(type(self))
        for name, hint in field_types(type(self)).items():
            value = getattr(self, name)
            problem = _problem(value, hint, limits.get(name, ()))
            if problem:
                shown = name_of(value) if callable(value) else repr(value)
                raise UsageError(f"{type(self).__name__}.{name}={shown} {problem}")
        self.refuse_contradictions()

    def refuse_contradictions(self) -> None:
        """Raise UsageError for values that are right alone and do not go together."""


def field_types(cls: type) -> dict[str, Any]:
    """Field name -> its type without the limit, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _limits(cls: type) -> dict[str, tuple[Limit, ...]]:
    """Field name -> its limits, of the fields that have any."""
    limits = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if typing.get_origin(hint) is typing.Annotated:
            _type, *declared = typing.get_args(hint)
            limits[name] = tuple(declared)
    return limits


def _problem(value: Any, hint: Any, limits: tuple[Limit, ...]) -> str | None:
    """What a value must be and is not."""
    is_blank = isinstance(value, str) and not value.strip()  # it says nothing; what may be left out is None
    if not has_type(value, hint) or is_blank:
        return must_be(value, hint)
    if value is None:
        return None
    for limit in limits:
        if not limit.holds(value):
            return f"must be {limit.words}."
    return None


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value has the type a field declares; an int is a float, a bool is not an int."""
    if hint is Any:
        return True
    if len(union_members(hint)) > 1:
        return any(has_type(value, member) for member in union_members(hint))

    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Literal:
        return value in parts
    if kind is Callable:
        return callable(value)
    if kind is list:
        return isinstance(value, list) and all(has_type(item, parts[0]) for item in value)
    if kind is dict:
        key_type, item_type = parts
        return isinstance(value, dict) and all(
            has_type(key, key_type) and has_type(item, item_type) for key, item in value.items()
        )
    if isinstance(value, bool):  # which Python counts among the int
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind)


def must_be(value: Any, hint: Any) -> str:
    """`must be ...`, of a value of the wrong type; and the nearest word where the field lists its words."""
    sentence = f"must be {type_in_words(hint)}."
    if isinstance(value, str):
        sentence += nearest(value, _listed_words(hint))
    return sentence


# How a message names a type.
TYPE_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number such as 0.1 or 5e-7",
    str: "text",
    bool: "true or false",
    type(None): "none",
    dict: "a dict such as {'name': value}",
    list: "a list such as ['q_proj', 'v_proj']",
    Callable: "a function",
}


def type_in_words(hint: Any) -> str:
    members = union_members(hint)
    if len(members) > 1:
        alternatives = dict.fromkeys(type_in_words(member) for member in members)  # each of them once, in order
        return " or ".join(alternatives)

    kind = typing.get_origin(hint) or hint
    if kind is Literal:
        return "one of " + ", ".join(str(word) for word in typing.get_args(hint))
    if kind in TYPE_WORDS:
        return TYPE_WORDS[kind]
    return f"{kind.__name__}(...)"


def union_members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _listed_words(hint: Any) -> list[str]:
    """The words that a field takes, where its type is a Literal."""
    words = []
    for member in union_members(hint):
        if typing.get_origin(member) is Literal:
            words += [word for word in typing.get_args(member) if isinstance(word, str)]
    return words


def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's parameters; none of one written in C, which has no signature to ask."""
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:
        return frozenset()


def refuse_another_signature(written: str, function: Callable[..., Any] | None, *arguments: str) -> None:
    """Refuse a function that cannot be called as it will be, perhaps hours later."""
    if function is None:
        return
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:
        return  # one written in C has no signature to ask
    except TypeError as error:
        raise UsageError(f"{written}: {error}.") from None

"""A recipe as the Python that makes it: the values that were given, and no default."""

from __future__ import annotations

from typing import Any

from .recipe import Recipe
from .validation import Value, field_types

WIDEST = 100  # columns of a value that stands in one line


def as_python(recipe: Recipe) -> str:
    """The text of a recipe file that makes an equal recipe, where none of its values is a function."""
    kinds = sorted({"Recipe", *_kinds(recipe)})
    return f"from dpo_recipes import {', '.join(kinds)}\n\nrecipe = {_call(recipe, spread=True)}\n"


def _given(value: Value) -> dict[str, Any]:
    return {name: getattr(value, name) for name in field_types(type(value)) if name in value.given}


def _kinds(value: Value) -> set[str]:
    """The names of the values of ours that it is made of."""
    kinds = set()
    for part in _given(value).values():
        if isinstance(part, Value):
            kinds |= {type(part).__name__, *_kinds(part)}
    return kinds


def _written(part: Any, indent: str) -> str:
    if isinstance(part, Value):
        return _call(part, indent)
    in_one_line = repr(part)
    if not isinstance(part, dict) or len(in_one_line) <= WIDEST:
        return in_one_line
    entries = [f"{indent}    {key!r}: {value!r},\n" for key, value in part.items()]
    return f"{{\n{''.join(entries)}{indent}}}"


def _call(value: Value, indent: str = "", *, spread: bool = False) -> str:
    """`Data('pairs.jsonl', eval=0.1)`; with a field a line where that is asked for or too wide."""
    arguments = []
    for name, part in _given(value).items():
        is_first_by_position = name == "path"
        written = _written(part, f"{indent}    ")
        arguments.append(written if is_first_by_position else f"{name}={written}")

    kind = type(value).__name__
    in_one_line = f"{kind}({', '.join(arguments)})"
    if not spread and len(in_one_line) <= WIDEST:
        return in_one_line
    lines = [f"{indent}    {argument},\n" for argument in arguments]
    return f"{kind}(\n{''.join(lines)}{indent})"

"""Whether a function of a model is a copy of one that we know, as most files of Transformers are made of copies."""

from __future__ import annotations

from types import FunctionType
from typing import Any

OF_FUNCTION = ("__defaults__", "__kwdefaults__")
OF_CODE = ("co_code", "co_names", "co_varnames", "co_freevars", "co_argcount", "co_kwonlyargcount")


def is_copy(function: Any, original: Any) -> bool:
    """Whether two functions were compiled to the same operations on the same names; what they say of it is their own.

    What those names stand for is not looked at. And nothing is a copy of what a library of kernels has put in the place
    of a function of Transformers.
    """
    if not isinstance(function, FunctionType) or not isinstance(original, FunctionType):
        return False
    return original.__module__.startswith("transformers.") and _compiled(function) == _compiled(original)


def _compiled(function: FunctionType) -> list[Any]:
    """What decides what a function does, its docstring apart."""
    compiled = [getattr(function, name) for name in OF_FUNCTION]
    compiled += [getattr(function.__code__, name) for name in OF_CODE]
    compiled += [constant for constant in function.__code__.co_consts if constant != function.__doc__]
    return compiled

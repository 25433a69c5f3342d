"""Whether a function of a model is a copy of one that we know, as most files of Transformers are made of copies."""

from __future__ import annotations

from typing import Any

OF_CODE = ("co_code", "co_names", "co_varnames", "co_freevars", "co_argcount", "co_kwonlyargcount")


def is_copy(function: Any, original: Any) -> bool:
    """Whether two functions were compiled to the same operations on the same names; what they say of it is their own.

    What those names stand for is not looked at. And nothing is a copy of what a library of kernels has put in the place
    of a function of Transformers.
    """
    code, original_code = getattr(function, "__code__", None), getattr(original, "__code__", None)
    if code is None or original_code is None or not original.__module__.startswith("transformers."):
        return False
    for part in OF_CODE:
        if getattr(code, part) != getattr(original_code, part):
            return False
    same_defaults = (
        function.__defaults__ == original.__defaults__ and function.__kwdefaults__ == original.__kwdefaults__
    )
    return same_defaults and _constants(function) == _constants(original)


def _constants(function: Any) -> list[Any]:
    """The constants of a function's operations, without its docstring."""
    return [constant for constant in function.__code__.co_consts if constant != function.__doc__]

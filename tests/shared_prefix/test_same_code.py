"""A copy is told by its operations, its names and its constants, and not by what it says of itself."""

from __future__ import annotations

import functools

import pytest

from dpo_recipes.shared_prefix.same_code import is_copy

SCALE = SCALES = 3


def original(x, power=2):
    """What it does."""
    return SCALE * x**power + 1


original.__module__ = "transformers.somewhere"


def copy_without_docstring(x, power=2):
    return SCALE * x**power + 1


def copy_in_other_words(x, power=2):
    """Something else."""
    return SCALE * x**power + 1


def another_constant(x, power=2):
    """What it does."""
    return SCALE * x**power + 2


def another_operation(x, power=2):
    """What it does."""
    return SCALE * x**power - 1


def another_name(x, power=2):
    """What it does."""
    return SCALES * x**power + 1


def another_default(x, power=3):
    """What it does."""
    return SCALE * x**power + 1


def a_default_by_name_alone(x, *, power=2):
    """What it does."""
    return SCALE * x**power + 1


def another_argument(y, power=2):
    """What it does."""
    return SCALE * y**power + 1


@pytest.mark.parametrize("function", [original, copy_without_docstring, copy_in_other_words])
def test_a_copy(function):
    assert is_copy(function, original)


OTHERS = (
    another_constant,
    another_operation,
    another_name,
    another_default,
    a_default_by_name_alone,
    another_argument,
)


@pytest.mark.parametrize("function", OTHERS)
def test_no_copy(function):
    assert not is_copy(function, original)


@pytest.mark.parametrize("function", [functools.partial(original, power=2), len, None, original(2)])
def test_what_is_not_written_in_python_is_no_copy(function):
    assert not is_copy(function, original)


def test_what_a_library_has_put_in_the_place_of_the_original_has_no_copies(monkeypatch):
    monkeypatch.setattr(original, "__module__", "kernels.of.somebody")
    assert not is_copy(copy_in_other_words, original)
    assert not is_copy(original, original)


def test_an_original_that_is_not_written_in_python_has_no_copies():
    assert not is_copy(original, functools.partial(original, power=2))

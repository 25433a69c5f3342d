"""The nearest right spelling, and which errors are usage errors."""

from __future__ import annotations

import pytest

from dpo_recipes.errors import RecipeError, UsageError, nearest


@pytest.mark.parametrize(
    ("word", "names", "sentence"),
    [
        ("betta", ["beta", "seed"], " Did you mean 'beta'?"),
        ("SIGMOID", ["hinge", "sigmoid"], " Did you mean 'sigmoid'?"),
        ("adapter.rr", ["beta", "adapter.r"], " Did you mean 'adapter.r'?"),
        ("kettle", ["beta", "seed"], ""),
        ("", ["beta"], ""),
        ("beta", [], ""),
    ],
)
def test_nearest_is_a_sentence_or_nothing(word, names, sentence):
    assert nearest(word, names) == sentence
    assert nearest(word, iter(names)) == sentence


def test_a_usage_error_is_a_recipe_error():
    assert issubclass(UsageError, RecipeError) and not issubclass(RecipeError, UsageError)

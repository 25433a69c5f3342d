"""What a value remembers and refuses: types in words, what was given, the same value with changes."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_recipes import LoRA, Recipe
from dpo_recipes.recipe.validation import field_types, has_type, type_in_words


def test_evolve_keeps_what_was_given_and_what_was_not():
    changed = LoRA(r=8).evolve(alpha=4)
    assert changed == LoRA(r=8, alpha=4) and changed.given == {"r", "alpha"}
    assert changed.evolve("r") == LoRA(alpha=4) and changed.evolve("r").given == {"alpha"}


@pytest.mark.parametrize(
    ("value", "hint", "holds", "words"),
    [
        (1, float, True, "a number such as 0.1 or 5e-7"),
        (True, float, False, "a number such as 0.1 or 5e-7"),
        (True, int, False, "a whole number"),
        (1, bool, False, "true or false"),
        (None, int | None, True, "a whole number or none"),
        (["a"], str | list[str], True, "text or a list such as ['q_proj', 'v_proj']"),
        ([1], str | list[str], False, "text or a list such as ['q_proj', 'v_proj']"),
        ({"a": 1}, dict[str, Any], True, "a dict such as {'name': value}"),
        ({1: 1}, dict[str, Any], False, "a dict such as {'name': value}"),
        (len, field_types(Recipe)["reward"], True, "a function or none"),
    ],
)
def test_types_and_their_words(value, hint, holds, words):
    assert has_type(value, hint) is holds and type_in_words(hint) == words

"""What a value remembers and refuses: types in words, what was given, the same value with changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from dpo_recipes import LoRA, Recipe
from dpo_recipes.errors import UsageError
from dpo_recipes.recipe.validation import Limit, Value, field_types, has_type, type_in_words


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
        (len, field_types(Recipe)["reward"], True, "a function or RewardModel(...) or JudgeEndpoint(...) or none"),
    ],
)
def test_types_and_their_words(value, hint, holds, words):
    assert has_type(value, hint) is holds and type_in_words(hint) == words


def is_even(value: int) -> bool:
    return value % 2 == 0


EVEN = Limit(is_even, "even")


@dataclass(frozen=True, kw_only=True)
class Pairs(Value):
    """A value with a limit of its own, as one would add it to a field."""

    count: Annotated[int | None, EVEN] = None
    side: str = "chosen"

    def refuse_contradictions(self) -> None:
        if self.count == 0 and "side" in self.given:
            raise UsageError("side does nothing without pairs.")


def test_a_limit_stands_beside_its_field():
    assert Pairs(count=2).count == 2
    assert Pairs(count=None).count is None  # what is left open has no limit
    with pytest.raises(UsageError, match=r"^Pairs\.count=3 must be even\.$"):
        Pairs(count=3)


def test_the_type_is_judged_before_the_limit():
    with pytest.raises(UsageError, match="must be a whole number or none"):
        Pairs(count="2")


def test_what_contradicts_is_refused_after_each_field_is_right():
    assert Pairs(count=0).side == "chosen"
    with pytest.raises(UsageError, match="does nothing without pairs"):
        Pairs(count=0, side="chosen")


def test_the_types_of_fields_come_without_their_limits():
    assert field_types(Pairs) == {"count": int | None, "side": str}

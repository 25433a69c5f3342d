"""What is odd about a pair that can be read, and what is not."""

from __future__ import annotations

import pytest

from dpo_recipes.formats.oddities import ODDITIES, odd_bits


def odd(chosen: str, rejected: str = "No.", prompt: str = "Is it so?", **raw) -> list[str]:
    """The names of what is odd, the same for messages and for text."""
    text = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    messages = {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    bits = odd_bits(text, raw)
    assert odd_bits(messages, raw) == bits
    return [name for place, name in enumerate(ODDITIES) if bits >> place & 1]


@pytest.mark.parametrize(
    ("chosen", "raw", "names"),
    [
        ("Yes, with an é, a ã and “quotes”.", {}, []),
        (" NaN\n", {}, ["placeholders"]),
        ("None of them.", {}, []),
        ("Is it so? Yes.", {}, ["repeated prompt"]),
        ("So it is. Is it so?", {}, []),
        ("caf\ufffd", {}, ["decoding"]),
        ("caf\u00c3\u00a9", {}, ["decoding"]),
        ("Yes.", {"score_chosen": 1, "score_rejected": "2.5"}, ["scores"]),
        ("Yes.", {"score_chosen": 2, "score_rejected": 2.0}, ["equal scores"]),
        ("Yes.", {"chosen-rating": 5, "rejected-rating": 1}, []),
        ("Yes.", {"score_chosen": None, "score_rejected": "low"}, []),
        ("Yes.", {"score_chosen": 1}, []),
        ("<think>\nHm.\n</think>\n\nYes.", {}, ["thoughts"]),
        ("\n<think>\n\n</think>\n\nYes.", {}, ["thoughts"]),
        ("Write <think> before it.", {}, []),
    ],
)
def test_what_is_odd(chosen, raw, names):
    assert odd(chosen, **raw) == names


def test_a_thought_on_both_sides_or_beside_the_text():
    thought = "<think>\nHm.\n</think>\n\n"
    assert odd(f"{thought}Yes.", f"{thought}No.") == []

    def with_thought(text, **beside):
        return [{"role": "assistant", "content": text, **beside}]

    pair = {"prompt": "Is it so?", "chosen": with_thought("Yes.", reasoning_content="Hm."), "rejected": "No."}
    place = list(ODDITIES).index("thoughts")
    assert odd_bits(pair, {}) == 1 << place
    assert odd_bits(pair | {"rejected": with_thought("No.", reasoning_content="Hm.")}, {}) == 0

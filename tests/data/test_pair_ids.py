"""Where the texts of a pair may be cut, so that what they share is tokenised once."""

from __future__ import annotations

from itertools import chain

import pytest
from making import make_tokenizer
from tokenizers import AddedToken

from dpo_recipes.data.pair_ids import _marks, sequences


@pytest.mark.parametrize(
    ("options", "others", "cuts"),
    [
        ({}, [], True),
        ({"rstrip": True}, [], True),
        ({"lstrip": True}, [], False),
        ({"single_word": True}, [], False),
        ({"normalized": True}, [], False),
        ({}, ["x<m"], False),  # which begins before "<mark>" and ends in it
        ({}, ["<mark>s"], False),
        ({}, ["x<n"], True),
    ],
)
def test_a_text_is_cut_only_at_a_token_that_is_always_found_there(options, others, cuts):
    tokenizer = make_tokenizer("{% for m in messages %}<mark>{{ m['content'] }} {% endfor %}")
    mark = AddedToken("<mark>", **{"special": True, "normalized": False, **options})
    tokenizer.add_special_tokens({"additional_special_tokens": [mark]})
    tokenizer.add_tokens([AddedToken(other, normalized=False) for other in others])
    assert ("<mark>" in _marks(tokenizer)) == cuts
    texts = ["a <mark> bx", "a <mark> bx<mark> c", "a <mark> bx<mark>s"]
    for text in texts:
        strings = [text + "<mark>", text + "<mark> yes", text + "<mark>no"]
        assert list(chain(*sequences([strings], tokenizer, text=False))) == tokenizer(strings)["input_ids"]

"""Which form the first rows of a split have, and what the error says where none fits or several do."""

from __future__ import annotations

import pytest

from dpo_recipes.errors import RecipeError
from dpo_recipes.formats.readers import FORMATS
from dpo_recipes.formats.recognise import choose_format

SIDES = {"chosen": "Yes.", "rejected": "No."}


def refused(sample, named=None) -> str:
    with pytest.raises(RecipeError) as caught:
        choose_format(sample, "pairs.jsonl (train)", named=named, max_dropped=0.05)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "q", "chosen": "a", "rejcted": "b"},
            "Nearest is preference, but its first row: malformed: rejected is missing: []. Did you mean 'rejcted'?",
        ),
        ({"prompt": "q", "response": "a", "helpfulness": 3}, "read with data.data_dir='preference'"),
        ({"prompt": "x", "query": "y", **SIDES}, "query holds something, which preference does not read: 'y'"),
        ({"prompt": "x", "input": "y", **SIDES}, "are two questions, or two sides: ['input', 'prompt']"),
        ({"prompt": "x", "chosen": 3, "rejected": 4}, "its first row: malformed: chosen is int, not str or list"),
        ({"text": "x"}, "Its columns: text."),
    ],
)
def test_what_fits_no_form_lists_the_columns_and_the_nearest(row, words):
    message = refused([row] * 3)
    assert message.startswith("pairs.jsonl (train) is not of a form that is read. Its columns: ") and words in message
    assert "helpsteer3: context response1 response2 overall_preference" in message


def test_several_forms_that_fit_are_named():
    both = {"prompt": "q", **SIDES, "response_1": "c", "response_2": "d", "preference_strength": 1}
    want = "preference reads 3 of its first 3 rows, helpsteer2 3 otherwise. Name one: data.format="
    assert want + "'preference' or 'helpsteer2'." in refused([both] * 3)
    assert choose_format([both] * 3, "here", named="helpsteer2", max_dropped=0.05) == "helpsteer2"
    assert "is not hh_rlhf" in refused([both] * 3, named="hh_rlhf")


def test_all_forms_that_are_read_are_listed_with_their_columns():
    message = refused([{"text": "x"}])
    for form, data_format in FORMATS.items():
        assert f"{form}: {data_format.columns}" in message


def test_a_few_rows_of_another_form_do_not_hide_the_form_of_the_rest():
    replies = [{"prompt": f"q{number}", **SIDES} for number in range(19)]
    signed = {"prompt": "q", "response_1": "c", "response_2": "d", "preference_strength": 1}
    assert choose_format([*replies, signed], "here", named=None, max_dropped=0.05) == "preference"
    assert "preference reads 18 of its first 20 rows, helpsteer2 2 otherwise" in refused(
        [*replies[:18], signed, signed]
    )


def test_rows_that_only_text_reads_are_text():
    row = {"chosen": "Is it? Yes.", "rejected": "Is it? No."}
    assert choose_format([row], "here", named=None, max_dropped=0.05) == "text"
    assert choose_format([{"prompt": "Ok?", **SIDES}], "here", named=None, max_dropped=0.05) == "preference"


def test_no_rows_are_no_form():
    assert refused([]) == "pairs.jsonl (train) has no rows. Choose a split or a file that has."

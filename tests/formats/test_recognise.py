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
        ({"prompt": "q", "chosen": "a", "rejcted": "b"}, "column 'rejcted': did you mean 'rejected'?"),
        ({"Prompt": "q", "chosen ": "a", "rejected": "b"}, "columns 'Prompt', 'chosen ': did you mean 'prompt',"),
        ({"promt": "q", "chosen": "So a", "rejected": "So b"}, "column 'promt': did you mean 'prompt'?"),
        ({"prompt": "q", "response": "a", "helpfulness": 3}, "read with data.data_dir='preference'"),
        ({"prompt": "x", "query": "y", **SIDES}, "query holds something, which preference does not read: 1 (row"),
        ({"prompt": "x", " System": "y", **SIDES}, "column ' System': did you mean 'system'?"),
        (
            {"prompt": "x", "input": "y", **SIDES},
            "are two questions, or two sides: 1 (rows 0 ...: ['input', 'prompt'])",
        ),
        ({"prompt": "x", "chosen": 3, "rejected": 4}, "0 of its first 1 rows can be used, read as 'preference'. malf"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "identical sides: 1 (rows 0 ...). Correct the rows."),
        ({"prompt": "x", "completion": "y", "label": True}, "holds single replies with a label, as for KTO"),
        ({"messages": [{"role": "user", "content": "x"}]}, "holds one reply to each prompt, as for supervised fine"),
        ({"Title": "x", "score": 3}, "Its columns: Title, score. Nearest is preference, which needs chosen."),
    ],
)
def test_what_fits_no_form_is_told_by_its_spelling_its_content_or_its_kind(row, words):
    message = refused([row])
    assert message.startswith("pairs.jsonl (train)") and words in message
    assert ("helpsteer3: context" in message) == ("Title" in row)  # the list of all forms, where columns are unknown


def test_a_prompt_that_is_missing_is_not_looked_for_in_other_columns():
    row = {"prompt_id": "1", "chosen": "So a", "rejected": "So b"}
    assert choose_format([row], "here", named=None, max_dropped=0.05) == "text"
    assert choose_format([{**row, "promt": ""}], "here", named="text", max_dropped=0.05) == "text"


def test_several_forms_that_fit_are_named():
    both = {"prompt": "q", **SIDES, "response_1": "c", "response_2": "d", "preference_strength": 1}
    want = "preference reads 3 of its first 3 rows, helpsteer2 3 otherwise. Name one: data.format="
    assert want + "'preference' or 'helpsteer2'." in refused([both] * 3)
    assert choose_format([both] * 3, "here", named="helpsteer2", max_dropped=0.05) == "helpsteer2"
    assert "can be used, read as 'hh_rlhf'" in refused([both] * 3, named="hh_rlhf")


def test_all_forms_that_are_read_are_listed_with_their_columns():
    message = refused([{"x": "y"}])
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

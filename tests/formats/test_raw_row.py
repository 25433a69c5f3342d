"""Why a raw row is no pair, whatever its form; what an empty column is, and what may not stay unread."""

from __future__ import annotations

import pytest
from making import user
from raw_rows import EMPTY, INFO, SIDES, TALK, TWO, WHOLE, gpt, human, pair

from dpo_recipes.formats.messages import Drop
from dpo_recipes.formats.raw_row import explicit_pair
from dpo_recipes.formats.readers import FORMATS

RENDERED = {
    "<|im_start|>user\nq<|im_end|>\n": "ChatML",
    "[INST] q [/INST]": "Llama 2 or Mistral",
    "### Human: q": "Guanaco",
}
DROPS = {
    # name: (form, row, reason, what was found)
    "tie 2": ("helpsteer2", {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 0}, "tie", ""),
    "tie 3": ("helpsteer3", {"context": TALK, "response1": "a", "response2": "b", "overall_preference": 0}, "tie", ""),
    "label 2": (
        "shp",
        {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 2},
        "malformed: labels is not 0 or 1",
        "2",
    ),
    "choice": ("summarize", {"info": INFO, "summaries": TWO, "choice": -1}, "malformed: choice is not 0 or 1", "-1"),
    "one summary": ("summarize", {"info": INFO, "summaries": TWO[:1], "choice": 0}, "empty side", ""),
    "no info": ("summarize", {"info": "x", "summaries": TWO, "choice": 0}, "malformed: info is str, not dict", "'x'"),
    "no post": ("summarize", {"info": {"title": "t"}, "summaries": TWO, "choice": 0}, "empty prompt", ""),
    "no turns": ("sharegpt", {"conversations": [], "chosen": gpt("a"), "rejected": gpt("b")}, "empty prompt", ""),
    "gpt last": (
        "sharegpt",
        {"conversations": [human("q"), gpt("x")], "chosen": gpt("a"), "rejected": gpt("b")},
        "prompt ends with the assistant",
        "",
    ),
    "human replies": (
        "sharegpt",
        {"conversations": [human("q")], "chosen": human("a"), "rejected": gpt("b")},
        "malformed: chosen or rejected is a whole conversation beside a prompt",
        "{'role': 'user', 'content': 'a'}",
    ),
    "two questions": (
        "orca",
        {"question": "a", "input": "b", **SIDES},
        "malformed: question|input|prompt are two questions, or two sides",
        "['question', 'input']",
    ),
    "an unread system text": (
        "ultrafeedback",
        {"prompt": "Ok?", "system": "Be brief.", **WHOLE},
        "malformed: system holds something, which ultrafeedback does not read",
        "'Be brief.'",
    ),
    "messages as text": (
        "preference",
        {"prompt": "q", "chosen": "[{'role': 'assistant', 'content': 'a'}]", "rejected": "b"},
        "malformed: chosen is messages written as text",
        "\"[{'role': 'assistant', 'content': 'a'}]\"",
    ),
    **{
        text: (
            "preference",
            {"prompt": text, **SIDES},
            f"malformed: prompt was rendered before, by {family}",
            repr(text),
        )
        for text, family in RENDERED.items()
    },
    "a passage": (
        "preference",
        {"prompt": "q", "passage": "p", **SIDES},
        "malformed: passage holds something, which preference does not read",
        "'p'",
    ),
    "missing": ("preference", {"prompt": "q", "chosen": "a"}, "malformed: rejected is missing", "['prompt', 'chosen']"),
    "alpaca: nothing asked": ("alpaca", {"instruction": "", "input": "", **SIDES}, "empty prompt", ""),
    "alpaca: same": ("alpaca", {"instruction": "q", "chosen": "a", "rejected": "a"}, "identical sides", ""),
}


@pytest.mark.parametrize(("form", "row", "reason", "found"), DROPS.values(), ids=DROPS)
def test_what_a_row_cannot_be_read_as_is_its_reason(form, row, reason, found):
    dropped = explicit_pair(row, form, strict=True)
    assert isinstance(dropped, Drop)
    assert (dropped.reason, dropped.found) == (reason, found)


# What a column is that holds nothing


@pytest.mark.parametrize("empty", EMPTY, ids=repr)
@pytest.mark.parametrize(
    ("form", "row", "column"),
    [
        ("orca", {"prompt": "Ok?", **SIDES}, "question"),
        ("orca", {"question": "Ok?", **SIDES}, "prompt"),
        ("orca", {"question": "Ok?", **SIDES}, "system"),
        ("alpaca", {"instruction": "Ok?", "chosen_response": "Yes.", "rejected_response": "No."}, "chosen"),
        ("alpaca", {"instruction": "Ok?", **SIDES}, "rejected_response"),
        ("alpaca", {"instruction": "Ok?", **SIDES}, "input"),
        ("sharegpt", {"conversations": [human("Ok?")], **SIDES}, "system"),
        ("preference", WHOLE, "prompt"),
        ("preference", {"prompt": "Ok?", **SIDES}, "context"),
        ("preference", {"prompt": "Ok?", **SIDES}, "tools"),
        ("preference", {"prompt": "Ok?", **SIDES}, "chat_template_kwargs"),
        ("hh_rlhf", {"chosen": "Human: Ok?\n\nAssistant: Yes.", "rejected": "Human: Ok?\n\nAssistant: No."}, "prompt"),
    ],
)
def test_an_empty_column_is_none(form, row, column, empty):
    assert explicit_pair({**row, column: empty}, form, strict=True) == pair([user("Ok?")])


@pytest.mark.parametrize("empty", EMPTY, ids=repr)
@pytest.mark.parametrize("form", ["preference", "text", "orca", "sharegpt", "alpaca", "hh_rlhf", "ultrainteract"])
def test_an_empty_side_is_one_whatever_it_is_made_of(form, empty):
    questions = {"prompt": "Ok?", "instruction": "Ok?", "conversations": "Ok?", "trajectory": "Ok?"}
    row = {column: text for column, text in questions.items() if column in FORMATS[form].reads}
    assert explicit_pair({**row, "chosen": empty, "rejected": "No."}, form, strict=False).reason == "empty side"


def test_one_text_in_two_columns_of_a_kind_is_refused():
    row = {"instruction": "Ok?", "chosen": "Yes.", "chosen_response": "Yes!", "rejected": "No."}
    drop = explicit_pair(row, "alpaca", strict=True)
    assert drop.reason == "malformed: chosen|chosen_response are two questions, or two sides"
    assert drop.found == "['chosen', 'chosen_response']"


# What the form does not read


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("form", ["ultrafeedback", "preference"])
def test_whole_conversations_lack_a_system_text_that_stands_beside_them(form, column):
    row = WHOLE if form == "preference" else {"prompt": "Ok?", **WHOLE}
    assert explicit_pair({**row, "query": "Ok?!", "context": "It rains."}, form, strict=True) == pair([user("Ok?")])
    drop = explicit_pair({**row, column: "Be brief."}, form, strict=True)
    assert (drop.reason, drop.found) == (
        f"malformed: {column} holds something, which {form} does not read",
        "'Be brief.'",
    )


def test_a_question_beside_a_prompt_of_one_message_is_not_left_unread():
    drop = explicit_pair({"prompt": user("Ok?"), "query": "Why?", **SIDES}, "preference", strict=True)
    assert drop.reason == "malformed: query holds something, which preference does not read"


def test_what_the_prompt_says_or_nobody_wrote_is_not_unread():
    row = {"prompt": "It rains. Ok?", **SIDES, "context": "It rains. ", "post": 0, "query": False}
    assert explicit_pair(row, "preference", strict=True) == pair([user("It rains. Ok?")])

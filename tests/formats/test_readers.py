"""Every form of raw rows, with the columns of the sets that have it, and the exact pair that is read from it.

How to add a form: `test_a_new_form_is_one_function_and_one_row`.
"""

from __future__ import annotations

from typing import Literal, get_args

import pytest
from making import said, system, user, write_jsonl
from raw_rows import BESIDE, INFO, LONG, NEWS, SIDES, TALK, TOOL, TRANSCRIPT, TWO, WHOLE, block, gpt, human, pair

from dpo_recipes.data import preference_dataset
from dpo_recipes.formats.messages import Drop, messages
from dpo_recipes.formats.pair import pair_of_replies
from dpo_recipes.formats.raw_row import explicit_pair
from dpo_recipes.formats.readers import FORMATS, Format
from dpo_recipes.formats.recognise import choose_format
from dpo_recipes.recipe import data as data_of_recipe
from dpo_recipes.recipe.data import Data

SETS = {
    # name of the set: (form, its row, the pair)
    "HuggingFaceH4/ultrafeedback_binarized": (
        "ultrafeedback",
        {
            "prompt": "Ok?",
            "prompt_id": "a1",
            **WHOLE,
            "messages": WHOLE["chosen"],
            "score_chosen": 8.0,
            "score_rejected": 4.5,
        },
        pair([user("Ok?")]),
    ),
    "trl-lib/ultrafeedback_binarized": (
        "preference",
        {**WHOLE, "score_chosen": 8.0, "score_rejected": 4.5},
        pair([user("Ok?")]),
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        "ultrafeedback",
        {
            "source": "sharegpt",
            "prompt": "Ok?",
            "chosen": WHOLE["chosen"],
            "chosen-rating": 5.0,
            "chosen-model": "m",
            "rejected": WHOLE["rejected"],
            "rejected-rating": 3.0,
            "rejected-model": "n",
        },
        pair([user("Ok?")]),
    ),
    "argilla/ultrafeedback-binarized-preferences": (
        "alpaca",
        {
            "source": "evol",
            "instruction": "Ok?",
            "chosen_response": "Yes.",
            "rejected_response": "No.",
            "chosen_avg_rating": 5.0,
            "rejected_avg_rating": 4.0,
            "chosen_model": "m",
        },
        pair([user("Ok?")]),
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (
        "ultrafeedback",
        {"id": "1", "prompt": "Hi", **LONG, "source": "x"},
        pair(TALK),
    ),
    "HuggingFaceH4/orca_dpo_pairs": (
        "ultrafeedback",
        {
            "prompt": "Ok?",
            "chosen": [system("Be brief."), *WHOLE["chosen"]],
            "rejected": [system("Be brief."), *WHOLE["rejected"]],
        },
        pair([system("Be brief."), user("Ok?")]),
    ),
    "a list prompt beside whole conversations": (
        "ultrafeedback",
        {"prompt": [user("Ok?")], **WHOLE},
        pair([user("Ok?")]),
    ),
    "HuggingFaceTB/smoltalk2": (
        "ultrafeedback",
        {
            "prompt": "Ok?",
            **WHOLE,
            "source": "x",
            "chat_template_kwargs": {
                "custom_instructions": "",
                "enable_thinking": False,
                "python_tools": None,
                "xml_tools": None,
            },
        },
        pair([user("Ok?")], chat_template_kwargs={"custom_instructions": "", "enable_thinking": False}),
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        "ultrafeedback",
        {
            "source": "Dove",
            "conversation": [{"input": "Hi", "output": "Hello"}],
            "prompt": "Hi",
            **LONG,
            "rating_chosen": 5,
            "rating_rejected": 4,
        },
        pair(TALK),
    ),
    "argilla/dpo-mix-7k": ("preference", {"dataset": "x", **LONG, "chosen_rating": 5.0}, pair(TALK)),
    "trl-lib/hh-rlhf-helpful-base": (
        "preference",
        {"prompt": TALK, "chosen": [said("Yes.")], "rejected": [said("No.")]},
        pair(TALK),
    ),
    "trl-lib/tldr-preference": ("preference", {"prompt": "TL;DR:", **SIDES}, pair([user("TL;DR:")])),
    "messages of typed text blocks": (
        "preference",
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "O"}, {"type": "text", "text": "k?"}]}],
            **SIDES,
        },
        pair([user("Ok?")]),
    ),
    "sides of typed text blocks": (
        "preference",
        {"prompt": [block("Ok?")], "chosen": [said([block("Yes.")])], "rejected": [{"type": "text", "value": "No."}]},
        pair([user("Ok?")]),
    ),
    "ShareGPT's turns of typed text blocks": (
        "sharegpt",
        {
            "conversations": [human([block("Hi")]), gpt([block("Hello")]), human([block("O"), block("k?")])],
            "chosen": gpt([block("Yes.")]),
            "rejected": gpt([block("No.")]),
        },
        pair(TALK),
    ),
    "a question of typed text blocks": (
        "orca",
        {"system": [block("Be brief.")], "question": [block("Ok?")], "chosen": "Yes.", "rejected": [block("No.")]},
        pair([system("Be brief."), user("Ok?")]),
    ),
    "conversations of typed text blocks": (
        "ultrafeedback",
        {
            "prompt": "Ok?",
            "chosen": [user([block("Ok?")]), said([block("Yes.")])],
            "rejected": [user([block("Ok?")]), said([block("No.")])],
        },
        pair([user("Ok?")]),
    ),
    "a context of typed text blocks": (
        "helpsteer3",
        {"context": [user([block("Ok?")])], "response1": [block("No.")], "response2": "Yes.", "overall_preference": 1},
        pair([user("Ok?")]),
    ),
    "a trajectory of typed text blocks": (
        "ultrainteract",
        {"trajectory": [human([block("Ok?")])], **SIDES},
        pair([user("Ok?")]),
    ),
    "LLaMA-Factory, its second layout": (
        "chosen_messages",
        {
            "chosen_messages": [
                {"role": "system", "content": [{"type": "text", "value": "Be brief."}]},
                {"role": "user", "content": [{"type": "text", "value": "Ok?"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "Yes."}]},
            ],
            "rejected_messages": [
                {"role": "system", "content": [{"type": "text", "value": "Be brief."}]},
                {"role": "user", "content": [{"type": "text", "value": "Ok?"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "No."}]},
            ],
            "extra_info": "",
            "_dataset_name": "mine",
        },
        pair([system("Be brief."), user("Ok?")]),
    ),
    "whole conversations under other names": (
        "chosen_messages",
        {"id": 7, "chosen_messages": LONG["chosen"], "rejected_messages": LONG["rejected"], "prompt": "Ok?"},
        pair(TALK),
    ),
    "a list prompt beside text": ("preference", {"prompt": [user("Ok?")], **SIDES}, pair([user("Ok?")])),
    "tools as their JSON": (
        "preference",
        {"prompt": "Ok?", **SIDES, "tools": '[{"type": "function"}]'},
        pair([user("Ok?")], tools=[{"type": "function"}]),
    ),
    "tools": ("preference", {**WHOLE, "tools": [TOOL]}, pair([user("Ok?")], tools=[TOOL])),
    "Anthropic/hh-rlhf": ("hh_rlhf", {"chosen": f"{TRANSCRIPT} Yes.", "rejected": f"{TRANSCRIPT} No."}, pair(TALK)),
    "a transcript as prompt": ("hh_rlhf", {"prompt": TRANSCRIPT, "chosen": " Yes.", "rejected": " No."}, pair(TALK)),
    "fozziethebeat/alpaca_messages_2k_dpo_test": (
        "sharegpt",
        {"conversation": [user("Hi"), said("Hello"), user("Ok?")], "chosen": said("Yes."), "rejected": said("No.")},
        pair(TALK),
    ),
    "Axolotl's chat_template.default with the fields that it has unless told": (
        "sharegpt",
        {"messages": [user("Ok?")], "chosen": said("Yes."), "rejected": said("No.")},
        pair([user("Ok?")]),
    ),
    "LLaMA-Factory, dicts": (
        "sharegpt",
        {"conversations": [human("Hi"), gpt("Hello"), human("Ok?")], "chosen": gpt("Yes."), "rejected": gpt("No.")},
        pair(TALK),
    ),
    "LLaMA-Factory, lists and a system column": (
        "sharegpt",
        {"system": "Be brief.", "conversations": [human("Ok?")], "chosen": [gpt("Yes.")], "rejected": [gpt("No.")]},
        pair([system("Be brief."), user("Ok?")]),
    ),
    "LLaMA-Factory, a system turn and tools": (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                human("Time?"),
                {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
                {"from": "observation", "value": "noon"},
            ],
            "chosen": gpt("Noon."),
            "rejected": gpt("Late."),
            "tools": "[]",
        },
        pair(
            [
                system("Be brief."),
                user("Time?"),
                said("", tool_calls=[{"type": "function", "function": {"name": "clock", "arguments": {}}}]),
                {"role": "tool", "content": "noon"},
            ],
            "Noon.",
            "Late.",
        ),
    ),
    "ShareGPT's user and assistant": (
        "sharegpt",
        {
            "conversations": [{"from": "user", "value": "Ok?"}],
            "chosen": {"from": "assistant", "value": "Yes."},
            "rejected": {"from": "assistant", "value": "No."},
        },
        pair([user("Ok?")]),
    ),
    "Alpaca": (
        "alpaca",
        {"instruction": "Add.", "input": "1 + 1", "output": "2", "rejected": "No.", "chosen": "Yes."},
        pair([user("Add.\n1 + 1")]),
    ),
    "Alpaca without an input, with a system text": (
        "alpaca",
        {"instruction": "Ok?", "input": "", "output": "Yes!", "system": "Be brief.", **SIDES},
        pair([system("Be brief."), user("Ok?")]),
    ),
    "Intel/orca_dpo_pairs": (
        "orca",
        {"system": "Be brief.", "question": "Ok?", **SIDES},
        pair([system("Be brief."), user("Ok?")]),
    ),
    "Intel/orca_dpo_pairs, no system text": ("orca", {"system": "", "question": "Ok?", **SIDES}, pair([user("Ok?")])),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        "orca",
        {
            "system": "Be brief.",
            "input": "Ok?",
            **SIDES,
            "generations": ["Yes.", "No."],
            "rating": [9.0, 7.0],
            "status": "unchanged",
            "original_chosen": "Yes.",
            "original_rejected": "No.",
            "chosen_score": 9.0,
            "in_gsm8k_train": False,
            "labelling_model": "m",
            "labelling_prompt": [system("x")],
            "rationale": "r",
            "order": ["chosen", "rejected"],
            "raw_labelling_response": "9 7",
        },
        pair([system("Be brief."), user("Ok?")]),
    ),
    "jondurbin/truthy-dpo-v0.1": (
        "orca",
        {"id": "1", "source": "x", "system": "Be brief.", "prompt": "Ok?", **SIDES},
        pair([system("Be brief."), user("Ok?")]),
    ),
    "stanfordnlp/SHP, A": (
        "shp",
        {
            "post_id": "a",
            "domain": "askculinary_train",
            "upvote_ratio": 0.98,
            "history": "Ok?",
            "c_root_id_A": "b",
            "c_root_id_B": "c",
            "human_ref_A": "Yes.",
            "human_ref_B": "No.",
            "labels": 1,
            "score_A": 9,
            "score_B": 2,
            "score_ratio": 4.5,
        },
        pair([user("Ok?")]),
    ),
    "stanfordnlp/SHP, B": (
        "shp",
        {"history": "Ok?", "human_ref_A": "No.", "human_ref_B": "Yes.", "labels": 0},
        pair([user("Ok?")]),
    ),
    "stanfordnlp/SHP from a csv file": (
        "shp",
        {"history": "Ok?", "human_ref_A": "No.", "human_ref_B": "Yes.", "labels": "0"},
        pair([user("Ok?")]),
    ),
    "nvidia/HelpSteer2 preference, 2 better": (
        "helpsteer2",
        {
            "split": "train",
            "prompt": "Ok?",
            "response_1": "No.",
            "response_2": "Yes.",
            "preference_strength": 2,
            "preference_statement": "s",
            "preference_elaboration": "e",
            "three_most_similar_preferences": [],
        },
        pair([user("Ok?")]),
    ),
    "nvidia/HelpSteer2 preference, 1 better, turns": (
        "helpsteer2",
        {
            "prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nOk?",
            "response_1": "Yes.",
            "response_2": "No.",
            "preference_strength": -1,
        },
        pair(TALK),
    ),
    "nvidia/HelpSteer3, 1 better": (
        "helpsteer3",
        {
            "domain": "code",
            "language": "python",
            "context": TALK,
            "response1": "Yes.",
            "response2": "No.",
            "overall_preference": -3,
            "individual_preference": [{"score": -3, "reasoning": "r"}],
        },
        pair(TALK),
    ),
    "nvidia/HelpSteer3, 2 better": (
        "helpsteer3",
        {"context": TALK, "response1": "No.", "response2": "Yes.", "overall_preference": 1},
        pair(TALK),
    ),
    "openai/summarize_from_feedback, Reddit": (
        "summarize",
        {"info": INFO, "summaries": TWO, "choice": 1, "worker": "w", "batch": "batch3", "split": "train", "extra": {}},
        pair([user("SUBREDDIT: r/tifu\n\nTITLE: A title\n\nPOST: I met.\nThen left.\n\nTL;DR:")], " Two.", " One."),
    ),
    "openai/summarize_from_feedback, news": (
        "summarize",
        {"info": NEWS, "summaries": TWO, "choice": 0},
        pair([user("TITLE: A title\n\nIt rains.\nA lot.\n\nTL;DR:")], " One.", " Two."),
    ),
    "openbmb/UltraFeedback": (
        "ranking",
        {
            "source": "evol",
            "instruction": "Ok?",
            "models": ["m", "n"],
            "completions": [
                {"model": "m", "response": "No.", "overall_score": 2.5, "fine-grained_score": 4.0, "critique": "c"},
                {"model": "n", "response": "Yes.", "overall_score": 8.0, "fine-grained_score": 3.0, "critique": "d"},
            ],
            "correct_answers": ["None"],
        },
        pair([user("Ok?")]),
    ),
    "replies with scores": (
        "ranking",
        {"system": "Be brief.", "prompt": "Ok?", "responses": ["Yes.", "No."], "scores": [0.5, -1]},
        pair([system("Be brief."), user("Ok?")]),
    ),
    "replies with ranks, in a csv file": (
        "ranking",
        {"prompt": "Ok?", "responses": '["No.", "Yes."]', "ranks": "[2, 1]"},
        pair([user("Ok?")]),
    ),
    "replies as messages, with ranks of their own": (
        "ranking",
        {"prompt": TALK, "responses": [{"answer": [said("Yes.")], "rank": 1}, {"answer": "No.", "rank": 2.0}]},
        pair(TALK),
    ),
    "several rejected replies": (
        "preference",
        {"prompt": "Ok?", "chosen": "Yes.", "rejected": ["No."]},
        pair([user("Ok?")]),
    ),
    "several rejected conversations": (
        "preference",
        {"chosen": WHOLE["chosen"], "rejected": [WHOLE["rejected"]]},
        pair([user("Ok?")]),
    ),
    "conversations that differ in several turns": (
        "preference",
        {
            "chosen": [*TALK, said("Yes.")],
            "rejected": [user("Hi"), said("Hey"), user("Ok?"), said("No.")],
        },
        pair(TALK, turns=2, differs_earlier=True),
    ),
    "a weight of the row": (
        "preference",
        {"prompt": "Ok?", **SIDES, "weight": "0.5"},
        pair([user("Ok?")], weight=0.5),
    ),
    "LLaMA-Factory, its second layout with weights of messages": (
        "chosen_messages",
        {
            "chosen_messages": [user("Ok?") | {"loss_weight": 0.0}, said("Yes.", loss_weight=2.0)],
            "rejected_messages": [user("Ok?") | {"loss_weight": 1.0}, said("No.", loss_weight=2.0)],
            "weight": 0.25,
        },
        pair([user("Ok?")], weight=0.5),
    ),
    "openbmb/UltraInteract_pair": (
        "ultrainteract",
        {
            "task": "Coding",
            "dataset": "d",
            "trajectory": [
                {"from": "user", "value": "Hi"},
                {"from": "assistant", "value": "Hello"},
                {"from": "user", "value": "Ok?"},
            ],
            **SIDES,
            "id": "1",
            "parent_id": "0",
        },
        pair(TALK),
    ),
    "strings without a prompt": (
        "text",
        {"chosen": "Is it? Yes.", "rejected": "Is it? No."},
        {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No.", **BESIDE},
    ),
}


@pytest.mark.parametrize(("form", "row", "want"), SETS.values(), ids=SETS)
def test_each_set_is_recognised_and_its_pair_is_exact(form, row, want):
    assert choose_format([row] * 3, "here", named=None, max_dropped=0.05) == form
    assert explicit_pair(row, form, strict=True) == want
    assert explicit_pair(row, form, strict=False) == want
    assert choose_format([row] * 3, "here", named=form, max_dropped=0.05) == form


def test_every_form_has_a_row_of_each_set_that_it_is_seen_in():
    assert {form for form, _, _ in SETS.values()} == set(FORMATS)
    forms_of_sets = {(form, name.partition(",")[0].partition(" preference")[0]) for name, (form, _, _) in SETS.items()}
    for form, data_format in FORMATS.items():
        for name in data_format.seen_in:
            assert (form, name) in forms_of_sets or name == "LLaMA-Factory", (form, name)


def test_every_format_a_recipe_may_name_has_a_row():
    assert tuple(FORMATS) == get_args(data_of_recipe.Format)


def test_a_new_form_is_one_function_and_one_row(tmp_path, monkeypatch):
    """The reader of a row, and where it stands in the table: then its name is a data.format and rows are recognised."""

    def forum(row):
        if row["votes_a"] == row["votes_b"]:
            raise Drop("tie")
        chosen, rejected = ("a", "b") if row["votes_a"] > row["votes_b"] else ("b", "a")
        return pair_of_replies(messages(row, "title", "user"), messages(row, chosen), messages(row, rejected))

    new_format = Format(
        reader=forum,
        required=("title", "a", "b", "votes_a", "votes_b"),
        optional=(),
        seen_in=("forum.example",),
    )
    monkeypatch.setitem(FORMATS, "forum", new_format)
    monkeypatch.setattr(data_of_recipe, "Format", Literal[tuple(FORMATS)])  # as at the next import
    rows = [
        {"title": "Tea?", "a": "Yes.", "b": "No.", "votes_a": 5, "votes_b": 2},
        {"title": "Milk?", "a": "Yes.", "b": "No.", "votes_a": 0, "votes_b": 2},
        {"title": "Rain?", "a": "Yes.", "b": "No.", "votes_a": 1, "votes_b": 1},
    ]
    path = str(write_jsonl(tmp_path / "forum.jsonl", rows))

    for data in (Data(path, eval=0.5), Data(path, eval=0.5, format="forum")):
        read = preference_dataset.read(data, {path: 1.0})
        replies = {row["prompt"][0]["content"]: row["chosen"][0]["content"] for row in (*read.train, *read.eval)}
        assert replies == {"Tea?": "Yes.", "Milk?": "No."}
        assert read.report["format"] == "forum"
        assert read.report["train"]["dropped"] == {"tie": {"count": 1, "rows": ["2"]}}


def test_plain_text_is_read_as_it_is_where_it_is_named():
    want = {"prompt": " Ok?", "chosen": "Yes.", "rejected": "No.", **BESIDE}
    assert explicit_pair({"prompt": " Ok?", **SIDES}, "text", strict=False) == want


def test_a_transcript_beside_its_prompt_is_not_read_behind_it():
    prompt, reply = "\n\nHuman: why?\n\nAssistant:", "\n\nHuman: why?\n\nAssistant: so"
    pair = explicit_pair({"prompt": prompt, "chosen": reply, "rejected": reply + " not"}, "hh_rlhf", strict=False)
    assert pair["prompt"] == [{"role": "user", "content": "why?"}]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("so", "so not")


def test_a_system_column_beside_a_system_turn_is_said_once_or_refused():
    talk = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Why?"}]
    row = {
        "conversations": talk,
        "chosen": {"from": "gpt", "value": "So."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    pair = explicit_pair({**row, "system": "Be brief."}, "sharegpt", strict=True)
    assert [m["role"] for m in pair["prompt"]] == ["system", "user"]
    drop = explicit_pair({**row, "system": "Be long."}, "sharegpt", strict=True)
    assert drop.reason == "malformed: system differs from the system message of the conversation"


def test_a_reply_in_the_place_of_a_conversation_is_shown_as_it_is():
    row = {"prompt": "Ok?", "chosen": [gpt("Yes.")], "rejected": [gpt("No.")]}
    drop = explicit_pair(row, "ultrafeedback", strict=True)
    assert drop.reason == "malformed: chosen is a reply, not a whole conversation"
    assert drop.found == "[{'from': 'gpt', 'value': 'Yes.'}]"


def test_a_post_that_is_no_text_is_refused_and_a_blank_one_is_the_news():
    row = {"summaries": TWO, "choice": 0}
    drop = explicit_pair({**row, "info": {**INFO, "post": ["a", "b"]}}, "summarize", strict=True)
    assert (drop.reason, drop.found) == ("malformed: post is list, not str", "['a', 'b']")
    news = explicit_pair({**row, "info": {**NEWS, "post": " "}}, "summarize", strict=True)
    assert news["prompt"] == [user("TITLE: A title\n\nIt rains.\nA lot.\n\nTL;DR:")]


def test_the_columns_of_a_form_as_a_message_lists_them():
    assert FORMATS["orca"].columns == "system? question|input|prompt chosen rejected"
    assert FORMATS["orca"].reads == {
        "system",
        "question",
        "input",
        "prompt",
        "chosen",
        "rejected",
        "tools",
        "chat_template_kwargs",
        "images",
        "image",
    }

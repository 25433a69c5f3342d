"""Every form of raw rows, with the columns of the sets that have it, and the exact pair that is read from it."""

from __future__ import annotations

from typing import get_args

import pytest

from dpo_recipes.errors import RecipeError
from dpo_recipes.formats.messages import Drop
from dpo_recipes.formats.readers import FORMATS, explicit_pair
from dpo_recipes.formats.recognise import choose_format
from dpo_recipes.recipe.recipe import Format

NEWLINES = "\n\n"


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def pair(prompt, chosen="Yes.", rejected="No.", **own):
    """The pair of a prompt's messages and two replies, with what is passed on beside it."""
    sides = {"chosen": [said(chosen)], "rejected": [said(rejected)]}
    return {"prompt": prompt, **sides, "tools": None, "chat_template_kwargs": {}, **own}


TALK = [user("Hi"), said("Hello"), user("Ok?")]
SIDES = {"chosen": "Yes.", "rejected": "No."}
WHOLE = {"chosen": [user("Ok?"), said("Yes.")], "rejected": [user("Ok?"), said("No.")]}
LONG = {"chosen": [*TALK, said("Yes.")], "rejected": [*TALK, said("No.")]}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
INFO = {
    "id": "t3_1",
    "post": "I met.\n\nThen left.",
    "title": "A title",
    "subreddit": "tifu",
    "site": None,
    "article": None,
}
NEWS = {
    "id": "c1",
    "post": None,
    "title": "A title",
    "subreddit": None,
    "site": "cnn",
    "article": "It rains.\n\nA lot.",
}
TWO = [{"text": " One.", "policy": "sup4", "note": None}, {"text": " Two.", "policy": "ref", "note": None}]
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Ok?\n\nAssistant:"
SETS = {
    # name of the set: (form, its row, the pair)
    "HuggingFaceH4/ultrafeedback_binarized": (
        "ultrafeedback",
        {"prompt": "Ok?", "prompt_id": "a1", **WHOLE, "messages": WHOLE["chosen"], "score_chosen": 8.0,
         "score_rejected": 4.5},
        pair([user("Ok?")])),
    "trl-lib/ultrafeedback_binarized": (
        "preference", {**WHOLE, "score_chosen": 8.0, "score_rejected": 4.5}, pair([user("Ok?")])),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        "ultrafeedback",
        {"source": "sharegpt", "prompt": "Ok?", "chosen": WHOLE["chosen"], "chosen-rating": 5.0, "chosen-model": "m",
         "rejected": WHOLE["rejected"], "rejected-rating": 3.0, "rejected-model": "n"},
        pair([user("Ok?")])),
    "argilla/ultrafeedback-binarized-preferences": (
        "alpaca",
        {"source": "evol", "instruction": "Ok?", "chosen_response": "Yes.", "rejected_response": "No.",
         "chosen_avg_rating": 5.0, "rejected_avg_rating": 4.0, "chosen_model": "m"},
        pair([user("Ok?")])),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (
        "ultrafeedback", {"id": "1", "prompt": "Hi", **LONG, "source": "x"}, pair(TALK)),
    "HuggingFaceH4/orca_dpo_pairs": (
        "ultrafeedback",
        {"prompt": "Ok?", "chosen": [system("Be brief."), *WHOLE["chosen"]],
         "rejected": [system("Be brief."), *WHOLE["rejected"]]},
        pair([system("Be brief."), user("Ok?")])),
    "a list prompt beside whole conversations": (
        "ultrafeedback", {"prompt": [user("Ok?")], **WHOLE}, pair([user("Ok?")])),
    "HuggingFaceTB/smoltalk2": (
        "ultrafeedback",
        {"prompt": "Ok?", **WHOLE, "source": "x", "chat_template_kwargs": {
            "custom_instructions": "", "enable_thinking": False, "python_tools": None, "xml_tools": None}},
        pair([user("Ok?")], chat_template_kwargs={"custom_instructions": "", "enable_thinking": False})),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        "ultrafeedback",
        {"source": "Dove", "conversation": [{"input": "Hi", "output": "Hello"}], "prompt": "Hi", **LONG,
         "rating_chosen": 5, "rating_rejected": 4},
        pair(TALK)),
    "argilla/dpo-mix-7k": ("preference", {"dataset": "x", **LONG, "chosen_rating": 5.0}, pair(TALK)),
    "trl-lib/hh-rlhf-helpful-base": (
        "preference", {"prompt": TALK, "chosen": [said("Yes.")], "rejected": [said("No.")]}, pair(TALK)),
    "trl-lib/tldr-preference": ("preference", {"prompt": "TL;DR:", **SIDES}, pair([user("TL;DR:")])),
    "messages of typed text blocks": (
        "preference",
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "O"}, {"type": "text", "text": "k?"}]}],
         **SIDES},
        pair([user("Ok?")])),
    "a list prompt beside text": ("preference", {"prompt": [user("Ok?")], **SIDES}, pair([user("Ok?")])),
    "tools as their JSON": (
        "preference", {"prompt": "Ok?", **SIDES, "tools": '[{"type": "function"}]'},
        pair([user("Ok?")], tools=[{"type": "function"}])),
    "tools": ("preference", {**WHOLE, "tools": [TOOL]}, pair([user("Ok?")], tools=[TOOL])),
    "Anthropic/hh-rlhf": ("hh_rlhf", {"chosen": f"{TRANSCRIPT} Yes.", "rejected": f"{TRANSCRIPT} No."}, pair(TALK)),
    "a transcript as prompt": ("hh_rlhf", {"prompt": TRANSCRIPT, "chosen": " Yes.", "rejected": " No."}, pair(TALK)),
    "LLaMA-Factory, dicts": (
        "sharegpt",
        {"conversations": [human("Hi"), gpt("Hello"), human("Ok?")], "chosen": gpt("Yes."), "rejected": gpt("No.")},
        pair(TALK)),
    "LLaMA-Factory, lists and a system column": (
        "sharegpt",
        {"system": "Be brief.", "conversations": [human("Ok?")], "chosen": [gpt("Yes.")], "rejected": [gpt("No.")]},
        pair([system("Be brief."), user("Ok?")])),
    "LLaMA-Factory, a system turn and tools": (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "Be brief."}, human("Time?"),
                           {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
                           {"from": "observation", "value": "noon"}],
         "chosen": gpt("Noon."), "rejected": gpt("Late."), "tools": "[]"},
        pair([system("Be brief."), user("Time?"),
              said("", tool_calls=[{"type": "function", "function": {"name": "clock", "arguments": {}}}]),
              {"role": "tool", "content": "noon"}], "Noon.", "Late.")),
    "ShareGPT's user and assistant": (
        "sharegpt",
        {"conversations": [{"from": "user", "value": "Ok?"}], "chosen": {"from": "assistant", "value": "Yes."},
         "rejected": {"from": "assistant", "value": "No."}},
        pair([user("Ok?")])),
    "Alpaca": (
        "alpaca", {"instruction": "Add.", "input": "1 + 1", "output": "2", "rejected": "No.", "chosen": "Yes."},
        pair([user("Add.\n1 + 1")])),
    "Alpaca without an input, with a system text": (
        "alpaca", {"instruction": "Ok?", "input": "", "output": "Yes!", "system": "Be brief.", **SIDES},
        pair([system("Be brief."), user("Ok?")])),
    "Intel/orca_dpo_pairs": (
        "orca", {"system": "Be brief.", "question": "Ok?", **SIDES}, pair([system("Be brief."), user("Ok?")])),
    "Intel/orca_dpo_pairs, no system text": ("orca", {"system": "", "question": "Ok?", **SIDES}, pair([user("Ok?")])),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        "orca",
        {"system": "Be brief.", "input": "Ok?", **SIDES, "generations": ["Yes.", "No."], "rating": [9.0, 7.0],
         "status": "unchanged", "original_chosen": "Yes.", "original_rejected": "No.", "chosen_score": 9.0,
         "in_gsm8k_train": False, "labelling_model": "m", "labelling_prompt": [system("x")], "rationale": "r",
         "order": ["chosen", "rejected"], "raw_labelling_response": "9 7"},
        pair([system("Be brief."), user("Ok?")])),
    "jondurbin/truthy-dpo-v0.1": (
        "orca", {"id": "1", "source": "x", "system": "Be brief.", "prompt": "Ok?", **SIDES},
        pair([system("Be brief."), user("Ok?")])),
    "stanfordnlp/SHP, A": (
        "shp",
        {"post_id": "a", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": "Ok?", "c_root_id_A": "b",
         "c_root_id_B": "c", "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1, "score_A": 9, "score_B": 2,
         "score_ratio": 4.5},
        pair([user("Ok?")])),
    "stanfordnlp/SHP, B": (
        "shp", {"history": "Ok?", "human_ref_A": "No.", "human_ref_B": "Yes.", "labels": 0}, pair([user("Ok?")])),
    "stanfordnlp/SHP from a csv file": (
        "shp", {"history": "Ok?", "human_ref_A": "No.", "human_ref_B": "Yes.", "labels": "0"}, pair([user("Ok?")])),
    "nvidia/HelpSteer2 preference, 2 better": (
        "helpsteer2",
        {"split": "train", "prompt": "Ok?", "response_1": "No.", "response_2": "Yes.", "preference_strength": 2,
         "preference_statement": "s", "preference_elaboration": "e", "three_most_similar_preferences": []},
        pair([user("Ok?")])),
    "nvidia/HelpSteer2 preference, 1 better, turns": (
        "helpsteer2",
        {"prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nOk?", "response_1": "Yes.", "response_2": "No.",
         "preference_strength": -1},
        pair(TALK)),
    "nvidia/HelpSteer3, 1 better": (
        "helpsteer3",
        {"domain": "code", "language": "python", "context": TALK, "response1": "Yes.", "response2": "No.",
         "overall_preference": -3, "individual_preference": [{"score": -3, "reasoning": "r"}]},
        pair(TALK)),
    "nvidia/HelpSteer3, 2 better": (
        "helpsteer3", {"context": TALK, "response1": "No.", "response2": "Yes.", "overall_preference": 1}, pair(TALK)),
    "openai/summarize_from_feedback, Reddit": (
        "summarize",
        {"info": INFO, "summaries": TWO, "choice": 1, "worker": "w", "batch": "batch3", "split": "train", "extra": {}},
        pair([user("SUBREDDIT: r/tifu\n\nTITLE: A title\n\nPOST: I met.\nThen left.\n\nTL;DR:")], " Two.", " One.")),
    "openai/summarize_from_feedback, news": (
        "summarize", {"info": NEWS, "summaries": TWO, "choice": 0},
        pair([user("TITLE: A title\n\nIt rains.\nA lot.\n\nTL;DR:")], " One.", " Two.")),
    "openbmb/UltraInteract_pair": (
        "ultrainteract",
        {"task": "Coding", "dataset": "d", "trajectory": [{"from": "user", "value": "Hi"}, {
            "from": "assistant", "value": "Hello"}, {"from": "user", "value": "Ok?"}], **SIDES, "id": "1",
         "parent_id": "0"},
        pair(TALK)),
    "strings without a prompt": (
        "text", {"chosen": "Is it? Yes.", "rejected": "Is it? No."},
        {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No.", "tools": None, "chat_template_kwargs": {}}),
}  # fmt: skip


@pytest.mark.parametrize(("form", "row", "want"), SETS.values(), ids=SETS)
def test_each_set_is_recognised_and_its_pair_is_exact(form, row, want):
    assert choose_format([row] * 3, "here", named=None, max_dropped=0.05) == form
    assert explicit_pair(row, form, strict=True) == want
    assert explicit_pair(row, form, strict=False) == want
    assert choose_format([row] * 3, "here", named=form, max_dropped=0.05) == form


def test_every_format_a_recipe_may_name_has_a_reader_and_a_set():
    assert tuple(FORMATS) == get_args(Format)
    assert {form for form, _, _ in SETS.values()} == {*get_args(Format)}


def test_plain_text_is_read_as_it_is_where_it_is_named():
    want = {"prompt": " Ok?", "chosen": "Yes.", "rejected": "No.", "tools": None, "chat_template_kwargs": {}}
    assert explicit_pair({"prompt": " Ok?", **SIDES}, "text", strict=False) == want


HEAD = "malformed: "
RENDERED = ("<|im_start|>user\nq<|im_end|>\n", "<|user|>\nq", "<|start_header_id|>user", "[INST] q [/INST]",
            "<s>[INST] q [/INST]", "### Human: q")  # fmt: skip
FROM, ROLE = human("Ok?"), user("Ok?")
DROPS = {
    # name: (form, row, reason, what was found)
    "tie 2": ("helpsteer2", {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 0}, "tie", ""),
    "tie 3": ("helpsteer3", {"context": TALK, "response1": "a", "response2": "b", "overall_preference": 0}, "tie", ""),
    "no number": (
        "helpsteer3", {"context": TALK, "response1": "a", "response2": "b", "overall_preference": None},
        HEAD + "overall_preference is not a number", "''"),
    "NaN": (
        "helpsteer3", {"context": TALK, "response1": "a", "response2": "b", "overall_preference": float("nan")},
        HEAD + "overall_preference holds a float that UTF-8 JSON of 64 bits cannot hold", "nan"),
    "label 2": (
        "shp", {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 2},
        HEAD + "labels is not 0 or 1", "2"),
    "choice": (
        "summarize", {"info": INFO, "summaries": TWO, "choice": -1}, HEAD + "choice is not 0 or 1", "-1"),
    "one summary": (
        "summarize", {"info": INFO, "summaries": TWO[:1], "choice": 0}, "empty side", ""),
    "no info": ("summarize", {"info": "x", "summaries": TWO, "choice": 0}, HEAD + "info is str, not dict", "'x'"),
    "no post": ("summarize", {"info": {"title": "t"}, "summaries": TWO, "choice": 0}, "empty prompt", ""),
    "no turns": ("sharegpt", {"conversations": [], "chosen": gpt("a"), "rejected": gpt("b")}, "empty prompt", ""),
    "gpt last": (
        "sharegpt", {"conversations": [human("q"), gpt("x")], "chosen": gpt("a"), "rejected": gpt("b")},
        "prompt ends with the assistant", ""),
    "human replies": (
        "sharegpt", {"conversations": [human("q")], "chosen": human("a"), "rejected": gpt("b")},
        HEAD + "chosen or rejected is a whole conversation beside a prompt", "{'role': 'user', 'content': 'a'}"),
    "a role of one's own": (
        "sharegpt", {"conversations": [{"from": "bot", "value": "x"}], "chosen": gpt("a"), "rejected": gpt("b")},
        HEAD + "conversations holds a role that is none of human, gpt, observation, function_call, system, user, "
        "assistant, tool, developer", "'bot'"),
    "both spellings": (
        "sharegpt", {"conversations": [{**FROM, **ROLE}], "chosen": gpt("a"), "rejected": gpt("b")},
        HEAD + "conversations mixes role and content with from and value", "{'role': 'user', 'content': 'Ok?'}"),
    "a call that is no JSON": (
        "sharegpt", {"conversations": [human("q"), {"from": "function_call", "value": "clock()"}], "chosen": gpt("a"),
                     "rejected": gpt("b")},
        HEAD + "conversations is str, not list or dict", "'clock()'"),
    "an image": (
        "preference", {"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}], **SIDES},
        HEAD + "prompt holds content of type image, where text alone is read", "[{'type': 'image', 'url': 'x'}]"),
    "two questions": (
        "orca", {"question": "a", "input": "b", **SIDES},
        HEAD + "question|input|prompt are two questions, or two sides",
        "['question', 'input']"),
    "surrogate": (
        "preference", {"prompt": "q", "chosen": "\ud83d", "rejected": "b"},
        HEAD + "chosen holds a str that UTF-8 JSON of 64 bits cannot hold", "'\\ud83d'"),
    "an unread system text": (
        "ultrafeedback", {"prompt": "Ok?", "system": "Be brief.", **WHOLE},
        HEAD + "system holds something, which ultrafeedback does not read", "'Be brief.'"),
    "messages as text": (
        "preference", {"prompt": "q", "chosen": "[{'role': 'assistant', 'content': 'a'}]", "rejected": "b"},
        HEAD + "chosen is text of a transcript, a template or messages", "\"[{'role': 'assistant', 'content': 'a'}]\""),
    **{text: ("preference", {"prompt": text, **SIDES}, HEAD + "prompt is text of a transcript, a template or messages",
              repr(text)) for text in RENDERED},
    "a passage": ("preference", {"prompt": "q", "passage": "p", **SIDES},
                  HEAD + "passage holds something, which preference does not read", "'p'"),
    "missing": ("preference", {"prompt": "q", "chosen": "a"}, HEAD + "rejected is missing", "[]"),
    "alpaca: nothing asked": ("alpaca", {"instruction": "", "input": "", **SIDES}, "empty prompt", ""),
    "alpaca: same": ("alpaca", {"instruction": "q", "chosen": "a", "rejected": "a"}, "identical sides", ""),
}  # fmt: skip


@pytest.mark.parametrize(("form", "row", "reason", "found"), DROPS.values(), ids=DROPS)
def test_what_a_row_cannot_be_read_as_is_its_reason(form, row, reason, found):
    dropped = explicit_pair(row, form, strict=True)
    assert isinstance(dropped, Drop)
    assert (dropped.reason, dropped.found) == (reason, found)


def refused(sample, named=None) -> str:
    with pytest.raises(RecipeError) as caught:
        choose_format(sample, "pairs.jsonl (train)", named=named, max_dropped=0.05)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "chosen": "a", "rejcted": "b"}, "Nearest is preference, but its first row: malformed: "
         "rejected is missing: []. Did you mean 'rejcted'?"),
        ({"prompt": "q", "response": "a", "helpfulness": 3}, "read with data.data_dir='preference'"),
        ({"prompt": "x", "query": "y", **SIDES}, "query holds something, which preference does not read: 'y'"),
        ({"prompt": "x", "input": "y", **SIDES}, "are two questions, or two sides: ['input', 'prompt']"),
        ({"prompt": "x", "chosen": 3, "rejected": 4}, "its first row: malformed: chosen is int, not str or list"),
        ({"text": "x"}, "Its columns: text."),
    ],
)  # fmt: skip
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


def test_a_transcript_beside_its_prompt_is_not_read_behind_it():
    prompt, reply = "\n\nHuman: why?\n\nAssistant:", "\n\nHuman: why?\n\nAssistant: so"
    pair = explicit_pair({"prompt": prompt, "chosen": reply, "rejected": reply + " not"}, "hh_rlhf", strict=False)
    assert pair["prompt"] == [{"role": "user", "content": "why?"}]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("so", "so not")


def test_answers_that_repeat_a_long_prompt_are_dropped():
    asked = "What is the capital of France?"
    row = {"prompt": asked, "chosen": f"{asked}\nParis", "rejected": f"{asked}\nRome"}
    assert explicit_pair(row, "preference", strict=True).reason == "both sides repeat the prompt"
    assert isinstance(explicit_pair({**row, "rejected": "Rome"}, "preference", strict=True), dict)
    assert isinstance(
        explicit_pair({"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"}, "preference", strict=True), dict
    )


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

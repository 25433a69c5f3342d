"""Marks of chat templates at the ends of a message, and the same marks in text that only speaks of them."""

from __future__ import annotations

import pytest
from making import make_pair, message

from dpo_recipes.formats.messages import Drop
from dpo_recipes.formats.raw_row import explicit_pair
from dpo_recipes.formats.rendered import FAMILIES, rendered_by

EXAMPLES = {family.name: family.example for family in FAMILIES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_family_knows_its_own_example(name):
    prompt, answer = EXAMPLES[name]
    assert rendered_by(message("user", prompt)) == name
    assert rendered_by(message("assistant", answer)) is not None
    assert rendered_by(message("assistant", prompt + answer)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>",  # Phi 4
        "<|prompter|>Hi<|endoftext|><|assistant|>",  # Open Assistant
        "[gMASK]<sop><|user|>\nHi<|assistant|>\n",  # GLM 4
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]",  # Mistral Small
        "Be brief.\n\nUSER: Hi\nASSISTANT:",
        "You are helpful.\n<|user|>\nHi\n<|assistant|>\n",  # a header at the end, whatever the beginning
        "User: Hi\n\nAssistant:",  # Falcon, DeepSeek LLM
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>",  # Kimi
    ],
)
def test_other_spellings_of_a_prompt(text):
    assert rendered_by(message("user", text))


@pytest.mark.parametrize(
    "text",
    ["Hello</s>", " Hello </s>\n", "Hello<|endoftext|>", "<|assistant|>\nHello", "ASSISTANT: Hello", "Hello<eos>"],
)
def test_other_spellings_of_an_answer(text):
    assert rendered_by(message("assistant", text))


@pytest.mark.parametrize(
    "question",
    [
        "What does <|im_start|>user mean in ChatML?",
        "<|im_start|>user is printed twice, why?",
        "<|endoftext|> or <|im_end|>: which one ends a turn?",
        "My template prints <start_of_turn>model at the end of a prompt. How do I stop it?",
        "How do [INST] and [/INST] differ?",
        "Why do Vicuna prompts hold USER: and ASSISTANT: marks?",
        "Explain `### Instruction:` and `### Response:` in Alpaca.",
        "### Instructions\n\nSummarise this:\n\n### Text\n\nRain fell.",
        "Human rights: when were they declared?",
        "Complete this dialogue.\n\nUser: Hi\nAssistant:",
        "<s>old price</s> is HTML for what?",
        "Fix this:\n```python\nend = '<|endoftext|>'\n```",
        "<html>\n<body>",
        "<|> is an operator in Haskell?",
    ],
)
def test_a_question_about_templates_is_a_question(question):
    assert rendered_by(message("user", question)) is None


@pytest.mark.parametrize(
    "answer",
    [
        "First this.\n\n### Instruction\n\nThen that.\n\n### Response:\nDone.",
        "`<|endoftext|>` separates documents, and `<|im_end|>` turns.",
        "tokens.append('<|endoftext|>')",
        "Write <s>old</s> as a <s>mistake</s>",
        "A prompt for Gemma:\n\n<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n\nThat is all.",
        "The assistant: a role.",
        "<think>\nHm.\n</think>\n\nHello",
        "[INST is no mark",
        "",
    ],
)
def test_an_answer_that_shows_marks_is_an_answer(answer):
    assert rendered_by(message("assistant", answer)) is None


def test_what_a_tool_returns_may_hold_anything():
    assert rendered_by(message("tool", "<|im_start|>user\nHi<|im_end|>")) is None


def test_the_content_of_messages_is_looked_at_as_text_is_whoever_named_the_form():
    rendered, _ = EXAMPLES["Gemma"]
    for strict in (True, False):
        dropped = explicit_pair(make_pair(rendered, "a", "b"), "preference", strict=strict)
        assert isinstance(dropped, Drop)
        assert dropped.reason == "malformed: prompt was rendered before, by Gemma"
        side = explicit_pair(make_pair("q", "a</s>", "b"), "preference", strict=strict)
        assert isinstance(side, Drop) and side.reason.startswith("malformed: chosen was rendered before")


def test_text_is_kept_where_the_form_is_named_and_any_pair_where_the_user_accepts_it():
    prompt, answer = EXAMPLES["DeepSeek"]
    row = {"prompt": prompt, "chosen": answer, "rejected": "No."}
    assert explicit_pair(row, "text", strict=False)["prompt"] == prompt
    assert isinstance(explicit_pair(row, "text", strict=True), Drop)
    accepted = explicit_pair(row, "preference", strict=True, may_be_rendered=True)
    assert accepted["prompt"] == [message("user", prompt)]

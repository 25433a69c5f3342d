"""Text that a chat template has rendered before: the marks of known families, told from text that speaks of them.

A template would wrap such text once more, and a model would learn its marks twice, or as letters.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .messages import Message

RENDERED_BEFORE = "was rendered before, by"  # in the reason to drop a row
ADVICE = (
    "A chat template would wrap them once more. data.format=text keeps them as they are, without a template; else take "
    "the marks out, or accept them: data.allow=['special_tokens']."
)
# Where a mark stands decides: at the start or the end of a text it is a template's, in the middle it may be quoted.
TAIL = 200  # characters at the end of a text in which the last header or end token stands

# A start token, which may stand before the first header.
START_TOKENS = (
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<BOS_TOKEN>",
    "[gMASK]<sop>",
    "<｜begin▁of▁sentence｜>",
)


class Family(NamedTuple):
    """Chat templates that write the same marks: `opens` and `answers` as regular expressions, the others as text."""

    name: str
    opens: str  # how a conversation begins, behind a start token
    asks: str  # what stands before a question; "" where those words are no sign of a template
    answers: str  # what stands before an answer
    ends: tuple[str, ...]  # what stands behind an answer
    example: tuple[str, str]  # a question and an answer as they are rendered


# To add a family: a row here. The first that fits is named.
FAMILIES = (
    Family(
        name="ChatML",
        opens=r"<\|im_start\|>\s*(?:system|developer|user|assistant|tool)\s*(?:\n|<\|im_sep\|>)",
        asks="<|im_start|>user",
        answers=r"<\|im_start\|>\s*assistant(?:<\|im_sep\|>)?",
        ends=("<|im_end|>",),
        example=("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello<|im_end|>"),
    ),
    Family(
        name="Llama 3",
        opens=r"<\|start_header_id\|>\s*\w+\s*<\|end_header_id\|>",
        asks="<|start_header_id|>user",
        answers=r"<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>",
        ends=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        example=(
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "Hello<|eot_id|>",
        ),
    ),
    Family(
        name="Llama 2 or Mistral",
        opens=r"\[(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\].*\[/(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]|<<SYS>>.*<</SYS>>",
        asks="[INST]",
        answers=r"\[/INST\]",
        ends=("</s>",),
        example=("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]", " Hello </s>"),
    ),
    Family(
        name="Gemma",
        opens=r"<start_of_turn>\s*(?:system|developer|user|model)\s*\n",
        asks="<start_of_turn>user",
        answers=r"<start_of_turn>\s*model",
        ends=("<end_of_turn>", "<eos>"),
        example=("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "Hello<end_of_turn>"),
    ),
    Family(
        name="Gemma 4",
        opens=r"<\|turn>\s*(?:system|user|model)\s*\n",
        asks="<|turn>user",
        answers=r"<\|turn>\s*model",
        ends=("<turn|>",),
        example=("<bos><|turn>user\nHi<turn|>\n<|turn>model\n", "Hello<turn|>"),
    ),
    Family(
        name="Zephyr, Phi or GLM",
        opens=r"<\|(?:system|user|prompter|assistant)\|>(?:\s*\n|\S|.*<\|(?:assistant|end|endoftext)\|>)",
        asks="<|user|>",
        answers=r"<\|assistant\|>",
        ends=("<|end|>", "<|endoftext|>", "<|user|>"),
        example=("<|user|>\nHi<|end|>\n<|assistant|>\n", "Hello<|end|>"),
    ),
    Family(
        name="DeepSeek",
        opens=r"<｜(?:User|Assistant)｜>",
        asks="<｜User｜>",
        answers=r"<｜Assistant｜>",
        ends=("<｜end▁of▁sentence｜>",),
        example=("<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>", "Hello<｜end▁of▁sentence｜>"),
    ),
    Family(
        name="Command R",
        opens=r"<\|START_OF_TURN_TOKEN\|>\s*<\|\w+_TOKEN\|>",
        asks="<|USER_TOKEN|>",
        answers=r"<\|START_OF_TURN_TOKEN\|>\s*<\|CHATBOT_TOKEN\|>",
        ends=("<|END_OF_TURN_TOKEN|>",),
        example=(
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            "Hello<|END_OF_TURN_TOKEN|>",
        ),
    ),
    Family(
        name="gpt-oss",
        opens=r"<\|start\|>\s*(?:system|developer|user|assistant)\b.{0,60}?<\|message\|>",
        asks="<|start|>user",
        answers=r"<\|start\|>\s*assistant(?:<\|channel\|>\s*final\s*<\|message\|>)?",
        ends=("<|return|>",),
        example=(
            "<|start|>user<|message|>Hi<|end|><|start|>assistant",
            "<|start|>assistant<|channel|>final<|message|>Hello<|return|>",
        ),
    ),
    Family(
        name="Granite",
        opens=r"<\|start_of_role\|>\s*\w+\s*<\|end_of_role\|>",
        asks="<|start_of_role|>user",
        answers=r"<\|start_of_role\|>\s*assistant\s*<\|end_of_role\|>",
        ends=("<|end_of_text|>",),
        example=(
            "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
            "Hello<|end_of_text|>",
        ),
    ),
    Family(
        name="OpenChat",
        opens=r"GPT4 (?:Correct )?User:",
        asks="GPT4 Correct User:",
        answers=r"GPT4 (?:Correct )?Assistant:",
        ends=("<|end_of_turn|>",),
        example=("<s>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant:", " Hello<|end_of_turn|>"),
    ),
    Family(
        name="Alpaca",
        opens=r"### Instruction:",
        asks="### Instruction:",
        answers=r"### Response:",
        ends=("</s>",),
        example=(
            "Below is an instruction that describes a task.\n\n### Instruction:\nGreet me.\n\n### Response:\n",
            "Hello</s>",
        ),
    ),
    Family(
        name="Vicuna",
        opens=r"USER:.*\bASSISTANT:",
        asks="USER:",
        answers=r"ASSISTANT:",
        ends=("</s>",),
        example=("A chat between a user and an assistant. USER: Hi ASSISTANT:", "ASSISTANT: Hello</s>"),
    ),
    Family(
        name="Guanaco",
        opens=r"### ?(?:Human|User):",
        asks="### Human:",
        answers=r"### ?Assistant:",
        ends=("</s>",),
        example=("### Human: Hi\n### Assistant:", "### Assistant: Hello"),
    ),
    Family(  # an Anthropic transcript, or ShareGPT's turns as text
        name="a transcript",
        opens=r"Human:|User:.*\n\s*Assistant:",
        asks="",
        answers=r"Assistant:",
        ends=(),
        example=("Human: Hi\n\nAssistant:", "Assistant: Hello"),
    ),
    Family(  # what no row above knows, such as Kimi's <|im_user|>user<|im_middle|>
        name="another template",
        opens=r"<\|\w+\|>\w*(?:\s*\n|<\|\w+\|>)",
        asks="",
        answers=r"<\|im_assistant\|>\s*assistant",
        ends=(),
        example=("<|im_user|>user<|im_middle|>Hi<|im_end|>", "<|im_assistant|>assistant<|im_middle|>Hello<|im_end|>"),
    ),
)

START = r"\s*(?:" + "|".join(re.escape(token) for token in START_TOKENS) + r")?\s*"
OPENS = {family.name: re.compile(f"{START}(?:{family.opens})", re.DOTALL) for family in FAMILIES}
ANSWERS = {family.name: re.compile(f"{START}(?:{family.answers})") for family in FAMILIES}
LAST_HEADER = {family.name: re.compile(rf"(?:{family.answers})\s*\Z") for family in FAMILIES}


def rendered_by(message: Message) -> str | None:
    """The name of the family whose template wrote the text of a message before; None where none did.

    What a tool says is left alone: a page or a file may hold anything.
    """
    text = message["content"]
    if message["role"] == "tool":
        return None
    for family in FAMILIES:
        if OPENS[family.name].match(text):
            return family.name
        if message["role"] == "assistant" and _is_answer_of(family, text):
            return family.name
        if message["role"] != "assistant" and _is_question_of(family, text):
            return family.name
    return None


def _is_question_of(family: Family, text: str) -> bool:
    """Whether a question of the family is followed by the header that opens an answer, whatever stands before it."""
    has_last_header = bool(LAST_HEADER[family.name].search(text[-TAIL:]))
    return has_last_header and family.asks != "" and family.asks in text


def _is_answer_of(family: Family, text: str) -> bool:
    """Whether a text begins with the header of an answer, or ends with the token behind one."""
    if ANSWERS[family.name].match(text):
        return True
    end = text[-TAIL:].rstrip()
    if end.endswith("</s>") and "<s>" in text.lstrip()[3:]:
        return False  # text that is struck out in HTML: "a <s>b</s>"
    return end.endswith(family.ends) if family.ends else False

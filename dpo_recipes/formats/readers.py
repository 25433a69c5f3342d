"""The forms that preference rows come in: a function and a row of FORMATS for each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .image_marks import COLUMNS as IMAGE_COLUMNS
from .messages import (
    ROLES,
    Drop,
    Message,
    Row,
    is_empty,
    malformed,
    messages,
    number,
    text,
    typed,
)
from .pair import pair_of_conversations, pair_of_replies, shared_start
from .pair_weights import without_weights

PAIR = ("prompt", "chosen", "rejected")
SIDES = ("chosen", "rejected")
PASSED_ON = ("tools", "chat_template_kwargs")  # columns that are passed on beside a pair

# The start of a turn in a transcript: "Human:" at the very start or after an empty line, as in
# "\n\nHuman: Hi\n\nAssistant: Hello". An empty line of Windows counts too.
TURN = re.compile(r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")

# The mark between the turns in HelpSteer2's prompts: "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nOk?".
HELPSTEER2_TURN = re.compile(r"\n?<extra_id_1>(?:User|Assistant)\n")

# Columns -> a pair


def _question_and_replies(row: Row, question: str, chosen: str = "chosen", rejected: str = "rejected") -> Row:
    """The pair of three columns, with the text of the column `system` before the question where there is any."""
    system = messages(row, "system", "system")
    prompt = messages(row, question, "user")
    if system and prompt and prompt[0]["role"] == "system":
        if without_weights(system) != without_weights(prompt[:1]):
            raise malformed("system", "differs from the system message of the conversation", row["system"])
        system = []
    return pair_of_replies(system + prompt, messages(row, chosen), messages(row, rejected))


def _question_and_compared_replies(row: Row, question: str, first: str, second: str, *, preference: float) -> Row:
    """The pair of a question and two replies: a positive preference is for the first, a negative for the second."""
    if preference == 0:
        raise Drop("tie")
    if preference > 0:
        return _question_and_replies(row, question, chosen=first, rejected=second)
    return _question_and_replies(row, question, chosen=second, rejected=first)


# A raw row's columns -> its pair: one function for each form


def _preference(row: Row) -> Row:
    """TRL's own form: a prompt beside replies, or two conversations whose shared start is the prompt."""
    if not is_empty(row.get("prompt")):
        return _question_and_replies(row, "prompt")

    for side in SIDES:
        if "prompt" not in row and isinstance(row[side], str) and not is_empty(row[side]):
            raise malformed(side, "is text, and there is no prompt", row[side])
    return pair_of_conversations(messages(row, "chosen"), messages(row, "rejected"))


def _text(row: Row) -> Row:
    """Strings as they are.

    Without a prompt column the prompt is the longest shared start in whole words: a prompt that ends inside a word, as
    a split by characters gives, cuts the word's tokens in two.
    """
    prompt, chosen, rejected = text(row, "prompt"), text(row, "chosen"), text(row, "rejected")
    if "prompt" not in row:
        words = re.findall(r"\s*\S+", chosen)  # each with the white space before it
        prompt = "".join(words[: shared_start(words, re.findall(r"\s*\S+", rejected))])
        chosen = chosen[len(prompt) :]
        rejected = rejected[len(prompt) :]

    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _ultrafeedback(row: Row) -> Row:
    """A prompt beside full conversations: their shared start is the prompt, and a list prompt must open both."""
    start = messages(row, "prompt") if isinstance(row["prompt"], list) else []
    conversations = {side: messages(row, side) for side in SIDES}
    for side, conversation in conversations.items():
        if conversation and all(message["role"] not in ("user", "system") for message in conversation):
            raise malformed(side, "is a reply, not a whole conversation", row[side])
        if without_weights(conversation[: len(start)]) != without_weights(start):
            raise Drop("prompts differ between sides")
    return pair_of_conversations(**conversations)


def _chosen_messages(row: Row) -> Row:
    """Two whole conversations, of which the shared start is the prompt."""
    return pair_of_conversations(messages(row, "chosen_messages"), messages(row, "rejected_messages"))


def _hh_rlhf(row: Row) -> Row:
    """Transcripts, "Human:" and "Assistant:" turns each after an empty line: the last turn is the reply."""
    return pair_of_conversations(_transcript(row, "chosen"), _transcript(row, "rejected"))


def _transcript(row: Row, side: str) -> list[Message]:
    """The turns of one side, which is a whole transcript or what follows the one in the prompt."""
    prompt, transcript = text(row, "prompt"), text(row, side)
    if not transcript:
        raise Drop("empty side")
    if not TURN.match(transcript):
        transcript = prompt + transcript

    before, *turns = TURN.split(transcript)  # [before, "Human", "Hi", "Assistant", "Hello", ...]
    speakers, contents = turns[::2], turns[1::2]
    in_turn = all(speaker == ("Human", "Assistant")[place % 2] for place, speaker in enumerate(speakers))
    if before.strip() or not in_turn:
        raise malformed(side, "is no transcript of Human and Assistant in turn", row[side])
    return [
        {"role": ROLES[speaker.lower()], "content": content.strip()}
        for speaker, content in zip(speakers, contents, strict=True)
    ]


def _sharegpt(row: Row) -> Row:
    """The turns of a conversation, and two replies as turns: ShareGPT's, as LLaMA-Factory has them, or messages."""
    return _question_and_replies(row, "conversations")


def _alpaca(row: Row) -> Row:
    """The input stands on the line after the instruction, as LLaMA-Factory has it."""
    parts = (text(row, "instruction"), text(row, "input"))
    instruction = "\n".join(part for part in parts if part)
    return _question_and_replies({**row, "instruction": instruction}, "instruction")


def _orca(row: Row) -> Row:
    """A question behind a system text, and two replies."""
    return _question_and_replies(row, "question")


def _shp(row: Row) -> Row:
    """A post and two comments: label 1 is for A, 0 for B."""
    preference = 2 * number(row, "labels", 0, 1) - 1
    return _question_and_compared_replies(row, "history", "human_ref_A", "human_ref_B", preference=preference)


def _helpsteer2(row: Row) -> Row:
    """Earlier turns stand in the prompt behind NeMo's marks; the strength is positive where response 2 is better."""
    turns = HELPSTEER2_TURN.split(text(row, "prompt"))
    prompt = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    preference = -number(row, "preference_strength")
    return _question_and_compared_replies(
        {**row, "prompt": prompt}, "prompt", "response_1", "response_2", preference=preference
    )


def _helpsteer3(row: Row) -> Row:
    """Messages and two replies: the preference is positive where response 2 is better."""
    preference = -number(row, "overall_preference")
    return _question_and_compared_replies(row, "context", "response1", "response2", preference=preference)


def _summarize(row: Row) -> Row:
    """openai/summarize_from_feedback's comparisons of two summaries, laid out as trl-lib/tldr-preference."""
    info = typed(row["info"], "info", dict)
    summaries = typed(row["summaries"], "summaries", list)
    columns = {"info": _text_to_summarize(info)}
    for place, summary in enumerate(summaries):
        columns[str(place)] = typed(summary, "summaries", dict).get("text", "")

    preference = 1 - 2 * number(row, "choice", 0, 1)  # the choice is the place of the better one, 0 or 1
    return _question_and_compared_replies(columns, "info", "0", "1", preference=preference)


def _text_to_summarize(info: Row) -> str:
    """A post on Reddit, or an article of the news, which has no subreddit; "" where there is neither.

    As in trl-lib/tldr-preference no empty line is left in the text itself.
    """
    title = info.get("title", "")
    subreddit = info.get("subreddit", "")
    post = text(info, "post").replace("\n\n", "\n")
    article = text(info, "article").replace("\n\n", "\n")
    if post:
        return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    if article:
        return f"TITLE: {title}\n\n{article}\n\nTL;DR:"
    return ""


def _ultrainteract(row: Row) -> Row:
    """The turns so far, and two next ones."""
    return _question_and_replies(row, "trajectory")


def _ranking(row: Row) -> Row:
    """A question, and two of the replies to it that scores or ranks have put in an order."""
    return _question_and_replies(row, "prompt")


class Format(NamedTuple):
    """One form of raw rows: all that is known of it.

    A column written a|b|c may have any of these names, and only one of them may hold something; the reader finds it
    under the first.
    """

    reader: Callable[[Row], Row]  # a row of these columns -> {prompt, chosen, rejected}; raises Drop
    required: tuple[str, ...]
    optional: tuple[str, ...]
    seen_in: tuple[str, ...]  # data sets on the hub, or programs, whose rows have this form
    transcripts: bool = False  # its text is a whole conversation, with marks of who speaks
    whole_conversations: bool = False  # each side is a whole conversation, with the question and the system text
    # A row has several replies in an order; the reader gets them in pairs, as chosen and rejected.
    ordered: bool = False

    @property
    def columns(self) -> str:
        """The columns as a message lists them; those that may be missing have a question mark."""
        return " ".join((*(f"{column}?" for column in self.optional), *self.required))

    @property
    def reads(self) -> set[str]:
        """The names of all columns that are read."""
        columns = (*self.required, *self.optional, *PASSED_ON, *IMAGE_COLUMNS)
        return set("|".join(columns).split("|"))


# The names are those that data.format takes. To add a form: a function above and a row here.
FORMATS: dict[str, Format] = {
    "preference": Format(
        reader=_preference,
        required=("chosen", "rejected"),
        optional=("prompt",),
        seen_in=("trl-lib/ultrafeedback_binarized", "argilla/dpo-mix-7k", "trl-lib/tldr-preference"),
    ),
    "text": Format(
        reader=_text,
        required=("chosen", "rejected"),
        optional=("prompt",),
        seen_in=(),  # for base models: the same strings as `preference`, without a template
    ),
    "ultrafeedback": Format(
        reader=_ultrafeedback,
        required=("prompt", "chosen", "rejected"),
        optional=(),
        seen_in=(
            "HuggingFaceH4/ultrafeedback_binarized",
            "argilla/ultrafeedback-binarized-preferences-cleaned",
            "allenai/llama-3.1-tulu-3-8b-preference-mixture",
            "HuggingFaceH4/orca_dpo_pairs",
            "HuggingFaceTB/smoltalk2",
            "argilla/distilabel-capybara-dpo-7k-binarized",
        ),
        whole_conversations=True,
    ),
    "chosen_messages": Format(
        reader=_chosen_messages,
        required=("chosen_messages", "rejected_messages"),
        optional=(),
        seen_in=("LLaMA-Factory",),  # its second layout, which its own converters write
        whole_conversations=True,
    ),
    "hh_rlhf": Format(
        reader=_hh_rlhf,
        required=("chosen", "rejected"),
        optional=("prompt",),
        seen_in=("Anthropic/hh-rlhf",),
        transcripts=True,
        whole_conversations=True,
    ),
    "sharegpt": Format(
        reader=_sharegpt,
        required=("conversations|conversation|messages", "chosen", "rejected"),
        optional=("system",),
        seen_in=("LLaMA-Factory", "fozziethebeat/alpaca_messages_2k_dpo_test"),
    ),
    "alpaca": Format(
        reader=_alpaca,
        required=("instruction", "chosen|chosen_response", "rejected|rejected_response"),
        optional=("system", "input"),
        seen_in=("LLaMA-Factory", "argilla/ultrafeedback-binarized-preferences"),
    ),
    "orca": Format(
        reader=_orca,
        required=("question|input|prompt", "chosen", "rejected"),
        optional=("system",),
        seen_in=(
            "Intel/orca_dpo_pairs",
            "argilla/distilabel-intel-orca-dpo-pairs",
            "jondurbin/truthy-dpo-v0.1",
        ),
    ),
    "shp": Format(
        reader=_shp,
        required=("history", "human_ref_A", "human_ref_B", "labels"),
        optional=(),
        seen_in=("stanfordnlp/SHP",),
    ),
    "helpsteer2": Format(
        reader=_helpsteer2,
        required=("prompt", "response_1", "response_2", "preference_strength"),
        optional=(),
        seen_in=("nvidia/HelpSteer2",),  # its folder "preference"
    ),
    "helpsteer3": Format(
        reader=_helpsteer3,
        required=("context", "response1", "response2", "overall_preference"),
        optional=(),
        seen_in=("nvidia/HelpSteer3",),
    ),
    "summarize": Format(
        reader=_summarize,
        required=("info", "summaries", "choice"),
        optional=(),
        seen_in=("openai/summarize_from_feedback",),
    ),
    "ultrainteract": Format(
        reader=_ultrainteract,
        required=("trajectory", "chosen", "rejected"),
        optional=(),
        seen_in=("openbmb/UltraInteract_pair",),
    ),
    "ranking": Format(
        reader=_ranking,
        required=("prompt|instruction", "responses|completions"),
        optional=("system", "scores", "ranks"),
        seen_in=("openbmb/UltraFeedback",),
        ordered=True,
    ),
}

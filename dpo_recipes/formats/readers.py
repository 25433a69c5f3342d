"""The forms that preference rows come in, a function and a row of FORMATS for each; and how a raw row is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .messages import (
    ROLES,
    Drop,
    Message,
    Row,
    is_empty,
    malformed,
    messages,
    number,
    plain_json,
    problem_of_template_kwargs,
    text,
    typed,
)
from .pair import pair_of_conversations, pair_of_replies, pairs_of_turns, shared_start
from .pair_weights import weight_of_row, without_weights
from .rendered import RENDERED_BEFORE, rendered_by
from .several_replies import Candidate, Pairing, candidates_of_lists, candidates_of_order

PAIR = ("prompt", "chosen", "rejected")
SIDES = ("chosen", "rejected")
PASSED_ON = ("tools", "chat_template_kwargs")  # columns that are passed on beside a pair

# Columns that may hold a part of the question, by the names that data sets give them.
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
QUESTION_COLUMNS = (
    *SYSTEM_COLUMNS,
    "prompt",
    "conversations",
    "conversation",
    "instruction",
    "input",
    "question",
    "query",
    "history",
    "context",
    "trajectory",
    "post",
    "passage",
    "document",
)

# The start of a turn in a transcript: "Human:" at the very start or after an empty line, as in
# "\n\nHuman: Hi\n\nAssistant: Hello". An empty line of Windows counts too.
TURN = re.compile(r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")

# The mark between the turns in HelpSteer2's prompts: "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nOk?".
HELPSTEER2_TURN = re.compile(r"\n?<extra_id_1>(?:User|Assistant)\n")

# Messages as text, that a template would wrap as if they were one: "[{'role': 'user', ...".
MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']""")


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
    """ShareGPT's turns, and two replies as turns, as LLaMA-Factory has them."""
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
    ordered: bool = (
        False  # a row has several replies in an order; the reader gets them in pairs, as chosen and rejected
    )

    @property
    def columns(self) -> str:
        """The columns as a message lists them; those that may be missing have a question mark."""
        return " ".join((*(f"{column}?" for column in self.optional), *self.required))

    @property
    def reads(self) -> set[str]:
        """The names of all columns that are read."""
        columns = (*self.required, *self.optional, *PASSED_ON)
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
        required=("conversations", "chosen", "rejected"),
        optional=("system",),
        seen_in=("LLaMA-Factory",),
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


# A raw row -> its pair


class Reading(NamedTuple):
    """How raw rows are read, beside their form."""

    strict: bool = True  # the form was recognised, not named: then no part of a question may be left unread
    # The user accepts text that a chat template has rendered before, which is otherwise for the form `text`, named,
    # alone.
    may_be_rendered: bool = False
    pairing: Pairing = Pairing()
    every_turn: bool = False  # a pair of each turn that differs, not of the last turn alone


class Pair(NamedTuple):
    """A pair of a raw row."""

    label: str  # which of the row's pairs it is; "" where it has one
    # prompt, chosen and rejected: lists of messages, or strings where the form is `text`; tools: a list or None;
    # chat_template_kwargs; and what `pairs_of_turns` adds. Or why there is no pair.
    pair: Row | Drop
    of_several_replies: bool = False


def explicit_pair(raw: Row, form: str, *, strict: bool, may_be_rendered: bool = False) -> Row | Drop:
    """The first pair of a raw row, or why it has none."""
    pairs = explicit_pairs(raw, form, Reading(strict, may_be_rendered))
    usable = [pair.pair for pair in pairs if not isinstance(pair.pair, Drop)]
    return usable[0] if usable else pairs[0].pair


def explicit_pairs(raw: Row, form: str, reading: Reading) -> list[Pair]:
    """The pairs of a raw row, one with most forms; each may be a Drop."""
    try:
        if is_repeated_header(raw):
            raise Drop("repeated header line")
        row = _select_columns(raw, FORMATS[form])
        candidates = _candidates(row, FORMATS[form], reading)
        weight = weight_of_row(raw)
    except RecursionError:
        return [Pair("", Drop("malformed: row is nested too deeply"))]
    except Drop as drop:
        return [Pair("", drop)]

    pairs: list[Pair] = []
    for label, candidate in candidates:
        pairs += _pairs_of_candidate(raw, candidate, form, reading, label, weight)
    return pairs


def _candidates(row: Row, data_format: Format, reading: Reading) -> list[Candidate]:
    """The row itself, or one for each two of its replies that make a pair."""
    if data_format.ordered:
        return candidates_of_order(row, reading.pairing)
    if "chosen" in row and "rejected" in row:
        return candidates_of_lists(row, reading.pairing)
    return [Candidate("", row)]


def _pairs_of_candidate(
    raw: Row, row: Row | Drop, form: str, reading: Reading, label: str, weight: float
) -> list[Pair]:
    """The pairs of one row of two sides: one, or of each turn that differs, whose labels have its number."""
    of_several = label != ""
    if isinstance(row, Drop):
        return [Pair(label, row, of_several)]
    try:
        turns = pairs_of_turns(FORMATS[form].reader(row), every_turn=reading.every_turn)
    except RecursionError:
        return [Pair(label, Drop("malformed: row is nested too deeply"), of_several)]
    except Drop as drop:
        return [Pair(label, drop, of_several)]

    pairs: list[Pair] = []
    for number_of_turn, pair in enumerate(turns):
        turn = f" turn {number_of_turn}" if len(turns) > 1 else ""
        if not isinstance(pair, Drop):
            pair = _checked(raw, row, pair, form, reading)
        if not isinstance(pair, Drop):
            pair["weight"] *= weight
        pairs.append(Pair(label + turn, pair, of_several))
    return pairs


def _checked(raw: Row, row: Row, pair: Row, form: str, reading: Reading) -> Row | Drop:
    """The pair with what is passed on beside it, where nothing is rendered, written as text or left unread."""
    is_named_text = form == "text" and not reading.strict
    try:
        if not is_named_text and not FORMATS[form].transcripts:
            _refuse_messages_as_text(row)
            if not reading.may_be_rendered:
                _refuse_rendered_text(pair)
        if reading.strict:
            _refuse_an_unread_question(raw, row, pair, form)
        return pair | _passed_on(row)
    except Drop as drop:
        return drop


def is_repeated_header(raw: Row) -> bool:
    """Whether every cell says its own column's name, as where csv files were appended to each other.

    Each of them may begin with a byte-order mark, of which the first alone is no part of the rows.
    """
    if not raw:
        return False
    cells = [value.lstrip("\ufeff").strip() if isinstance(value, str) else value for value in raw.values()]
    return cells == [column.strip() for column in raw]


def _select_columns(raw: Row, data_format: Format) -> Row:
    """The columns that the form reads, each under its first name; those that it may lack only where they are there."""
    row: Row = {}
    for column in (*data_format.optional, *data_format.required, *PASSED_ON):
        names = column.split("|")
        present = [name for name in names if name in raw]
        filled = [name for name in present if not is_empty(raw[name])]
        if len(filled) > 1:
            raise malformed(column, "are two questions, or two sides", filled)
        if present:
            source = filled[0] if filled else present[0]
            row[names[0]] = plain_json(raw[source], source)
        elif column in data_format.required:
            raise malformed(column, "is missing", [*raw], missing_column=column)
    return row


def _refuse_messages_as_text(row: Row) -> None:
    """Drop a row of which a text is a list of messages: a template would take it for the words of one."""
    for column, value in row.items():
        if column not in PASSED_ON and isinstance(value, str) and MESSAGES_AS_TEXT.match(value):
            raise malformed(column, "is messages written as text", value)


def _refuse_rendered_text(pair: Row) -> None:
    """Drop a pair of which a message was rendered by a chat template before: another one would wrap it once more."""
    for column in PAIR:
        messages_of_column = pair[column]
        if isinstance(messages_of_column, str):
            role = "user" if column == "prompt" else "assistant"
            messages_of_column = [{"role": role, "content": messages_of_column}]
        for message in messages_of_column:
            family = rendered_by(message)
            if family:
                raise malformed(column, f"{RENDERED_BEFORE} {family}", message["content"])


def _refuse_an_unread_question(raw: Row, row: Row, pair: Row, form: str) -> None:
    """Drop a row of which a column may hold a part of the question, is not read, and says what the prompt does not.

    Beside whole conversations only a system text can be missing from them: other columns repeat the question.
    """
    has_conversations = FORMATS[form].whole_conversations
    if form == "preference":  # which has them where it has no prompt
        has_conversations = is_empty(row.get("prompt"))

    for column, value in raw.items():
        if not may_hold_question(column, SYSTEM_COLUMNS if has_conversations else QUESTION_COLUMNS):
            continue
        if column in FORMATS[form].reads or is_empty(value) or not value:  # 0 and False say nothing, either
            continue
        unread = str(value).strip()
        if not _is_in_prompt(unread, pair["prompt"]):
            raise malformed(column, f"holds something, which {form} does not read", unread)


def may_hold_question(column: str, names: tuple[str, ...] = QUESTION_COLUMNS) -> bool:
    """Whether a column has one of the names, in any case and with blanks around it: "Prompt", "system "."""
    return column.strip().lower() in names


def _is_in_prompt(unread: str, prompt: list[Message] | str) -> bool:
    """Whether a message of the prompt says it. The prompt of `text` is taken as it is, and says nothing twice."""
    if isinstance(prompt, str):
        return False
    return any(unread in message["content"] for message in prompt)


def _passed_on(row: Row) -> Row:
    """The tools and the switches of the chat template: a list, or None, and a dict; each may be stored as its JSON."""
    tools = _list_or_dict(row, "tools", list)
    kwargs = _list_or_dict(row, "chat_template_kwargs", dict)
    problem = problem_of_template_kwargs(kwargs)
    if problem:
        raise malformed("chat_template_kwargs", problem.removesuffix("."), kwargs)
    return {"tools": tools or None, "chat_template_kwargs": kwargs}


def _list_or_dict(row: Row, column: str, kind: type) -> Any:
    """The list or dict of a column, an empty one where the row has none."""
    value = row.get(column)
    if is_empty(value) or not value:
        return kind()
    return typed(value, column, kind)

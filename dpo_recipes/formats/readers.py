"""Forms that preference rows come in: a function for each, one row of FORMATS for each, and the reading of one row."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import takewhile
from typing import Any, NamedTuple

from .messages import ROLES, VISIBLE, Drop, Row, malformed, messages, number, plain_json, typed

PAIR = ("prompt", "chosen", "rejected")
SIDES = PAIR[1:]
PASSED_ON = ("tools", "chat_template_kwargs")  # columns that are passed on beside a pair
TURN = re.compile(r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")
# Transcripts, what a template has rendered already, and messages as text.
TRAP = re.compile(r"""\s*((### )?Human:|(<s>)?\s*\[INST\]|<\|[\w ]+\|>|\[\s*\{\s*["'](role|content|from|value)["'])""")
# Columns that may hold what is said before a question. Whole conversations hold all the rest themselves.
SYSTEM_COLUMNS = ("system", "system_prompt")
# Columns that may hold a part of the question.
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
    "system_message",
)


def _pair(prompt: list[Row] | None, chosen: list[Row], rejected: list[Row]) -> Row:
    """The pair; a prompt of None is the start that both sides share."""
    if prompt is None:
        n = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    elif whole := [m for m in chosen + rejected if m["role"] not in ("assistant", "tool")]:
        raise malformed("chosen or rejected", "is a whole conversation beside a prompt", whole[0])
    ends, last = [side[-1] for side in (chosen, rejected) if side], prompt[-1] if prompt else {"role": "system"}
    for wrong, reason in (
        (any(m["role"] != "assistant" for m in ends), "last role is not assistant"),
        (len(ends) < 2 or not all(VISIBLE.search(m["content"]) or m.get("tool_calls") for m in ends), "empty side"),
        (chosen == rejected, "identical sides"),
        (any(m["role"] not in ("assistant", "tool") for m in chosen + rejected), "prompts differ between sides"),
        (last["role"] in ("system", "developer") or not VISIBLE.search(last["content"]), "empty prompt"),
        (last["role"] == "assistant", "prompt ends with the assistant"),  # a template would open one more turn
    ):
        if wrong:
            raise Drop(reason)
    asked = last["content"].strip()
    if len(asked) >= 20 and all(side[0]["content"].strip().startswith(asked) for side in (chosen, rejected)):
        raise Drop("both sides repeat the prompt")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _shared(one: list[Any], other: list[Any]) -> int:
    """How many leading items two lists share, leaving at least one in each."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one[:-1], other[:-1], strict=False))))


def _asked(row: Row, field: str, *sides: str, better: float = 1) -> Row:
    """The pair of a question, behind the row's system text where there is any, and of two replies, chosen and rejected
    unless named; `better` is positive where the first is, 0 for a tie."""
    if not better:
        raise Drop("tie")
    first, second = (sides or SIDES)[:: 1 if better > 0 else -1]
    system, prompt = messages(row, "system", "system"), messages(row, field, "user")
    if system and prompt and prompt[0]["role"] == "system":
        if system != prompt[:1]:
            raise malformed("system", "differs from the system message of the conversation", row["system"])
        system = []
    prompt = system + prompt
    return _pair(prompt, messages(row, first), messages(row, second))


def _preference(row: Row) -> Row:
    """TRL's own form: a prompt beside replies, or two conversations whose shared start is the prompt."""
    if "prompt" not in row and (text := [side for side in SIDES if row.get(side) and isinstance(row[side], str)]):
        raise malformed(text[0], "is text, and there is no prompt", row[text[0]])
    return _asked(row, "prompt") if row.get("prompt") else _pair(None, *(messages(row, side) for side in SIDES))


def _ultrafeedback(row: Row) -> Row:
    """A prompt beside full conversations: their shared start is the prompt, and a list prompt must open both."""
    start = messages(row, "prompt") if isinstance(row["prompt"], list) else []
    sides = [messages(row, side) for side in SIDES]
    for name, side in zip(SIDES, sides, strict=True):
        if side and all(m["role"] not in ("user", "system") for m in side):
            raise malformed(name, "is a reply, not a whole conversation", row[name])
        if side and side[: len(start)] != start:
            raise Drop("prompts differ between sides")
    return _pair(None, *sides)


def _hh_rlhf(row: Row) -> Row:
    """Transcripts, "Human:" and "Assistant:" turns each after an empty line: the last turn is the reply."""
    talks = []
    for side in SIDES:
        prompt, said = typed(row.get("prompt", ""), "prompt", str), typed(row[side], side, str)
        before, *turns = TURN.split(said if TURN.match(said) else prompt + said)
        pairs = zip(turns[::2], turns[1::2], strict=True)
        talk = [{"role": ROLES[who.lower()], "content": said.strip()} for who, said in pairs]
        if not VISIBLE.search(row[side]):
            raise Drop("empty side")
        if before.strip() or any(m["role"] != ("user", "assistant")[n % 2] for n, m in enumerate(talk)):
            raise malformed(side, "is no transcript of Human and Assistant in turn", row[side])
        talks.append(talk)
    return _pair(None, *talks)


def _text(row: Row) -> Row:
    """Strings as they are. Without a prompt column it is the longest shared start in whole words: a prompt that ends
    inside a word, as a split by characters gives, cuts the word's tokens in two."""
    said = {column: typed(row.get(column, ""), column, str) for column in PAIR}
    if "prompt" not in row:
        words, others = (re.findall(r"\s*\S+", said[side]) for side in SIDES)
        start = "".join(words[: _shared(words, others)])
        said = {"prompt": start} | {side: said[side][len(start) :] for side in SIDES}
    return {column: messages[0]["content"] for column, messages in _asked(said, "prompt").items()}


def _alpaca(row: Row) -> Row:
    """The input stands on the line after the instruction, as LLaMA-Factory has it."""
    both = (typed(row.get(column, ""), column, str) for column in ("instruction", "input"))
    return _asked({**row, "instruction": "\n".join(filter(None, both))}, "instruction")


def _helpsteer2(row: Row) -> Row:
    """Earlier turns stand in the prompt behind NeMo's marks; the strength is positive where response 2 is better."""
    said = re.split(r"\n?<extra_id_1>(?:User|Assistant)\n", typed(row.get("prompt"), "prompt", str))
    turns = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(said)]
    better = -number(row, "preference_strength")
    return _asked({**row, "prompt": turns}, "prompt", "response_1", "response_2", better=better)


def _summarize(row: Row) -> Row:
    """openai/summarize_from_feedback's comparisons, laid out as trl-lib/tldr-preference; news have no subreddit."""
    info, two = typed(row.get("info"), "info", dict), typed(row.get("summaries"), "summaries", list)
    said = [typed(one, "summaries", dict).get("text", "") for one in two]
    better = 1 - 2 * number(row, "choice", 0, 1)
    post = str(info.get("post") or info.get("article") or "").replace("\n\n", "\n")
    head = (f"SUBREDDIT: r/{info.get('subreddit', '')}\n\n", "POST: ") if info.get("post") else ("", "")
    asked = f"{head[0]}TITLE: {info.get('title', '')}\n\n{head[1]}{post}\n\nTL;DR:" if post else ""
    return _asked({"info": asked} | dict(zip("01", said, strict=False)), "info", "0", "1", better=better)


def _sharegpt(row: Row) -> Row:
    return _asked(row, "conversations")


def _orca(row: Row) -> Row:
    return _asked(row, "question")


def _shp(row: Row) -> Row:
    """A label of 1 prefers A."""
    return _asked(row, "history", "human_ref_A", "human_ref_B", better=2 * number(row, "labels", 0, 1) - 1)


def _helpsteer3(row: Row) -> Row:
    """The preference is positive where response 2 is better."""
    return _asked(row, "context", "response1", "response2", better=-number(row, "overall_preference"))


def _ultrainteract(row: Row) -> Row:
    return _asked(row, "trajectory")


class Format(NamedTuple):
    """One form of raw rows: all that is known of it."""

    reader: Callable[[Row], Row]  # the columns of a row, each under its first name -> prompt, chosen and rejected
    required: tuple[str, ...]  # a|b: one of these columns, which the reader finds under the first name
    optional: tuple[str, ...]  # read where the row has them
    seen_in: tuple[str, ...]  # data sets on the hub, or programs, that have rows of this form

    @property
    def columns(self) -> str:
        """As a message says it: the columns in one line, those that may be missing with a question mark."""
        return " ".join((*(f"{column}?" for column in self.optional), *self.required))

    @property
    def reads(self) -> set[str]:
        """The names of all columns that are read."""
        columns = (*self.required, *self.optional, *PASSED_ON)
        return {name for column in columns for name in column.split("|")}


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
    ),
    "hh_rlhf": Format(
        reader=_hh_rlhf,
        required=("chosen", "rejected"),
        optional=("prompt",),
        seen_in=("Anthropic/hh-rlhf",),
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
}


def explicit_pair(raw: Row, form: str, *, strict: bool) -> Row | Drop:
    """prompt, chosen, rejected, tools (a list or None) and chat_template_kwargs of a raw row, or why it has none.
    strict: the form was recognised, not named, so that no part of a question may be left unread."""
    data_format = FORMATS[form]
    row: Row = {}
    try:
        for one in (*data_format.columns.split(), *(f"{own}?" for own in PASSED_ON)):
            there = [name for name in one.strip("?").split("|") if name in raw]
            held = [name for name in there if raw[name] not in (None, "")] or there
            if len(held) > 1 and raw[held[0]] or not there and "?" not in one:
                raise malformed(one, "is missing" if not there else "are two questions, or two sides", held)
            row |= {one.strip("?").split("|")[0]: plain_json(raw[name], name) for name in held[:1]}
        pair = data_format.reader(row)
        for column, said in row.items() if strict and form != "hh_rlhf" else ():
            if isinstance(said, str) and TRAP.match(said):
                raise malformed(column, "is text of a transcript, a template or messages", said)
        whole = form in ("ultrafeedback", "hh_rlhf") or form == "preference" and not row.get("prompt")
        for column in (SYSTEM_COLUMNS if whole else QUESTION_COLUMNS) if strict else ():
            said = "" if column in FORMATS[form].reads else str(raw.get(column) or "").strip()
            if said and (form == "text" or not any(said in message["content"] for message in pair["prompt"])):
                raise malformed(column, f"holds something, which {form} does not read", said)
        tools, kwargs = typed(row.get("tools") or [], "tools", list), row.get("chat_template_kwargs") or {}
        return pair | {"tools": tools or None, "chat_template_kwargs": typed(kwargs, "chat_template_kwargs", dict)}
    except RecursionError:
        return Drop("malformed: row is nested too deeply")
    except Drop as drop:
        return drop

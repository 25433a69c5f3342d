"""One raw preference row -> its explicit pair, or the reason to drop it; and which reader fits a split."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from itertools import takewhile
from typing import Any

from ..errors import RecipeError, nearest

Row = dict[str, Any]

PAIR = ("prompt", "chosen", "rejected")
SIDES = PAIR[1:]
OWN = ("tools", "chat_template_kwargs")  # columns that are passed on beside a pair
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
ROLES |= {role: role for role in ("system", "user", "assistant", "tool", "developer")}
TURN = re.compile(r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")
INK = re.compile(r"[^\s\0\u200b-\u200f\u2060\ufeff]")  # without any a text is empty
# Transcripts, what a template has rendered already, and messages as text.
TRAP = re.compile(r"""\s*((### )?Human:|(<s>)?\s*\[INST\]|<\|[\w ]+\|>|\[\s*\{\s*["'](role|content|from|value)["'])""")
QUESTION = ("system", "system_prompt", "prompt", "conversations", "conversation", "instruction", "input", "question",
            "query", "history", "context", "trajectory", "post", "passage", "document", "system_message")  # fmt: skip


class Drop(Exception):
    """Why a row gives no pair: Drop(reason) or, where a value is at fault, Drop(reason, what was found)."""


def _malformed(field: str, what: str, found: Any) -> Drop:
    return Drop(f"malformed: {field} {what}", f"{found!r:.60}")


def explicit(raw: Row, form: str, *, strict: bool) -> Row | Drop:
    """prompt, chosen, rejected, tools (a list or None) and chat_template_kwargs of a raw row, or why it has none.
    strict: the form was recognised, not named, so that no part of a question may be left unread."""
    columns, reader = READERS[form]
    row: Row = {}
    try:
        for one in (*columns.split(), *(f"{own}?" for own in OWN)):
            there = [name for name in one.strip("?").split("|") if name in raw]
            held = [name for name in there if raw[name] not in (None, "")] or there
            if len(held) > 1 and raw[held[0]] or not there and "?" not in one:
                raise _malformed(one, "is missing" if not there else "are two questions, or two sides", held)
            row |= {one.strip("?").split("|")[0]: bare(raw[name], name) for name in held[:1]}
        pair = reader(row)
        for column, said in row.items() if strict and form != "hh_rlhf" else ():
            if isinstance(said, str) and TRAP.match(said):
                raise _malformed(column, "is text of a transcript, a template or messages", said)
        whole = form in ("ultrafeedback", "hh_rlhf") or form == "preference" and not row.get("prompt")
        for column in QUESTION[: 2 if whole else None] if strict else ():
            said = "" if column in READS[form] else str(raw.get(column) or "").strip()
            if said and (form == "text" or not any(said in message["content"] for message in pair["prompt"])):
                raise _malformed(column, f"holds something, which {form} does not read", said)
        tools, kwargs = _typed(row.get("tools") or [], "tools", list), row.get("chat_template_kwargs") or {}
        return pair | {"tools": tools or None, "chat_template_kwargs": _typed(kwargs, "chat_template_kwargs", dict)}
    except RecursionError:
        return Drop("malformed: row is nested too deeply")
    except Drop as drop:
        return drop


def bare(value: Any, field: str) -> Any:
    """The value without None, which Arrow fills in where a dict lacks a key of its neighbours, and which as a column
    is empty; of JSON that any parser takes: no NaN, no integer beyond 64 bits, no half of a surrogate pair."""
    if isinstance(value, dict):
        return {bare(key, field): bare(v, field) for key, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [bare(v, field) for v in value]
    if isinstance(value, str) and (value.isascii() or value.encode(errors="replace").decode() == value):
        return value
    if value is not None and not (isinstance(value, int | float) and abs(value) < 2**63):
        raise _malformed(field, f"holds a {type(value).__name__} that UTF-8 JSON of 64 bits cannot hold", value)
    return "" if value is None else value


def _typed(value: Any, field: str, *kinds: Any) -> Any:
    """A value of one of the kinds, or, where none of them is text, stored as the JSON of one."""
    with suppress(ValueError):
        value = bare(json.loads(value), field) if isinstance(value, str) and str not in kinds else value
    if not isinstance(value, kinds):
        raise _malformed(field, f"is {type(value).__name__}, not {' or '.join(kind.__name__ for kind in kinds)}", value)
    return value


def _number(row: Row, field: str, *allowed: int) -> float:
    with suppress(TypeError, ValueError):
        if (number := float(row[field])) in allowed or not allowed:
            return number
    raise _malformed(field, f"is not {' or '.join(map(str, allowed)) or 'a number'}", row.get(field))


def _messages(row: Row, field: str, role: str = "assistant") -> list[Row]:
    """A field's text as one message of that role; or its messages, one or a list, as {role, content} or ShareGPT's
    {from, value}: each as role, content as one text, and what else a template may read."""
    value, made = _typed(row.get(field, ""), field, str, list, dict), []
    value = [{"role": role, "content": value}] * (value != "") if isinstance(value, str) else value
    for m in (_typed(one, field, dict) for one in (value if isinstance(value, list) else [value])):
        keys = ("from", "value") if "from" in m else ("role", "content")
        who, content = m.pop(keys[0], None), m.pop(keys[1], "" if m.get("tool_calls") else None)
        if str(who) not in ROLES:
            raise _malformed(field, f"holds a role that is none of {', '.join(ROLES)}", who)
        if {"role", "content", "from", "value"} & m.keys():
            raise _malformed(field, "mixes role and content with from and value", m)
        if isinstance(content, list):  # of typed blocks
            content = [_typed(block, field, dict) for block in content]
            if odd := {str(block.get("type"))[:20] for block in content} - {"text"}:
                raise _malformed(field, f"holds content of type {min(odd)}, where text alone is read", content)
            content = "".join(_typed(block.get("text"), f"{field} content", str) for block in content)
        if who == "function_call":
            calls, content = _typed(content, field, list, dict), ""
            calls = calls if isinstance(calls, list) else [calls]
            m["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        made.append({"role": ROLES[who], "content": _typed(content, f"{field} content", str), **m})
    return made


def _pair(prompt: list[Row] | None, chosen: list[Row], rejected: list[Row]) -> Row:
    """The pair; a prompt of None is the start that both sides share."""
    if prompt is None:
        n = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    elif whole := [m for m in chosen + rejected if m["role"] not in ("assistant", "tool")]:
        raise _malformed("chosen or rejected", "is a whole conversation beside a prompt", whole[0])
    ends, last = [side[-1] for side in (chosen, rejected) if side], prompt[-1] if prompt else {"role": "system"}
    for wrong, reason in (
        (any(m["role"] != "assistant" for m in ends), "last role is not assistant"),
        (len(ends) < 2 or not all(INK.search(m["content"]) or m.get("tool_calls") for m in ends), "empty side"),
        (chosen == rejected, "identical sides"),
        (any(m["role"] not in ("assistant", "tool") for m in chosen + rejected), "prompts differ between sides"),
        (last["role"] in ("system", "developer") or not INK.search(last["content"]), "empty prompt"),
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
    system, prompt = _messages(row, "system", "system"), _messages(row, field, "user")
    if system and prompt and prompt[0]["role"] == "system":
        if system != prompt[:1]:
            raise _malformed("system", "differs from the system message of the conversation", row["system"])
        system = []
    prompt = system + prompt
    return _pair(prompt, _messages(row, first), _messages(row, second))


def _preference(row: Row) -> Row:
    """TRL's own form: a prompt beside replies, or two conversations whose shared start is the prompt."""
    if "prompt" not in row and (text := [side for side in SIDES if row.get(side) and isinstance(row[side], str)]):
        raise _malformed(text[0], "is text, and there is no prompt", row[text[0]])
    return _asked(row, "prompt") if row.get("prompt") else _pair(None, *(_messages(row, side) for side in SIDES))


def _ultrafeedback(row: Row) -> Row:
    """A prompt beside full conversations: their shared start is the prompt, and a list prompt must open both."""
    start = _messages(row, "prompt") if isinstance(row["prompt"], list) else []
    sides = [_messages(row, side) for side in SIDES]
    for name, side in zip(SIDES, sides, strict=True):
        if side and all(m["role"] not in ("user", "system") for m in side):
            raise _malformed(name, "is a reply, not a whole conversation", row[name])
        if side and side[: len(start)] != start:
            raise Drop("prompts differ between sides")
    return _pair(None, *sides)


def _hh_rlhf(row: Row) -> Row:
    """Transcripts, "Human:" and "Assistant:" turns each after an empty line: the last turn is the reply."""
    talks = []
    for side in SIDES:
        prompt, said = _typed(row.get("prompt", ""), "prompt", str), _typed(row[side], side, str)
        before, *turns = TURN.split(said if TURN.match(said) else prompt + said)
        pairs = zip(turns[::2], turns[1::2], strict=True)
        talk = [{"role": ROLES[who.lower()], "content": said.strip()} for who, said in pairs]
        if not INK.search(row[side]):
            raise Drop("empty side")
        if before.strip() or any(m["role"] != ("user", "assistant")[n % 2] for n, m in enumerate(talk)):
            raise _malformed(side, "is no transcript of Human and Assistant in turn", row[side])
        talks.append(talk)
    return _pair(None, *talks)


def _text(row: Row) -> Row:
    """Strings as they are. Without a prompt column it is the longest shared start in whole words: a prompt that ends
    inside a word, as a split by characters gives, cuts the word's tokens in two."""
    said = {column: _typed(row.get(column, ""), column, str) for column in PAIR}
    if "prompt" not in row:
        words, others = (re.findall(r"\s*\S+", said[side]) for side in SIDES)
        start = "".join(words[: _shared(words, others)])
        said = {"prompt": start} | {side: said[side][len(start) :] for side in SIDES}
    return {column: messages[0]["content"] for column, messages in _asked(said, "prompt").items()}


def _alpaca(row: Row) -> Row:
    """The input stands on the line after the instruction, as LLaMA-Factory has it."""
    both = (_typed(row.get(column, ""), column, str) for column in ("instruction", "input"))
    return _asked({**row, "instruction": "\n".join(filter(None, both))}, "instruction")


def _helpsteer2(row: Row) -> Row:
    """Earlier turns stand in the prompt behind NeMo's marks; the strength is positive where response 2 is better."""
    said = re.split(r"\n?<extra_id_1>(?:User|Assistant)\n", _typed(row.get("prompt"), "prompt", str))
    turns = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(said)]
    better = -_number(row, "preference_strength")
    return _asked({**row, "prompt": turns}, "prompt", "response_1", "response_2", better=better)


def _summarize(row: Row) -> Row:
    """openai/summarize_from_feedback's comparisons, laid out as trl-lib/tldr-preference; news have no subreddit."""
    info, two = _typed(row.get("info"), "info", dict), _typed(row.get("summaries"), "summaries", list)
    said = [_typed(one, "summaries", dict).get("text", "") for one in two]
    better = 1 - 2 * _number(row, "choice", 0, 1)
    post = str(info.get("post") or info.get("article") or "").replace("\n\n", "\n")
    head = (f"SUBREDDIT: r/{info.get('subreddit', '')}\n\n", "POST: ") if info.get("post") else ("", "")
    asked = f"{head[0]}TITLE: {info.get('title', '')}\n\n{head[1]}{post}\n\nTL;DR:" if post else ""
    return _asked({"info": asked} | dict(zip("01", said, strict=False)), "info", "0", "1", better=better)


# Form -> its columns, where ? may be missing and | is one of, and its reader.
READERS = {
    "preference": ("prompt? chosen rejected", _preference),
    "text": ("prompt? chosen rejected", _text),
    "ultrafeedback": ("prompt chosen rejected", _ultrafeedback),
    "hh_rlhf": ("prompt? chosen rejected", _hh_rlhf),
    "sharegpt": ("system? conversations chosen rejected", lambda row: _asked(row, "conversations")),
    "alpaca": ("system? instruction input? chosen|chosen_response rejected|rejected_response", _alpaca),
    "orca": ("system? question|input|prompt chosen rejected", lambda row: _asked(row, "question")),
    "shp": ("history human_ref_A human_ref_B labels", lambda row: _asked(
        row, "history", "human_ref_A", "human_ref_B", better=2 * _number(row, "labels", 0, 1) - 1)),
    "helpsteer2": ("prompt response_1 response_2 preference_strength", _helpsteer2),
    "helpsteer3": ("context response1 response2 overall_preference", lambda row: _asked(
        row, "context", "response1", "response2", better=-_number(row, "overall_preference"))),
    "summarize": ("info summaries choice", _summarize),
    "ultrainteract": ("trajectory chosen rejected", lambda row: _asked(row, "trajectory")),
}  # fmt: skip
READS = {form: {*re.findall(r"\w+", columns), *OWN} for form, (columns, _) in READERS.items()}


def choose(sample: list[Row], where: str, *, named: str | None, few: float) -> str:
    """The form that reads a split's first rows, or the one named; RecipeError with the candidates. A share of `few`
    rows may be of another form: they are then dropped and counted, like other defects."""
    columns = list(dict.fromkeys(column for row in sample for column in row))
    made = {form: [explicit(row, form, strict=not named) for row in sample] for form in ([named] if named else READERS)}
    good = {form: {n: pair for n, pair in enumerate(read) if isinstance(pair, dict)} for form, read in made.items()}
    if good.get("preference"):  # the same strings, as messages
        good.pop("text", None)
    best = max(good, key=lambda form: len(good[form]))
    if not good[best]:
        why = {form: [": ".join(one.args) for one in read if isinstance(one, Drop)][0] for form, read in made.items()}
        near = max(why, key=lambda form: (" is missing" not in why[form], len(READS[form] & {*columns})))
        close = nearest(why[near].split()[1], columns) if " is missing" in why[near] else ""
        what = f"Nearest is {near}, but its first row: {why[near]}.{close}"
        if {"prompt", "response", "helpfulness"} <= {*columns}:
            what = "It scores single replies; HelpSteer2's pairs are read with data.data_dir='preference'."
        forms, has = "; ".join(f"{form}: {READERS[form][0]}" for form in READERS), ", ".join(columns[:20])
        is_not = f"{where} is not {named or 'of a form that is read'}. Its columns: {has:.300}."
        raise RecipeError(f"{is_not} {what} Rename columns, name data.format or write data.reader. Read are {forms}.")
    for form, read in good.items():
        others = [n for n, pair in read.items() if pair != good[best].get(n)]
        if len(others) > few * len(sample):
            how = f"{best} reads {len(good[best])} of its first {len(sample)} rows, {form} {len(others)} otherwise"
            raise RecipeError(f"{where} fits several forms: {how}. Name one: data.format={best!r} or {form!r}.")
    return best

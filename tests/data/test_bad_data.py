"""Broken files, and what becomes of each: one error that names the place, a counted drop, or a right reading.

Nothing else may happen: no other exception, no silent loss, no hang.
"""

from __future__ import annotations

import gzip
import json
import lzma
import random
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from making import write_jsonl

from dpo_recipes.data import preference_dataset as data
from dpo_recipes.errors import RecipeError
from dpo_recipes.formats.readers import FORMATS
from dpo_recipes.recipe.data import Data

GOOD = [{"prompt": f"q{i:02}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]


def talk(question: str, reply: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


TALKS = [{"chosen": talk(f"q{i:02}", "good"), "rejected": talk(f"q{i:02}", "bad")} for i in range(30)]
SHARE = [
    {
        "conversations": [{"from": "human", "value": f"q{i}"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    for i in range(30)
]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD).encode()
ROLES = "none of human, gpt, observation, function_call, system, user, assistant, tool, developer"
BITS = "that UTF-8 JSON of 64 bits cannot hold"
TRANSCRIPT = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
HALF = {"prompt": "q", "chosen": "a"}
IMAGE = [{"type": "image", "url": "x"}]


def csv(*lines: str) -> bytes:
    return "\n".join(("prompt,chosen,rejected", *lines, "")).encode()


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def parquet(path: Path, rows: list[dict] = GOOD) -> bytes:
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path.read_bytes()


# Files that cannot be read: name -> (file, content, words of the error)
UNREADABLE: dict[str, tuple[str, object, str]] = {
    "empty": ("p.jsonl", b"", "has no rows"),
    "only blank lines": ("p.jsonl", b"\n\n  \n", "has no rows"),
    "an empty array": ("p.json", b"[]", "has no rows"),
    "json cut": ("p.json", json.dumps(GOOD).encode()[:-9], "is not readable as json: "),
    "jsonl cut": ("p.jsonl", LINES[:-9], "line 30 is not one whole JSON object"),
    "a line of garbage": ("p.jsonl", LINES + b"garbage\n", "line 31 is not one whole JSON object"),
    "two objects a line": ("p.jsonl", LINES.replace(b"}\n", b"} ", 1), "line 1 is not one whole JSON object"),
    "an object over lines": ("p.json", b'{\n "prompt": "x"\n}', "it is one object over several lines"),
    "jsonl with arrays": ("p.jsonl", b'["q", "a", "b"]\n["q", "a", "b"]\n', "is not readable as jsonl: "),
    "array of arrays": ("p.json", b'[["q", "a", "b"]]', "item 0 is ['q', 'a', 'b'], not an object with columns"),
    "numbers": ("p.jsonl", b"1\n2\n", "line 1 is 1, not an object with columns"),
    "null": ("p.jsonl", b"null\n", "line 1 is None, not an object with columns"),
    "nested beyond reason": (
        "p.jsonl",
        b'{"prompt":' + b"[" * 99999 + b"]" * 99999 + b"}",
        "is not readable as jsonl: ",
    ),
    "a number of 5,000 digits": ("p.jsonl", b'{"prompt":' + b"9" * 5000 + b"}", "is not readable as jsonl: "),
    "utf-16": ("p.jsonl", LINES.decode().encode("utf-16"), "is text in UTF-16"),
    "utf-32": ("p.json", json.dumps(GOOD).encode("utf-32"), "iconv -f UTF-"),
    "latin-1": ("p.jsonl", '{"prompt": "é"}'.encode("latin-1"), "is not in UTF-8: byte 0xe9"),
    "latin-1 csv": ("p.csv", csv("é,a,b").decode().encode("latin-1"), "is not in UTF-8: byte 0xe9"),
    "bytes of zero": ("p.jsonl", bytes(99), "is not text in UTF-8: byte 0 is 0"),
    "a column twice": ("p.csv", b"prompt,chosen,chosen,rejected\nq,a,b,c\n", "line 1 names the column 'chosen' twice"),
    "csv header only": ("p.csv", csv(), "has no rows"),
    "csv without header": ("p.csv", b"q,good 1,bad 1\nr,good 2,bad 2\n", "Its columns: q, good 1, bad 1."),
    "too few cells": ("p.csv", csv("q,a"), "line 2 has fewer cells than line 1"),
    "too many cells": ("p.csv", csv("q,a,b", "q,a,b,c"), "line 3 has more cells than line 1"),
    "an open quote": ("p.csv", csv('q,"a,b', "r,a,b"), "is not readable as csv: "),
    "semicolons": ("p.csv", b"prompt;chosen;rejected\nq;a;b\n", "line 1 has semicolons between its columns"),
    "gzip cut": ("p.jsonl.gz", gzip.compress(LINES)[:-20], "is not readable as jsonl.gz: "),
    "no gzip": ("p.csv.gz", csv("q,a,b"), "is not readable as csv.gz: Not a gzipped file"),
    "xz cut": ("p.jsonl.xz", lzma.compress(LINES)[:-20], "is not readable as jsonl.xz: "),
    "no xz": ("p.csv.xz", csv("q,a,b"), "is not readable as csv.xz: "),
    "zstd cut": ("p.jsonl.zst", zstd(LINES)[:-20], "is not readable as jsonl.zst: "),
    "no zstd": ("p.json.zst", LINES, "is not readable as json.zst: "),
    "zstd under another name": ("p.jsonl", zstd(LINES), "is compressed with zstd, not what its name says. Add .zst"),
    "parquet packed": ("p.parquet.gz", gzip.compress(LINES), "is a compressed file"),
    "parquet cut": ("p.parquet", lambda path: parquet(path)[:-50], "is not readable as parquet: "),
    "parquet by name": ("p.parquet", LINES, "is not readable as parquet: "),
    "parquet of nothing": ("p.parquet", b"", "has no rows: it is an empty file"),
    "a column twice in parquet": (
        "p.parquet",
        lambda path: pa.parquet.write_table(pa.table([["q"], ["a"], ["b"], ["c"]], [*GOOD[0], "chosen"]), path),
        "p.parquet",
    ),
    "an unknown ending": ("p.txt", LINES, "is text without columns"),
    "columns missing": (
        "p.jsonl",
        b'{"prompt": "q", "chosen": "a"}\n' * 3,
        "Nearest is preference, which needs rejected.",
    ),
    "misspelt": (
        "p.jsonl",
        b'{"prompt": "q", "chosen": "a", "rejectd": "b"}\n',
        "column 'rejectd': did you mean 'rejected'?",
    ),
    "one text column": ("p.jsonl", b'{"text": "x"}\n', "holds plain text, one to a row"),
    "an empty object": ("p.jsonl", b"{}\n", "Its columns: ."),
    "numbers as sides": (
        "p.jsonl",
        b'{"prompt": "q", "chosen": 1, "rejected": 2}\n',
        "0 of its first 1 rows can be used, read as 'preference'. malformed: chosen is int",
    ),
    "bytes": ("p.parquet", lambda path: parquet(path, [{**GOOD[0], "chosen": b"a"}] * 3), "chosen holds a bytes"),
    "raw HelpSteer2": (
        "p.jsonl",
        b'{"prompt": "q", "response": "a", "helpfulness": 3}\n',
        "data.data_dir='preference'",
    ),
    "one row": ("p.jsonl", b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n', "leaves none to train on"),
    "all alike": ("p.jsonl", LINES.splitlines()[0] * 1 + b"\n" + LINES.splitlines()[0], "leaves none to train on"),
    "half of it broken": (
        "p.jsonl",
        LINES + b'{"prompt": "q", "chosen": [1], "rejected": "b"}\n' * 30,
        "malformed: chosen is int, not dict: 30 (rows 30, 31, 32 ...: 1)",
    ),
    "two forms": (
        "p.jsonl",
        LINES + "".join(json.dumps({"prompt": "q", **row}) + "\n" for row in TALKS).encode(),
        "preference reads 30 of its first 60 rows, ultrafeedback 30 otherwise",
    ),
    "csv of python's lists": (
        "p.csv",
        csv(*["q,\"[{'role': 'assistant', 'content': 'a'}]\",b"] * 3),
        "is messages written as text",
    ),
}


# Rows beside 30 good ones: name -> (the good ones, the broken one, the reason it is dropped for, what was found)
DROPPED: dict[str, tuple[list[dict], object, str, str]] = {
    "a number": (
        GOOD,
        {"prompt": "q", "chosen": 42, "rejected": "b"},
        "malformed: chosen is int, not str or list or dict",
        "42",
    ),
    "a truth": (
        GOOD,
        {"prompt": "q", "chosen": True, "rejected": "b"},
        "malformed: chosen is bool, not str or list or dict",
        "True",
    ),
    "NaN": (
        GOOD,
        {"prompt": "q", "chosen": float("nan"), "rejected": "b"},
        f"malformed: chosen holds a float {BITS}",
        "nan",
    ),
    "a huge number": (
        GOOD,
        {"prompt": 10**30, "chosen": "a", "rejected": "b"},
        f"malformed: prompt holds a int {BITS}",
        "1" + "0" * 30,
    ),
    "a lone surrogate": (
        GOOD,
        {"prompt": "q", "chosen": "\ud83d x", "rejected": "b"},
        f"malformed: chosen holds a str {BITS}",
        "'\\ud83d x'",
    ),
    "null": (GOOD, {"prompt": "q", "chosen": None, "rejected": "b"}, "empty side", ""),
    "an empty list": (TALKS, {"chosen": [], "rejected": TALKS[0]["rejected"]}, "empty side", ""),
    "an empty dict as a side": (GOOD, {"prompt": "q", "chosen": {}, "rejected": "b"}, "empty side", ""),
    "an empty dict": (
        TALKS,
        {"chosen": [{}], "rejected": TALKS[0]["rejected"]},
        "malformed: chosen holds a message without 'role'",
        "{}",
    ),
    "a missing side": (GOOD, HALF, "malformed: rejected is missing", "['prompt', 'chosen']"),
    "a missing prompt": (
        GOOD,
        {"chosen": "a", "rejected": "b"},
        "malformed: chosen is text, and there is no prompt",
        "'a'",
    ),
    "a null prompt": (GOOD, {"prompt": None, "chosen": "a", "rejected": "b"}, "empty prompt", ""),
    "a blank side": (GOOD, {"prompt": "q", "chosen": " \n\t", "rejected": "b"}, "empty side", ""),
    "zero-width only": (GOOD, {"prompt": "q", "chosen": "\u200b\ufeff\u2060", "rejected": "b"}, "empty side", ""),
    "NUL only": (GOOD, {"prompt": "\0", "chosen": "a", "rejected": "b"}, "empty prompt", ""),
    "sides that differ in white space": (
        GOOD,
        {"prompt": "q", "chosen": "a b\n", "rejected": "a  b"},
        "identical sides but for white space or marks that are not seen",
        "",
    ),
    "sides that differ in a zero-width mark": (
        GOOD,
        {"prompt": "q", "chosen": "a\u200bb", "rejected": "ab"},
        "identical sides but for white space or marks that are not seen",
        "",
    ),
    "sides that differ in how Unicode spells an accent": (
        GOOD,
        {"prompt": "q", "chosen": "caf\u00e9", "rejected": "cafe\u0301"},
        "identical sides but for white space or marks that are not seen",
        "",
    ),
    "a header line again": (
        GOOD,
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        "repeated header line",
        "",
    ),
    "the same side": (GOOD, {"prompt": "q", "chosen": "a", "rejected": "a"}, "identical sides", ""),
    "a transcript": (
        GOOD,
        {"prompt": "Human: q", "chosen": "a", "rejected": "b"},
        "malformed: prompt was rendered before, by a transcript",
        "'Human: q'",
    ),
    "messages as text": (
        GOOD,
        {"prompt": '[{"role": "user"}]', "chosen": "a", "rejected": "b"},
        "malformed: prompt is messages written as text",
        '\'[{"role": "user"}]\'',
    ),
    "a nested list": (
        TALKS,
        {"chosen": [[[]]], "rejected": TALKS[0]["rejected"]},
        "malformed: chosen is list, not dict",
        "[]",
    ),
    "strings as messages": (
        TALKS,
        {"chosen": ["q", {"role": "assistant", "content": "a"}], "rejected": TALKS[0]["rejected"]},
        "malformed: chosen is str, not dict",
        "'q'",
    ),
    "a weight below 0": (
        GOOD,
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": -1},
        "malformed: weight is not a number of 0 or more",
        "-1",
    ),
    "a weight that is none": (
        GOOD,
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": float("nan")},
        "malformed: weight is not a number of 0 or more",
        "nan",
    ),
    "a weight in words": (
        GOOD,
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": "high"},
        "malformed: weight is not a number of 0 or more",
        "'high'",
    ),
    "a weight of infinity": (
        GOOD,
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": "inf"},
        "malformed: weight is not a number of 0 or more",
        "'inf'",
    ),
    "a weight that is a yes": (
        GOOD,
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": True},
        "malformed: weight is not a number of 0 or more",
        "True",
    ),
    "an unknown role": (
        TALKS,
        {"chosen": [{"role": "asistant", "content": "a"}], "rejected": []},
        f"malformed: chosen holds a role that is {ROLES}",
        "'asistant'",
    ),
    "a role that is a list": (
        TALKS,
        {"chosen": [{"role": ["user"], "content": "a"}], "rejected": []},
        f"malformed: chosen holds a role that is {ROLES}",
        "['user']",
    ),
    "no content": (
        TALKS,
        {"chosen": [{"role": "user", "text": "a"}], "rejected": []},
        "malformed: chosen holds a message without 'content'",
        "{'role': 'user', 'text': 'a'}",
    ),
    "a number as content": (
        TALKS,
        {"chosen": [{"role": "user", "content": 3}], "rejected": []},
        "malformed: chosen content is int, not str",
        "3",
    ),
    "a dict as content": (
        TALKS,
        {"chosen": [{"role": "user", "content": {"text": "a"}}], "rejected": []},
        "malformed: chosen content is dict, not str",
        "{'text': 'a'}",
    ),
    "an image": (
        TALKS,
        {"chosen": [{"role": "user", "content": IMAGE}], "rejected": []},
        "malformed: chosen holds an image in a block, as url: images are read from a column images",
        repr(IMAGE[0]["url"]),
    ),
    "a block without type": (
        TALKS,
        {"chosen": [{"role": "user", "content": [{"text": "a"}]}], "rejected": []},
        "malformed: chosen holds content of type None, where text and images are read",
        "[{'text': 'a'}]",
    ),
    "both spellings": (
        TALKS,
        {"chosen": [{"from": "human", "content": "a"}], "rejected": []},
        "malformed: chosen mixes role and content with from and value",
        "{'from': 'human', 'content': 'a'}",
    ),
    "the user last": (
        TALKS,
        {"chosen": TALKS[0]["chosen"][:1], "rejected": TALKS[0]["rejected"]},
        "last role is not assistant",
        "",
    ),
    "another question": (
        TALKS,
        {"chosen": TALKS[0]["chosen"], "rejected": TALKS[1]["rejected"]},
        "prompts differ between sides",
        "",
    ),
    "no question": (TALKS, {side: TALKS[0][side][1:] for side in TALKS[0]}, "empty prompt", ""),
    "tools as a word": (GOOD, {**GOOD[0], "tools": "clock"}, "malformed: tools is str, not list", "'clock'"),
    "tools as a dict": (
        GOOD,
        {**GOOD[0], "tools": {"name": "clock"}},
        "malformed: tools is dict, not list",
        "{'name': 'clock'}",
    ),
    "switches as a list": (
        GOOD,
        {**GOOD[0], "chat_template_kwargs": [1]},
        "malformed: chat_template_kwargs is list, not dict",
        "[1]",
    ),
    "another column asks": (
        GOOD,
        {**GOOD[0], "context": "It rains."},
        "malformed: context holds something, which preference does not read",
        "'It rains.'",
    ),
    "a system text": (
        GOOD,
        {**GOOD[0], "prompt": "z", "system_prompt": "Be brief."},
        "malformed: system_prompt holds something, which preference does not read",
        "'Be brief.'",
    ),
    "a ShareGPT number": (
        SHARE,
        {**SHARE[0], "conversations": 3},
        "malformed: conversations is int, not str or list or dict",
        "3",
    ),
    "a ShareGPT turn of gpt": (
        SHARE,
        {**SHARE[0], "conversations": [{"from": "gpt", "value": "x"}]},
        "prompt ends with the assistant",
        "",
    ),
    "nested too deeply": (
        GOOD,
        {**GOOD[0], "tools": json.loads("[" * 600 + "]" * 600)},
        "malformed: row is nested too deeply",
        "",
    ),
    "the same pair again": (GOOD, GOOD[7], "exact duplicate", ""),
}

# Odd, and right: name -> (file, content, rows read, the first row's chosen reply)
ODD: dict[str, tuple[str, object, str]] = {
    "a byte-order mark": ("p.jsonl", b"\xef\xbb\xbf" + LINES, "good 0"),
    "a byte-order mark in csv": ("p.csv", b"\xef\xbb\xbf" + csv("q,a,b", "r,a,b"), "a"),
    "windows line ends": ("p.jsonl", LINES.replace(b"\n", b"\r\n"), "good 0"),
    "NA and None in csv": ("p.csv", csv("q,NA,None", "r,null,nan"), "NA"),
    "lines in a csv cell": ("p.csv", csv('q,"a\nb",c', "r,a,b"), "a\nb"),
    "an unnamed csv column": ("p.csv", b",prompt,chosen,rejected\n0,q,a,b\n1,r,a,b\n", "a"),
    "no newline at the end": ("p.jsonl", LINES.rstrip(), "good 0"),
    "U+2028": (
        "p.jsonl",
        json.dumps({**GOOD[0], "chosen": "a\u2028b"}, ensure_ascii=False).encode() + b"\n" + LINES,
        "a\u2028b",
    ),
    "right to left": (
        "p.jsonl",
        json.dumps({**GOOD[0], "chosen": "\u202eשלום"}).encode() + b"\n" + LINES,
        "\u202eשלום",
    ),
    "NUL inside": ("p.jsonl", json.dumps({**GOOD[0], "chosen": "a\0b"}).encode() + b"\n" + LINES, "a\0b"),
    "5 MB": ("p.jsonl", json.dumps({**GOOD[0], "chosen": "é " * 2_500_000}).encode() + b"\n" + LINES, "é " * 2_500_000),
    "extra columns": (
        "p.jsonl",
        json.dumps({**GOOD[0], "x": {"y": [None, 1, "z"]}}).encode() + b"\n" + LINES,
        "good 0",
    ),
    "empty columns": (
        "p.jsonl",
        json.dumps({**GOOD[0], "input": "", "system": None}).encode() + b"\n" + LINES,
        "good 0",
    ),
    "sides that differ in one letter's case": (
        "p.jsonl",
        json.dumps({"prompt": "q", "chosen": "Yes", "rejected": "yes"}).encode() + b"\n" + LINES,
        "Yes",
    ),
    "sides that differ after a long start": (
        "p.jsonl",
        json.dumps({"prompt": "q", "chosen": "a " * 900 + "b", "rejected": "a " * 900 + "c"}).encode() + b"\n" + LINES,
        "a " * 900 + "b",
    ),
    "a name in capitals": ("P.JSONL", LINES, "good 0"),
}


def read(path: Path, **fields):
    began = time.monotonic()
    try:
        return data.read(Data(str(path), **fields), {str(path): 1.0})
    finally:
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(("name", "content", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_is_one_error_that_names_it(tmp_path, name, content, words):
    path = tmp_path / name
    written = content(path) if callable(content) else content
    if written is not None:
        path.write_bytes(written)
    with pytest.raises(RecipeError) as caught:
        read(path)
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message and len(message) < 1600, message


@pytest.mark.parametrize(("good", "row", "reason", "found"), DROPPED.values(), ids=DROPPED)
def test_a_broken_row_is_dropped_and_counted_or_named_in_the_error(tmp_path, good, row, reason, found):
    path = write_jsonl(tmp_path / "p.jsonl", [*good[:20], row, *good[20:]])
    report = read(path).report["train"]
    assert report["dropped"] == {reason: {"count": 1, "rows": ["20"]}}
    assert (report["rows"], report["kept"] + report["held_out"]) == (31, 30)
    if reason == "exact duplicate":  # never too many
        return

    with pytest.raises(RecipeError) as caught:
        read(path, max_dropped=0.01)
    form = "sharegpt" if good is SHARE else "preference"
    shown = f": {found}" if found else ""
    message = str(caught.value)
    assert (
        f"p.jsonl (train): 1 of 31 rows cannot be used, read as {form!r}. {reason}: 1 (rows 20 ...{shown})" in message
    )
    assert "Correct or remove them, or allow it: data.max_dropped=0.04." in message
    if "rendered before" not in reason:  # which has ways out of its own behind that
        assert message.endswith("data.max_dropped=0.04.")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "content", "first"), ODD.values(), ids=ODD)
def test_what_is_odd_and_right_is_read_as_it_is(tmp_path, name, content, first):
    (tmp_path / name).write_bytes(content)
    pairs = read(tmp_path / name)
    by_number = {row["row"]: row for row in (*pairs.train, *pairs.eval)}
    assert by_number["0"]["chosen"] == [{"role": "assistant", "content": first}]
    assert {*pairs.report["train"]["dropped"]} <= {"exact duplicate"}


def test_a_preference_that_is_no_number_takes_no_side(tmp_path):
    lines = [f"q{number},a,b,2" for number in range(30)]
    path = tmp_path / "p.csv"
    path.write_text("\n".join(("prompt,response_1,response_2,preference_strength", *lines, "q,a,b,nan\n")))
    report = read(path).report["train"]
    assert report["dropped"] == {"malformed: preference_strength is not a number": {"count": 1, "rows": ["30"]}}


WORDS = (
    "",
    "a",
    "Human: x",
    "\n\nHuman: q\n\nAssistant: a",
    "\ud800",
    '{"a": 1}',
    "[]",
    " \0",
    "user",
    "gpt",
    "text",
)
VALUES = (None, 0, 1, -2, 10**40, 1.5, float("nan"), float("inf"), True)
KEYS = ("role", "content", "from", "value", "type", "text", "tool_calls")


def anything(draw: random.Random, depth: int = 0):
    """Anything that a JSON file may hold, more often what a reader looks for."""
    kind = draw.randrange(5 if depth < 4 else 3)
    if kind == 3:
        return [anything(draw, depth + 1) for _ in range(draw.randrange(3))]
    if kind == 4:
        return {draw.choice(KEYS): anything(draw, depth + 1) for _ in range(draw.randrange(4))}
    return draw.choice((*WORDS, *WORDS, *VALUES))


def some_row(draw: random.Random, columns: list[str]) -> dict:
    """A row with most of these columns."""
    return {column: anything(draw) for column in columns if draw.random() < 0.9}


@pytest.mark.parametrize("form", FORMATS)
def test_whatever_a_file_holds_is_a_pair_a_counted_drop_or_one_error(tmp_path, form):
    draw = random.Random(form)
    columns = sorted(FORMATS[form].reads)
    good = {"text": GOOD, "preference": GOOD, "hh_rlhf": [TRANSCRIPT], "sharegpt": SHARE}.get(form, [])
    rows = [*good, *(some_row(draw, columns) for _ in range(300))]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    try:
        pairs = read(path, format=form, max_dropped=1.0, eval=0.5)
    except RecipeError as error:
        assert str(path) in str(error)
        return

    report = pairs.report["train"]
    dropped = sum(drop["count"] for drop in report["dropped"].values())
    assert report["kept"] + report["held_out"] + dropped == report.get("pairs_made", report["rows"])
    assert report["rows"] == len(rows) and report.get("pairs_made", 331) > 330
    assert len(pairs.train.to_list()) == report["kept"] and len(pairs.eval.to_list()) == report["held_out"]


def test_folders_that_hold_no_whole_set(tmp_path):
    def refused(words: str) -> None:
        with pytest.raises(RecipeError, match=words):
            read(tmp_path)

    refused("holds no pairs")
    datasets.Dataset.from_list(GOOD).save_to_disk(tmp_path / "train")
    [file] = (tmp_path / "train").glob("*.arrow")
    assert len(read(tmp_path, eval=0.1).train) == 27
    file.write_bytes(file.read_bytes()[:300])
    refused("is not readable as arrow")
    file.unlink()
    refused("holds no pairs")


def test_a_folder_that_is_missing_and_a_file_of_another_users(tmp_path):
    with pytest.raises(RecipeError, match="does not exist"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "p.jsonl").mkdir()
    with pytest.raises(RecipeError, match="holds no pairs"):
        read(tmp_path / "p.jsonl")


def test_the_table_is_long():
    assert len(UNREADABLE) + len(DROPPED) + len(ODD) >= 60

"""Token ids against TRL's own, the pairs that are dropped, and what the cache finds again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from accelerate import PartialState
from datasets import Dataset
from making import (
    CHATML,
    DATED,
    THINKING,
    make_dataset,
    make_pair,
    make_pairs,
    make_text_pairs,
    make_tokenizer,
    make_tokenizer_with_start,
    message,
    tokenize_pairs,
    write_jsonl,
)
from trl import DPOTrainer

from dpo_recipes import RecipeError
from dpo_recipes.data import pair_ids
from dpo_recipes.data import tokenize as tokens
from dpo_recipes.data.chat_template import pin_date

TESTS = Path(__file__).parents[1]
TOOLED = "{%- if tools -%}{{ 'Tools: ' ~ (tools | tojson) ~ '\\n' }}{%- endif -%}{{ mood or 'calm' }}\n" + CHATML


# TRL's own tokens

TURNS = [message("user", "Hi"), message("assistant", "Hello"), message("user", "And?")]
SYSTEM = message("system", "Be brief.")
LONG_COMPLETION = [message("assistant", "x"), *TURNS[:2]]
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
STARTED = "{{ '<s>' }}" + CHATML

# Kind of pairs -> (how to make the tokenizer, its template, the pairs)
KINDS = {
    "messages": (make_tokenizer, CHATML, make_pairs(30)),
    "multi-turn": (
        make_tokenizer,
        CHATML,
        [make_pair("", "a", "b") | {"prompt": TURNS}, make_pair("one", "a\nb", "")],
    ),
    "system": (make_tokenizer, CHATML, [make_pair("", "a", "b") | {"prompt": [SYSTEM, *TURNS]}]),
    "long completion": (make_tokenizer, CHATML, [make_pair("q", "a", "b") | {"chosen": LONG_COMPLETION}]),
    "tools as a list": (make_tokenizer, TOOLED, [make_pair("2+2", "4", "5", tools=[TOOL])]),
    "tools as json": (make_tokenizer, TOOLED, [make_pair("2+2", "4", "5", tools=json.dumps([TOOL]))]),
    "own kwargs": (
        make_tokenizer,
        TOOLED,
        [
            make_pair("hi", "a", "b", chat_template_kwargs={"mood": "glad"}),
            make_pair("hi", "a", "b", chat_template_kwargs={"mood": "sad"}),
        ],
    ),
    "no prefix": (make_tokenizer, THINKING, make_pairs(4)),
    "a start token in the template": (make_tokenizer_with_start, STARTED, make_pairs(4)),
    "text": (
        make_tokenizer,
        CHATML,
        make_text_pairs(("Q: a", " b", " c"), ("", "b<|im_end|>", "c"), ("e\n", "", "d\n")),
    ),
    "text with a start token": (
        make_tokenizer_with_start,
        CHATML,
        make_text_pairs(("Q: a", " b", " c"), ("<s>x", "y", "z")),
    ),
}


def by_trl(pairs, tokenizer, max_length=None):
    """The pairs as DPOTrainer's own preparation returns them."""
    PartialState()  # its logger asks for one
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    return DPOTrainer._prepare_dataset(trainer, pairs, tokenizer, arguments, "train")


def ids(found):
    of_pairs = []
    for row in found:
        of_pairs.append([row[name] for name in tokens.IDS])
    return of_pairs


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_exactly_those_of_trl(kind):
    make, template, rows = KINDS[kind]
    text = kind.startswith("text")
    mine, part = tokenize_pairs(rows, make(template), text=text)
    theirs = by_trl(make_dataset(rows, text), make(template))
    assert ids(mine) == ids(theirs) and part["pairs"] == len(rows)
    assert set(mine.column_names) == {*theirs.column_names, "length"}
    assert mine["prompt"][:] == make_dataset(rows, text)["prompt"][:]


def test_the_prompts_that_fill_max_length_are_those_that_trl_drops():
    rows = [row | make_pair("", "yes", "no") | {"prompt": row["prompt"]} for row in make_pairs(30)]
    mine, part = tokenize_pairs(rows, max_length=50)
    theirs = by_trl(make_dataset(rows), make_tokenizer(), max_length=50)
    assert ids(mine) == ids(theirs)
    assert part["dropped"]["prompt fills max_length"]["count"] == 30 - len(theirs) > 0


@pytest.mark.slow
def test_several_processes_and_batches_give_the_same_and_make_no_noise(monkeypatch, capfd):
    rows = make_pairs(2100)
    datasets.enable_progress_bars()
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    processes = []
    plain_map = Dataset.map

    def watched_map(self, *args, **kwargs):
        processes.append(kwargs["num_proc"])
        return plain_map(self, *args, **kwargs)

    monkeypatch.setattr(Dataset, "map", watched_map)
    by_two, report_of_two = tokenize_pairs(rows)
    fewer, _ = tokenize_pairs(rows[:1900])
    by_one, report_of_one = tokenize_pairs(rows, num_proc=1)
    tokenize_pairs(rows[:2], num_proc=8)
    assert processes == [2, None, None, 2]
    assert ids(by_two) == ids(by_one) and report_of_two == report_of_one
    assert ids(fewer) == ids(by_two)[:1900]
    output = capfd.readouterr()
    assert "Tokenizing train pairs" in output.err
    assert not any(word in (output.out + output.err).lower() for word in ("fork", "warn", "parallelism"))


def test_a_prompt_is_tokenised_once_for_both_sides_where_special_tokens_cut_it_off():
    tokenizer = make_tokenizer()
    asked = []

    class Watched:
        def __call__(self, strings, **options):
            asked.extend(strings)
            return tokenizer(strings, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    rows = make_pairs(5)
    tokens._tokenize({"row": ["0"] * 5, **make_dataset(rows).to_dict()}, tokenizer=Watched(), text=False, ends={1})
    questions = [row["prompt"][0]["content"] for row in rows]
    whole_pair = 3  # the first pair, which is tokenised as TRL does too, to compare
    times = []
    for question in questions:
        times.append(sum(question in text for text in asked))
    assert times == [1 + whole_pair, 1, 1, 1, 1]


def test_where_cutting_changes_the_ids_a_batch_is_tokenised_whole(monkeypatch):
    monkeypatch.setattr(pair_ids, "_marks", lambda tokenizer: ("e",))  # in the middle of words
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["hen"])
    rows = [make_pair("when then", "a", "b"), make_pair("hen", "a", "b")]
    mine, _ = tokenize_pairs(rows, tokenizer)
    assert ids(mine) == ids(by_trl(make_dataset(rows), tokenizer))


# Pairs that are dropped


def test_truncation_drops_what_it_makes_identical_and_on_request_what_it_cuts():
    rows = make_text_pairs(
        ("12345678", "a", "b"),
        ("1234", "same start", "same end"),
        ("1234", "sam", "same"),
        ("12", "abcdefgh", "b"),
        ("12", "ab", "a"),
        ("12", "ab", "ab "),
    )
    pairs, part = tokenize_pairs(rows, text=True, max_length=8)
    assert pairs["row"][:] == ["file:2", "file:3", "file:4", "file:5"]
    assert part["dropped"] == {
        "prompt fills max_length": {"count": 1, "rows": ["file:0"]},
        "identical after truncation": {"count": 1, "rows": ["file:1"]},
    }

    pairs, part = tokenize_pairs(rows, text=True, max_length=8, drop_truncated=True)
    assert pairs["row"][:] == ["file:4", "file:5"] and part["truncated"]["pairs"] == 0
    cut = part["dropped"]["truncated: a side loses its end token"]
    assert cut == {"count": 2, "rows": ["file:2", "file:3"]}
    for row in pairs:
        room = 8 - len(row["prompt_ids"])
        assert row["chosen_ids"][:room] != row["rejected_ids"][:room]

    _, part = tokenize_pairs(rows, text=True, max_length=7)
    assert part["dropped"]["identical after truncation"]["rows"] == ["file:1", "file:2"]


@pytest.mark.slow
def test_identical_after_truncation_is_what_comparing_the_cut_sides_says():
    draw = np.random.default_rng(0)

    def side():
        return "".join(draw.choice(["a", "b"], draw.integers(1, 6)))

    rows = make_text_pairs(*(("p" * draw.integers(1, 5), side(), side()) for _ in range(300)))
    every, _ = tokenize_pairs(rows, text=True)
    for max_length in range(2, 12):
        kept, _ = tokenize_pairs(rows, text=True, max_length=max_length)
        expected = []
        for row in every:
            room = max_length - len(row["prompt_ids"])
            if room > 0 and row["chosen_ids"][:room] != row["rejected_ids"][:room]:
                expected.append(row["row"])
        assert kept["row"][:] == expected


def test_sides_that_the_template_makes_identical_are_told_from_truncated_ones():
    template = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    rows = make_pairs(3)
    for side, thought in (("chosen", "one"), ("rejected", "two")):
        rows[1][side][0]["content"] = f"{thought}</think>same"
    part = tokenize_pairs(rows, make_tokenizer(template), max_length=1024)[1]
    assert part["dropped"] == {"identical after the chat template": {"count": 1, "rows": ["file:1"]}}


def test_rows_that_the_template_refuses_are_dropped_with_its_words_and_named():
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    with_system = make_pair("q", "a", "b") | {"prompt": [message("system", "s"), message("user", "q")]}
    rows = [make_pair("q", "a", "b"), with_system]
    pairs, part = tokenize_pairs(rows, make_tokenizer(strict))
    assert part["dropped"] == {"the chat template refuses it: no system role": {"count": 1, "rows": ["file:1"]}}
    assert pairs["row"][:] == ["file:0"] and part["tokens"]["prompt"]["max"] == part["tokens"]["prompt"]["p50"]

    with pytest.raises(RecipeError, match=r"refuses every row. Its own words: no system role. .*data\.system=merge"):
        tokenize_pairs([with_system] * 3, make_tokenizer(strict))
    stream = make_dataset(rows).to_iterable_dataset()
    assert len(list(tokenize_pairs(stream, make_tokenizer(strict))[0])) == 1
    stream = make_dataset([with_system] * 30).to_iterable_dataset()
    with pytest.raises(RecipeError, match="refuses every row"):
        list(tokenize_pairs(stream, make_tokenizer(strict))[0])


# The cache, and streams


def test_a_template_that_prints_the_day_is_cached_by_day_and_a_pinned_one_is_not(monkeypatch):
    pinned = pin_date(DATED, "2025-07-08")
    live_keys, pinned_keys, pinned_ids = [], [], []
    for day in (date(2026, 1, 1), date(2026, 1, 2)):
        monkeypatch.setattr(tokens, "date", SimpleNamespace(today=lambda day=day: day))
        pairs = make_dataset(make_pairs(3))
        live_keys.append(tokens._key(pairs, make_tokenizer(DATED), False, {1}))
        pinned_keys.append(tokens._key(pairs, make_tokenizer(pinned), False, {1}))
        tokenized, _ = tokenize_pairs(pairs, make_tokenizer(pinned))
        pinned_ids.append(ids(tokenized))
    assert len(set(live_keys)) == 2 and len(set(pinned_keys)) == 1
    first_day, second_day = pinned_ids
    assert first_day == second_day
    assert "Today Date: 08 July 2025" in make_tokenizer().decode(first_day[0][0])


def test_the_key_is_what_the_ids_depend_on_and_nothing_else():
    pairs, tokenizer = make_dataset(make_pairs(3)), make_tokenizer()
    key = tokens._key(pairs, tokenizer, False, {1})
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=4)  # TRL's key would change here
    assert tokens._key(pairs, tokenizer, False, {1}) == key
    assert tokens._key(pairs, make_tokenizer(), False, {1}) == key

    grown = make_tokenizer()
    grown.add_tokens(["<more>"])
    other_keys = {
        tokens._key(pairs, grown, False, {1}),
        tokens._key(pairs, make_tokenizer(THINKING), False, {1}),
        tokens._key(pairs, tokenizer, True, {1}),
        tokens._key(pairs, tokenizer, False, {1, 2}),
        tokens._key(pairs.select([0]), tokenizer, False, {1}),
    }
    assert len({key, *other_keys}) == 6


AGAIN = """
import json, sys
sys.path[:0] = {paths!r}
from datasets import load_dataset
from making import make_tokenizer
from dpo_recipes.data import tokenize as tokens
if {forbidden}:
    tokens._tokenize = None
tokenizer = make_tokenizer()
if {forbidden}:
    tokenizer(["a", "bb"], padding=True)
pairs = load_dataset("json", data_files={file!r}, split="train")
found, part = tokens.prepare(pairs, tokenizer, text=False, max_length={length}, ends={{tokenizer.eos_token_id}},
                             drop_truncated=False, num_proc={num_proc})
print(json.dumps([found["prompt_ids"][:], part["tokens"], found._fingerprint]))
"""


@pytest.mark.slow
def test_a_second_process_tokenises_nothing_even_at_another_max_length_or_with_more_processes(tmp_path):
    file = write_jsonl(tmp_path / "pairs.jsonl", [{"row": f"r{n}", **row} for n, row in enumerate(make_pairs(40))])
    paths = [str(TESTS), str(TESTS.parent)]

    def run(forbidden, length, num_proc):
        code = AGAIN.format(paths=paths, forbidden=forbidden, file=str(file), length=length, num_proc=num_proc)
        env = {**os.environ, "HF_HOME": str(tmp_path / "cache")}  # conftest would choose a new one
        code = code.replace("from datasets", "import conftest, os; os.environ.update(HF_HOME=HOME)\nfrom datasets", 1)
        code = f"HOME = {env['HF_HOME']!r}\n{code}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = run(False, 512, 2)
    assert run(True, 512, None) == first
    assert run(True, 500, None) == first


def test_a_stream_is_tokenised_as_it_is_read_and_counts_its_drops():
    rows = make_text_pairs(("12345678", "a", "b"), *[("12", "same start", "same end"), ("12", "a", "bc")] * 4)
    stream, part = tokenize_pairs(make_dataset(rows, text=True).to_iterable_dataset(), text=True, max_length=6)
    assert part == {"dropped": {}}
    found = list(stream.shuffle(seed=1, buffer_size=3))
    assert len(found) == 4 and set(found[0]) == {"row", "prompt", "chosen", "rejected", "length", *tokens.IDS}
    assert part["dropped"]["prompt fills max_length"] == {"count": 1, "rows": ["file:0"]}
    assert part["dropped"]["identical after truncation"]["count"] == 4
    assert len(part["dropped"]["identical after truncation"]["rows"]) == 3
    plain, _ = tokenize_pairs(rows, text=True, max_length=6)
    assert sorted(ids(found)) == sorted(ids(plain))
    chat, _ = tokenize_pairs(make_dataset(make_pairs(5)).to_iterable_dataset())
    assert ids(chat) == ids(tokenize_pairs(make_pairs(5))[0])

"""Token ids against TRL's own, figures against numbers counted by hand, and each pain of tokenising provoked."""

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
from datasets import Dataset, Features, Json, Value
from making import CHATML, DATED, make_pairs, make_tokenizer, write_jsonl
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_recipes import RecipeError
from dpo_recipes.data import tokenize as tokens
from dpo_recipes.data.chat_template import pin_date

TESTS = Path(__file__).parents[1]
THINKING = CHATML.replace("<|im_start|>assistant\\n'", "<|im_start|>assistant\\n<think>\\n'")
TOOLED = "{%- if tools -%}{{ 'Tools: ' ~ (tools | tojson) ~ '\\n' }}{%- endif -%}{{ mood or 'calm' }}\n" + CHATML


def with_start(template=CHATML):
    """A tokenizer that puts a start token before text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(template)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def message(role, content):
    return {"role": role, "content": content}


def pair(prompt, chosen, rejected, **more):
    """One pair of single messages."""
    sides = {"chosen": [message("assistant", chosen)], "rejected": [message("assistant", rejected)]}
    return {"prompt": [message("user", prompt)], **sides, **more}


def dataset(rows, text=False):
    """Pairs as they come from reading: Json columns, or strings, and the name of each row."""
    rows = [{"row": f"file:{number}", **row} for number, row in enumerate(rows)]
    kind = Value("string") if text else Json()
    features = Features({name: Value("string") if name == "row" else kind for name in rows[0]})
    return Dataset.from_list(rows, features=features)


def prepare(rows, tokenizer=None, **changes):
    tokenizer = tokenizer or make_tokenizer()
    how = {"text": False, "max_length": None, "ends": {tokenizer.eos_token_id}, "drop_truncated": False}
    how |= {"num_proc": None, **changes}
    pairs = rows if hasattr(rows, "map") else dataset(rows, how["text"])
    return tokens.prepare(pairs, tokenizer, **how)


def strings(*rows):
    return [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]


# ---------------------------------------------------------------------------------------------------- TRL's own tokens

TURNS = [message("user", "Hi"), message("assistant", "Hello"), message("user", "And?")]
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
KINDS = {
    "messages": (make_tokenizer, make_pairs(30)),
    "multi-turn": (make_tokenizer, [pair("", "a", "b") | {"prompt": TURNS}, pair("one", "a\nb", "")]),
    "system": (make_tokenizer, [pair("", "a", "b") | {"prompt": [message("system", "Be brief."), *TURNS]}]),
    "long completion": (make_tokenizer, [pair("q", "a", "b") | {"chosen": [message("assistant", "x"), *TURNS[:2]]}]),
    "tools as a list": (lambda: make_tokenizer(TOOLED), [pair("2+2", "4", "5", tools=[TOOL])]),
    "tools as json": (lambda: make_tokenizer(TOOLED), [pair("2+2", "4", "5", tools=json.dumps([TOOL]))]),
    "own kwargs": (lambda: make_tokenizer(TOOLED), [
        pair("hi", "a", "b", chat_template_kwargs={"mood": mood}) for mood in ("glad", "sad")
    ]),
    "no prefix": (lambda: make_tokenizer(THINKING), make_pairs(4)),
    "a start token in the template": (lambda: with_start("{{ '<s>' }}" + CHATML), make_pairs(4)),
    "text": (make_tokenizer, strings(("Q: a", " b", " c"), ("", "b<|im_end|>", "c"), ("e\n", "", "d\n"))),
    "text with a start token": (with_start, strings(("Q: a", " b", " c"), ("<s>x", "y", "z"))),
}  # fmt: skip


def by_trl(pairs, tokenizer, max_length=None):
    """The pairs as DPOTrainer's own preparation returns them."""
    PartialState()  # its logger asks for one
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    return DPOTrainer._prepare_dataset(trainer, pairs, tokenizer, arguments, "train")


def ids(found):
    return [[row[name] for name in tokens.IDS] for row in found]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_exactly_those_of_trl(kind):
    make, rows = KINDS[kind]
    text = kind.startswith("text")
    mine, part = prepare(rows, make(), text=text)
    theirs = by_trl(dataset(rows, text), make())
    assert ids(mine) == ids(theirs) and part["pairs"] == len(rows)
    assert set(mine.column_names) == {*theirs.column_names, "length"}
    assert mine["prompt"][:] == dataset(rows, text)["prompt"][:]


def test_the_prompts_that_fill_max_length_are_those_that_trl_drops():
    rows = [row | pair("", "yes", "no") | {"prompt": row["prompt"]} for row in make_pairs(30)]
    mine, part = prepare(rows, max_length=50)
    theirs = by_trl(dataset(rows), make_tokenizer(), max_length=50)
    assert ids(mine) == ids(theirs)
    assert part["dropped"]["prompt fills max_length"]["count"] == 30 - len(theirs) > 0


@pytest.mark.slow
def test_several_processes_and_batches_give_the_same_and_make_no_noise(monkeypatch, capfd):
    rows = make_pairs(2100)
    datasets.enable_progress_bars()
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    seen = []
    plain = Dataset.map
    monkeypatch.setattr(Dataset, "map", lambda self, *a, **k: [seen.append(k["num_proc"]), plain(self, *a, **k)][1])
    many, part = prepare(rows)
    alone, same = prepare(rows[:1900])
    once, whole = prepare(rows, num_proc=1)
    prepare(rows[:2], num_proc=8)
    assert seen == [2, None, None, 2]
    assert ids(many) == ids(once) and part == whole and ids(alone) == ids(many)[:1900]
    heard = capfd.readouterr()
    assert "Tokenizing train pairs" in heard.err
    assert not any(word in (heard.out + heard.err).lower() for word in ("fork", "warn", "parallelism"))


# ------------------------------------------------------------------------------------------------- figures by hand


def test_the_report_counts_what_was_counted_by_hand():
    rows = strings(("12345678", "abc", "ab"), ("1234", "x" * 19, "y"), ("12", "a", "bcd"), ("12", "ef", "gh"))
    _, part = prepare(rows, text=True, max_length=16, micro_batch_size=4)  # a token is a byte; each side gets an end
    assert part["tokens"] == {
        "prompt": {"p50": 2, "p95": 8, "p99": 8, "max": 8},
        "chosen": {"p50": 3, "p95": 20, "p99": 20, "max": 20},
        "rejected": {"p50": 3, "p95": 4, "p99": 4, "max": 4},
    }
    assert part["truncated"] == {"chosen": 1, "rejected": 0, "pairs": 1, "rows": ["file:1"]}
    assert part["max_length_keeping_99"] == 24
    assert part["longer_chosen"] == 0.5 and part["pick_longer_accuracy"] == 0.625
    assert part["padded_tokens"] == 8 * 16
    assert part["real_tokens"] == (12 + 11) + (16 + 6) + (4 + 6) + (5 + 5)
    assert part["shared_tokens"] == part["real_tokens"] - 16
    assert part["pairs"] == 4 and part["dropped"] == {} and part["end_token"]["pairs"] == 0
    json.dumps(part)


def test_max_length_keeping_99_cuts_one_pair_in_a_hundred():
    rows = strings(*(("q", "a" * n, "b") for n in range(1, 201)))
    _, part = prepare(rows, text=True)
    length = part["max_length_keeping_99"]
    assert length == 200  # 1 + n + 1 of n = 198
    assert [prepare(rows, text=True, max_length=m)[1]["truncated"]["pairs"] for m in (length, length - 1)] == [2, 3]


def test_truncation_drops_what_it_makes_identical_and_on_request_what_it_cuts():
    rows = strings(
        ("12345678", "a", "b"), ("1234", "same start", "same end"), ("1234", "sam", "same"), ("12", "abcdefgh", "b"),
        ("12", "ab", "a"), ("12", "ab", "ab "),
    )  # fmt: skip
    cut = "truncated: a side loses its end token"
    found, part = prepare(rows, text=True, max_length=8)
    assert found["row"][:] == ["file:2", "file:3", "file:4", "file:5"]
    assert part["dropped"] == {
        "prompt fills max_length": {"count": 1, "rows": ["file:0"]},
        "identical after truncation": {"count": 1, "rows": ["file:1"]},
    }
    found, part = prepare(rows, text=True, max_length=8, drop_truncated=True)
    assert found["row"][:] == ["file:4", "file:5"] and part["truncated"]["pairs"] == 0
    assert part["dropped"][cut] == {"count": 2, "rows": ["file:2", "file:3"]}
    assert prepare(rows, text=True, max_length=7)[1]["dropped"]["identical after truncation"]["rows"] == [
        "file:1",
        "file:2",
    ]
    for row in found:
        assert row["chosen_ids"][: 8 - len(row["prompt_ids"])] != row["rejected_ids"][: 8 - len(row["prompt_ids"])]


def test_identical_after_truncation_is_what_comparing_the_cut_sides_says():
    draw = np.random.default_rng(0)
    rows = strings(*(
        ("p" * draw.integers(1, 5), *("".join(draw.choice(["a", "b"], draw.integers(1, 6))) for _ in "12"))
        for _ in range(300)
    ))  # fmt: skip
    every = prepare(rows, text=True)[0]
    for max_length in range(2, 12):
        kept, _ = prepare(rows, text=True, max_length=max_length)
        expected = [
            row["row"] for row in every
            if (room := max_length - len(row["prompt_ids"])) > 0
            and row["chosen_ids"][:room] != row["rejected_ids"][:room]
        ]  # fmt: skip
        assert kept["row"][:] == expected


@pytest.mark.parametrize("max_length", [None, 60])
def test_costs_are_what_trls_collator_makes(max_length):
    found, _ = prepare(make_pairs(23), max_length=max_length)
    prompt, chosen, rejected = (np.array([len(row[name]) for row in found]) for name in tokens.IDS)
    order = np.random.default_rng(5).permutation(len(found))
    collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length)
    batches = [collate([found[int(at)] for at in order[start : start + 4]]) for start in range(0, len(found), 4)]
    cost = tokens.costs(prompt, chosen, rejected, 4, max_length, 5)
    assert cost["padded_tokens"] == sum(batch["input_ids"].numel() for batch in batches)
    assert cost["real_tokens"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert cost["shared_tokens"] == cost["real_tokens"] - prompt.sum()
    assert tokens.costs(*[np.array([], int)] * 3, 4, None, 0) == dict.fromkeys(cost, 0)


# -------------------------------------------------------------------------------------------------- pains, provoked


def levels(part, **changes):
    given = {"allow": [], "max_dropped": 0.05, "max_length": 64, **changes}
    return {found.name.removeprefix("train "): found for found in tokens.rules(part, "train", **given)}


def test_a_healthy_set_passes_every_rule():
    rows = make_pairs(40)
    rows = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if n % 2 else row for n, row in enumerate(rows)
    ]
    part = prepare(rows)[1]
    found = levels(part)
    assert list(found) == ["dropped", "truncated", "border", "special_tokens", "start_token", "end_token", "length"]
    assert {finding.level for finding in found.values()} == {"pass"}
    assert found["length"].text == "To pick the longer side is right in 50.0% of the pairs."
    assert tokens.rules({"dropped": {}}, "train", allow=[], max_dropped=0.05, max_length=None) == []


def test_a_doubled_start_token_is_counted_and_fails():
    rows = strings(("<s>Q", "a", "b"), ("Q", "a", "b"))
    part = prepare(rows, with_start(), text=True)[1]
    assert part["start_token"] == {"none": 0, "one": 1, "doubled": 1, "rows": ["file:0"], "wanted": True}
    found = levels(part)["start_token"]
    assert found.level == "fail" and "1 of 2 pairs (50.0%; rows file:0) start with two start tokens" in found.text
    assert "data.allow=['start_token']" in found.text
    assert prepare(make_pairs(3), with_start())[1]["start_token"]["none"] == 3
    assert set(prepare(make_pairs(3))[1]["start_token"].values()) == {None, False}


def test_a_missing_and_a_repeated_end_token_are_counted():
    endless = make_tokenizer(CHATML.replace("<|im_end|>'", "'"))
    part = prepare(make_pairs(4), endless)[1]
    assert part["end_token"] == {
        "missing": 4, "repeated": 0, "pairs": 4, "rows": ["file:0", "file:1", "file:2"]
    }  # fmt: skip
    assert levels(part)["end_token"].level == "fail"
    rows = [pair("q", "a<|im_end|>", "b"), *(pair("q", "a", "b <|im_end|> c") for _ in range(29))]
    part = prepare(rows)[1]
    assert part["end_token"] == {"missing": 0, "repeated": 1, "pairs": 1, "rows": ["file:0"]}
    found = levels(part)["end_token"]
    assert found.level == "warn" and "repeated in 1 of 30 pairs (3.3%)" in found.text and "rows file:0" in found.text
    trailing = make_tokenizer(CHATML.replace("<|im_end|>'", "<|im_end|>\\n \\n'"))
    assert prepare(make_pairs(3), trailing)[1]["end_token"]["pairs"] == 0
    other = prepare(make_pairs(3), ends={0})[1]["end_token"]
    assert other["missing"] == 3


def test_a_template_that_opens_thinking_in_the_generation_prompt_alone_is_a_border():
    found, part = prepare(make_pairs(6), make_tokenizer(THINKING))
    assert part["border"] == {"count": 6, "rows": ["file:0", "file:1", "file:2"], "example": "<think>\n"}
    finding = levels(part)["border"]
    assert finding.level == "fail" and "Its end '<think>\\n' is left out" in finding.text
    assert "data.chat_template_kwargs" in finding.text and "data.allow=['border']" in finding.text
    allowed = levels(part, allow=["border"])["border"]
    assert allowed.level == "warn" and "Allowed by data.allow=['border']" in allowed.text
    closed = "<think>" in make_tokenizer(THINKING).decode(found[0]["prompt_ids"])
    assert not closed


@pytest.mark.parametrize(("count", "level"), [(0, "pass"), (1, "pass"), (2, "warn"), (25, "warn"), (26, "fail")])
def test_truncation_warns_from_1_and_stops_from_25_percent(count, level):
    rows = strings(*(("q", "a" * (30 if n < count else 3), "b") for n in range(100)))
    part = prepare(rows, text=True, max_length=10)[1]
    finding = levels(part, max_length=10)["truncated"]
    assert finding.level == level
    if level != "pass":
        assert f"{count} of 100 pairs" in finding.text and "max_length=32" in finding.text
        assert "data.drop_truncated=True" in finding.text


@pytest.mark.parametrize(("chosen", "level"), [("a" * 9, "warn"), ("b", "pass"), ("", "warn")])
def test_length_alone_that_tells_the_chosen_side_warns_with_remedies(chosen, level):
    finding = levels(prepare(strings(*[("q", chosen, "c")] * 5), text=True)[1])["length"]
    assert finding.level == level
    assert ("loss='sigmoid_norm'" in finding.text and "ld_alpha" in finding.text) == (level == "warn")


def test_drops_above_the_limit_fail_and_name_reasons_and_rows():
    part = prepare(strings(("12345678", "a", "b"), *[("q", "a", "bc")] * 19), text=True, max_length=8)[1]
    assert levels(part)["dropped"].level == "pass"
    finding = levels(part, max_dropped=0.04, max_length=8)["dropped"]
    assert finding.level == "fail"
    assert finding.text == (
        "1 of 20 pairs (5.0%) are dropped at max_length=8. prompt fills max_length: 1 of 20 pairs (5.0%; rows file:0). "
        "Correct the rows, raise max_length, or allow it with data.max_dropped."
    )
    _, none = prepare(strings(("12345678", "a", "b")), text=True, max_length=8)
    assert none["pairs"] == 0 and levels(none, max_dropped=1.0)["dropped"].level == "fail"


def test_a_row_that_the_template_refuses_is_named():
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    rows = [pair("q", "a", "b"), pair("q", "a", "b") | {"prompt": [message("system", "s"), message("user", "q")]}]
    with pytest.raises(RecipeError, match=r"refuses row file:1: no system role. .* data\.chat_template"):
        prepare(rows, make_tokenizer(strict))


# ---------------------------------------------------------------------------------------------------- cache and streams


def test_a_template_that_prints_the_day_is_cached_by_day_and_a_pinned_one_is_not(monkeypatch):
    keys, found = {}, {}
    for day in (date(2026, 1, 1), date(2026, 1, 2)):
        monkeypatch.setattr(tokens, "date", SimpleNamespace(today=lambda day=day: day))
        for name, template in (("live", DATED), ("pinned", pin_date(DATED, "2025-07-08"))):
            tokenizer = make_tokenizer(template)
            pairs = dataset(make_pairs(3))
            keys.setdefault(name, []).append(tokens._key(pairs, tokenizer, False, {1}))
            if name == "pinned":
                found[day] = ids(prepare(pairs, tokenizer)[0])
    assert len(set(keys["live"])) == 2 and len(set(keys["pinned"])) == 1
    first, second = found.values()
    assert first == second
    assert "Today Date: 08 July 2025" in make_tokenizer().decode(first[0][0])


def test_the_key_is_what_the_ids_depend_on_and_nothing_else():
    pairs, tokenizer = dataset(make_pairs(3)), make_tokenizer()
    key = tokens._key(pairs, tokenizer, False, {1})
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=4)  # TRL's key would change here
    assert tokens._key(pairs, tokenizer, False, {1}) == key == tokens._key(pairs, make_tokenizer(), False, {1})
    grown = make_tokenizer()
    grown.add_tokens(["<more>"])
    others = [(pairs, grown, False, {1}), (pairs, make_tokenizer(THINKING), False, {1}), (pairs, tokenizer, True, {1}),
              (pairs, tokenizer, False, {1, 2}), (pairs.select([0]), tokenizer, False, {1})]  # fmt: skip
    assert len({key, *(tokens._key(*other) for other in others)}) == 6


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
    rows = strings(("12345678", "a", "b"), *[("12", "same start", "same end"), ("12", "a", "bc")] * 4)
    stream, part = prepare(dataset(rows, text=True).to_iterable_dataset(), text=True, max_length=6)
    assert part == {"dropped": {}}
    found = list(stream.shuffle(seed=1, buffer_size=3))
    assert len(found) == 4 and set(found[0]) == {"row", "prompt", "chosen", "rejected", "length", *tokens.IDS}
    assert part["dropped"]["prompt fills max_length"] == {"count": 1, "rows": ["file:0"]}
    assert part["dropped"]["identical after truncation"]["count"] == 4
    assert len(part["dropped"]["identical after truncation"]["rows"]) == 3
    plain, _ = prepare(rows, text=True, max_length=6)
    assert sorted(ids(found)) == sorted(ids(plain))
    chat, _ = prepare(dataset(make_pairs(5)).to_iterable_dataset())
    assert ids(chat) == ids(prepare(make_pairs(5))[0])


def test_rendered_text_that_would_be_rendered_again_is_a_fail():
    rows = make_pairs(10)
    rows[0]["prompt"][0]["content"] = "<|im_start|>user\nWhy?<|im_end|>"
    part = prepare(rows)[1]
    assert part["special_tokens"] == {"count": 1, "rows": ["file:0"]}
    assert levels(part)["special_tokens"].level == "fail"
    assert "data.format='text'" in levels(part)["special_tokens"].text


def test_a_tokenizer_that_adds_a_start_token_and_a_template_that_does_not_is_a_warning():
    part = prepare(make_pairs(4), with_start())[1]
    assert part["start_token"]["wanted"] and levels(part)["start_token"].level == "warn"


def test_two_kinds_of_end_token_in_a_row_are_no_repetition():
    template = CHATML + "{%- if not add_generation_prompt -%}{{ '\\n<|pad|>' }}{%- endif -%}"
    tokenizer = make_tokenizer(template)
    part = prepare(make_pairs(4), tokenizer, ends={tokenizer.eos_token_id, tokenizer.pad_token_id})[1]
    assert (part["end_token"]["missing"], part["end_token"]["repeated"]) == (0, 0)


def test_sides_that_the_template_makes_identical_are_told_from_truncated_ones():
    template = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    rows = make_pairs(3)
    for side, thought in (("chosen", "one"), ("rejected", "two")):
        rows[1][side][0]["content"] = f"{thought}</think>same"
    part = prepare(rows, make_tokenizer(template), max_length=1024)[1]
    assert part["dropped"] == {"identical after the chat template": {"count": 1, "rows": ["file:1"]}}

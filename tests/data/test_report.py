"""Figures and costs against numbers counted by hand and by TRL's collator."""

from __future__ import annotations

import json

import numpy as np
import pytest
from making import CHATML, make_pairs, make_text_pairs, make_tokenizer, tokenize_pairs
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_recipes.data.report import Costs, Lengths
from dpo_recipes.data.tokenize import IDS


def test_the_report_counts_what_was_counted_by_hand():
    rows = make_text_pairs(  # a token is a byte, and each side gets an end token
        ("12345678", "abc", "ab"),
        ("1234", "x" * 19, "y"),
        ("12", "a", "bcd"),
        ("12", "ef", "gh"),
    )
    _, part = tokenize_pairs(rows, text=True, max_length=16, micro_batch_size=4)

    assert part["pairs"] == 4 and part["dropped"] == {} and part["end_token"]["pairs"] == 0
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
    json.dumps(part)


def test_max_length_keeping_99_cuts_one_pair_in_a_hundred():
    rows = make_text_pairs(*(("q", "a" * n, "b") for n in range(1, 201)))

    def truncated_pairs(max_length):
        _, part = tokenize_pairs(rows, text=True, max_length=max_length)
        return part["truncated"]["pairs"]

    _, part = tokenize_pairs(rows, text=True)
    length = part["max_length_keeping_99"]
    assert length == 200  # 1 + n + 1 of n = 198
    assert truncated_pairs(length) == 2 and truncated_pairs(length - 1) == 3


@pytest.mark.parametrize("max_length", [None, 60])
def test_costs_are_what_trls_collator_makes(max_length):
    pairs, _ = tokenize_pairs(make_pairs(23), max_length=max_length)
    lengths = []
    for row in pairs:
        lengths.append([len(row[name]) for name in IDS])
    prompt, chosen, rejected = np.array(lengths).T
    order = np.random.default_rng(5).permutation(len(pairs)).tolist()
    collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length)
    batches = []
    for start in range(0, len(pairs), 4):
        batches.append(collate([pairs[number] for number in order[start : start + 4]]))

    costs = Costs(max_length)
    for part in (slice(0, 9), slice(9, None)):  # as they come, some at a time
        costs.add(prompt[part], chosen[part], rejected[part])
    cost = costs.of_an_epoch(micro_batch_size=4, seed=5)
    assert cost["padded_tokens"] == sum(batch["input_ids"].numel() for batch in batches)
    assert cost["real_tokens"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert cost["shared_tokens"] == cost["real_tokens"] - prompt.sum()


def test_no_pairs_cost_nothing():
    cost = Costs(max_length=None).of_an_epoch(micro_batch_size=4, seed=0)
    assert cost == {"padded_tokens": 0, "real_tokens": 0, "shared_tokens": 0}


@pytest.mark.parametrize("count", [1, 2, 19, 20, 100, 101, 777])
def test_quantiles_of_counted_lengths_are_those_of_all_of_them(count):
    every = np.random.default_rng(count).integers(1, 60, count)
    lengths = Lengths()
    for part in np.array_split(every, 5):
        lengths.add(part)
    wanted = np.percentile(every, (50, 95, 99, 100), method="inverted_cdf").astype(int).tolist()
    assert list(lengths.quantiles().values()) == wanted
    assert [lengths.nth_smallest(n) for n in range(count)] == np.sort(every).tolist()


def test_white_space_may_follow_an_end_token():
    trailing = make_tokenizer(CHATML.replace("<|im_end|>'", "<|im_end|>\\n \\n'"))
    _, part = tokenize_pairs(make_pairs(3), trailing)
    assert part["end_token"]["pairs"] == 0


def test_two_kinds_of_end_token_in_a_row_are_no_repetition():
    tokenizer = make_tokenizer(CHATML + "{%- if not add_generation_prompt -%}{{ '\\n<|pad|>' }}{%- endif -%}")
    _, part = tokenize_pairs(make_pairs(4), tokenizer, ends={tokenizer.eos_token_id, tokenizer.pad_token_id})
    assert (part["end_token"]["missing"], part["end_token"]["repeated"]) == (0, 0)

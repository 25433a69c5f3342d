"""What data/tokenize.py repeats of TRL's parting and cutting of a pair, so that the ids are exactly TRL's.

Read again: `DPOTrainer._prepare_dataset` whole, and the truncation in `DataCollatorForPreference`.
tests/data/test_tokenize.py compares the ids with those that TRL makes.
"""

from __future__ import annotations

import pytest
from reading_trl import assert_still_reads, leaning
from trl.trainer.dpo_trainer import DataCollatorForPreference


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("common_prefix_length(prompt_ids, prompt_chosen_ids)", "completions start where one leaves the prompt"),
        ('output["prompt_ids"] = prompt_ids[:prompt_len]', "and the prompt's end is left out there"),
        ('len(example["prompt_ids"]) < args.max_length', "a prompt that fills max_length drops the pair"),
    ],
)
def test_the_source_reads_as_it_did(text, why):
    assert_still_reads("data/tokenize.py", "_prepare_dataset", text, why)


def test_the_end_of_a_side_is_what_is_cut():
    collator = DataCollatorForPreference(pad_token_id=0, max_length=4)
    batch = collator([{"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [6]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 6, 0]], leaning("data/tokenize.py", "keep_start")
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]], leaning("data/tokenize.py", "keep_start")

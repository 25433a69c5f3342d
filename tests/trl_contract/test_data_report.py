"""How many tokens data/report.py says that TRL reads.

Read again: `DataCollatorForPreference`, for how far the rows of a batch are padded and what max_length cuts.
tests/data/test_report.py compares the costs of an epoch with what the collator makes.
"""

from __future__ import annotations

import numpy as np
from reading_trl import leaning
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_recipes.data.report import Costs


def test_both_rows_of_a_pair_are_as_long_as_the_longest_row_of_their_batch():
    pairs = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
        {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9, 10, 11, 12]},
    ]
    batch = DataCollatorForPreference(pad_token_id=0, max_length=4)(pairs)
    assert batch["input_ids"].shape == (4, 4), leaning("data/report.py", "two rows a pair, cut and padded alike")
    assert batch["attention_mask"].sum() == 4 + 2 + 4 + 4, leaning("data/report.py", "real tokens are after the cut")


def test_the_costs_of_a_batch_are_those_of_the_collator():
    prompt, chosen, rejected = np.array([3, 1]), np.array([2, 1]), np.array([1, 4])
    costs = Costs(max_length=4)
    costs.add(prompt, chosen, rejected)
    cost = costs.of_an_epoch(micro_batch_size=2, seed=0)
    assert cost["padded_tokens"] == 16, leaning("data/report.py", "padded tokens")
    assert cost["real_tokens"] == 14, leaning("data/report.py", "real tokens")

"""The batch that shared_prefix/layout.py lays out in one row.

Read again: `DataCollatorForPreference` for how rows are padded and which come first, and in
`DPOTrainer._compute_loss` and `compute_ref_log_probs` how labels are made of the completion mask.
"""

from __future__ import annotations

import pytest
from reading_trl import SOURCE, leaning
from trl.trainer.dpo_trainer import DataCollatorForPreference

PAIRS = [
    {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
    {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9, 10]},
]


def test_rows_are_padded_on_the_right_and_chosen_rows_come_first():
    batch = DataCollatorForPreference(pad_token_id=0)(PAIRS)
    rows = [[1, 2, 3, 4, 5], [7, 8, 0, 0, 0], [1, 2, 3, 6, 0], [7, 9, 10, 0, 0]]
    assert batch["input_ids"].tolist() == rows, leaning("shared_prefix/layout.py", "[chosen; rejected], padded right")
    attended = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == attended, leaning("shared_prefix/layout.py", "the attention mask")


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("_compute_loss", 'inputs["input_ids"].masked_fill(completion_mask == 0, -100)'),
        ("compute_ref_log_probs", 'inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)'),
    ],
)
def test_what_is_not_scored_has_the_label_minus_100(method, text):
    assert text in SOURCE[method], leaning("shared_prefix/layout.py", f"{method} makes labels of the completion mask")

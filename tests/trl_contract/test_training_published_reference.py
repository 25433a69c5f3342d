"""What training/published_reference.py takes for the tokens that TRL scores.

Read again: how `DataCollatorForPreference` cuts what is longer than max_length, and which tokens its mask marks.
"""

from __future__ import annotations

from datasets import Dataset
from reading_trl import leaning
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_recipes.training.published_reference import scored_tokens


def test_the_start_of_what_is_too_long_is_kept_and_of_it_the_answers_are_scored():
    pairs = Dataset.from_list([{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6, 7, 8], "rejected_ids": [4, 9]}])
    for max_length in (3, 4, 6, None):
        collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length, truncation_mode="keep_start")
        scored = collate([pairs[0]])["completion_mask"].sum(1).tolist()
        assert scored_tokens(pairs, max_length)[0].tolist() == scored, leaning(
            "training/published_reference.py", "max_length keeps the start"
        )

"""The batches whose tokens benchmark/sides.py counts.

Read again: what `DataCollatorForPreference` makes of pairs, and how `DPOTrainer._compute_loss` makes labels of it.
"""

from __future__ import annotations

from reading_trl import SOURCE, bare_trainer, first_batch, leaning


def test_a_batch_has_padded_ids_their_mask_and_the_mask_of_the_answers(tiny, tmp_path):
    batch = first_batch(bare_trainer(tiny, tmp_path))
    assert {"input_ids", "attention_mask", "completion_mask"} <= batch.keys(), leaning(
        "benchmark/sides.py", "the columns of a batch"
    )
    assert batch["input_ids"].shape == batch["completion_mask"].shape == batch["attention_mask"].shape


def test_what_is_no_answer_is_not_scored():
    words = "masked_fill("
    assert words in SOURCE["_compute_loss"] and "-100" in SOURCE["_compute_loss"], leaning(
        "benchmark/sides.py", "labels are the ids with -100 where the completion mask is 0"
    )

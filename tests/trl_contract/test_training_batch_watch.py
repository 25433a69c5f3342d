"""What training/batch_watch.py reads of DPOTrainer and of a batch, to show a pair.

Read again: `DataCollatorForPreference`, and what `DPOTrainer.__init__` makes of `processing_class`.
"""

from __future__ import annotations

from reading_trl import bare_trainer, leaning


def test_the_rows_of_a_batch_are_decoded_with_the_trainers_tokenizer(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path)
    example = trainer.train_dataset[0]
    batch = trainer.data_collator([example, trainer.train_dataset[1]])
    is_token = batch["attention_mask"][2].bool()  # behind both chosen rows
    text = trainer._tokenizer.decode(batch["input_ids"][2][is_token])
    expected = trainer._tokenizer.decode(example["prompt_ids"] + example["rejected_ids"])
    assert text == expected != "", leaning("training/batch_watch.py", "rows are [chosen; rejected], with their prompt")

"""What training/part_of_epoch.py expects of the order in which TRL's trainer reads pairs.

Read again: `Trainer.set_initial_training_values` of Transformers, for how many steps a run takes, and
`Trainer.get_batch_samples`.
"""

from __future__ import annotations

from reading_trl import bare_trainer, leaning

from dpo_recipes.training.part_of_epoch import rows_read


def test_a_run_reads_the_rows_that_another_loader_says_beforehand(tiny, tmp_path, monkeypatch):
    trainer = bare_trainer(tiny, tmp_path, max_steps=1)
    rows = rows_read(trainer.get_train_dataloader(), trainer.args)
    expected = []
    for row in rows:
        pair = trainer.train_dataset[row]
        expected.append(pair["prompt_ids"] + pair["chosen_ids"])

    read = []
    step = type(trainer).training_step

    def recorded(self, model, inputs, *arguments):
        chosen = len(inputs["input_ids"]) // 2
        for ids, mask in zip(inputs["input_ids"][:chosen], inputs["attention_mask"][:chosen], strict=True):
            read.append(ids[mask.bool()].tolist())
        return step(self, model, inputs, *arguments)

    monkeypatch.setattr(type(trainer), "training_step", recorded)
    trainer.train()
    assert len(read) == 2
    assert sorted(read) == sorted(expected), leaning("training/part_of_epoch.py", "the order is of the seed alone")

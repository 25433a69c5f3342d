"""What training/by_length.py leans on. Read again: `Trainer.get_batch_samples`, which takes the micro-batches of a step
one after the other, and what accelerate makes of a random sampler: one with a seed, behind the loader's batch sampler.
"""

from __future__ import annotations

from accelerate.data_loader import SeedableRandomSampler
from reading_trl import bare_trainer, leaning


def test_the_sampler_stands_behind_the_batch_sampler_and_is_told_each_epoch(tiny, tmp_path):
    loader = bare_trainer(tiny, tmp_path).get_train_dataloader()
    sampler = loader.batch_sampler.sampler
    assert isinstance(sampler, SeedableRandomSampler), leaning(
        "training/by_length.py", "the order is drawn from the seed alone"
    )

    class Watched:
        epochs: list[int] = []

        def __iter__(self):
            return iter(range(4))

        def __len__(self):
            return 4

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    loader.batch_sampler.sampler = Watched()
    batches = [batch["input_ids"].shape[0] // 2 for batch in loader]
    loader.set_epoch(1)
    assert batches == [2, 2], leaning("training/by_length.py", "a loader asks the sampler behind its batch sampler")
    assert Watched.epochs[-1] == 1, leaning("training/by_length.py", "a loader tells the sampler which epoch it is")


def test_a_step_takes_consecutive_micro_batches(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path)
    batches = [{"number": number} for number in range(5)]
    samples, _ = trainer.get_batch_samples(iter(batches), 3, trainer.args.device)
    assert samples == batches[:3], leaning("training/by_length.py", "a step takes the micro-batches as they come")


def test_a_column_of_lengths_has_a_name_in_the_options(tiny, tmp_path):
    name = bare_trainer(tiny, tmp_path).args.length_column_name
    assert name == "length", leaning("training/by_length.py", "length_column_name, as our pairs have it")

"""What training/memory_recovery.py expects of a step of TRL's trainer, which is that of Transformers' Trainer.

Read again: `Trainer._inner_training_loop` and `Trainer.training_step` of Transformers, `DPOTrainer.training_step` and
`_compute_loss`, and `GradientState` of Accelerate.
"""

from __future__ import annotations

from accelerate.state import GradientState
from reading_trl import bare_trainer, leaning
from transformers import TrainerCallback
from trl import DPOTrainer


def test_each_micro_batch_is_a_call_behind_the_beginning_of_its_step_and_one_number_in_each_list(
    tiny, tmp_path, monkeypatch
):
    events = []

    class Spy(TrainerCallback):
        def on_step_begin(self, args, state, control, **given):
            events.append("begin")

    step = DPOTrainer.training_step

    def recorded(self, *arguments):
        events.append(len(arguments))
        before = {name: len(numbers) for name, numbers in self._metrics["train"].items()}
        loss = step(self, *arguments)
        assert loss.dim() == 0 and not loss.requires_grad, leaning("training/memory_recovery.py", "what a step gives")
        for name, numbers in self._metrics["train"].items():
            added = len(numbers) - before.get(name, 0)
            assert added == 1 or (name == "num_tokens" and len(numbers) == 1), leaning(
                "training/memory_recovery.py", f"one number a batch in the list of {name}"
            )
        return loss

    monkeypatch.setattr(DPOTrainer, "training_step", recorded)
    bare_trainer(
        tiny,
        tmp_path,
        callbacks=[Spy()],
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
    ).train()
    # A step of two micro-batches, and another
    assert events == ["begin", 3, 3, "begin", 3, 3], leaning(
        "training/memory_recovery.py", "training_step(model, inputs, num_items_in_batch) for each micro-batch"
    )


def test_accelerate_lists_the_data_loaders_that_are_read():
    known = GradientState().dataloader_references
    assert isinstance(known, list) and None in known, leaning(
        "training/memory_recovery.py", "GradientState.dataloader_references"
    )

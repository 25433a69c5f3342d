"""What training/checkpoints.py expects of TRL's trainer, which is Transformers': who says when it saves and stops.

Read again: `Trainer._maybe_log_save_evaluate` of Transformers, and `CallbackHandler.on_save`.
"""

from __future__ import annotations

from reading_trl import bare_trainer, leaning
from transformers import TrainerCallback


def test_a_callback_has_a_checkpoint_written_behind_the_log_of_the_step_and_ends_training(tiny, tmp_path):
    events = []

    class Stopping(TrainerCallback):
        def on_step_end(self, args, state, control, **given):
            control.should_save = control.should_training_stop = state.global_step == 2

        def on_log(self, args, state, control, **given):
            events.append(("log", state.global_step))

        def on_save(self, args, state, control, **given):
            events.append(("save", state.global_step))

    bare_trainer(tiny, tmp_path, callbacks=[Stopping()], save_strategy="no").train()
    assert events == [("log", 1), ("log", 2), ("save", 2), ("log", 2)], leaning(
        "training/checkpoints.py", "saving at the end of a step whatever the strategy, and ending there"
    )
    (checkpoint,) = [path for path in tmp_path.rglob("checkpoint-*") if path.is_dir()]
    assert checkpoint.name == "checkpoint-2", leaning("training/checkpoints.py", "the name of a checkpoint")

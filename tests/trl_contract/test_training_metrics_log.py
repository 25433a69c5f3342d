"""What training/metrics_log.py finds in the logs of TRL's trainer.

Read again: `DPOTrainer.log`, and the names that `DPOTrainer._compute_loss` puts into `self._metrics`.
"""

from __future__ import annotations

from reading_trl import bare_trainer, leaning
from transformers import TrainerCallback


def test_every_step_is_one_log_with_the_loss_and_the_rewards_and_the_end_is_one_without(tiny, tmp_path):
    received = []

    class Reader(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **given):
            received.append((state.global_step, logs))

    bare_trainer(tiny, tmp_path, callbacks=[Reader()]).train()
    *of_steps, of_the_end = received
    assert [step for step, _ in of_steps] == [1, 2, 3], leaning("training/metrics_log.py", "a log for each step")
    for _, log in of_steps:
        shown = {"loss", "grad_norm", "learning_rate", "rewards/accuracies", "rewards/margins", "num_tokens"}
        assert shown <= log.keys(), leaning("training/metrics_log.py", "what a step's log holds")
    assert "rewards/margins" not in of_the_end[1], leaning("training/metrics_log.py", "the last log is of the run")

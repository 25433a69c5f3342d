"""What evaluation/held_out.py finds among the metrics of TRL's evaluation.

Read again: the names that `DPOTrainer._compute_loss` puts into `self._metrics`, what each is a mean of, and how
`DPOTrainer.log` averages them over batches.
"""

from __future__ import annotations

import torch
from reading_trl import SOURCE, bare_trainer, first_batch, leaning


def test_the_metrics_have_these_names(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path)
    with torch.no_grad():
        trainer._compute_loss(trainer.model, first_batch(trainer), False)
    assert set(trainer._metrics["train"]) == {
        "entropy",
        "num_tokens",
        "logits/chosen",
        "logits/rejected",
        "mean_token_accuracy",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    }, leaning("evaluation/held_out.py", "TRL's names of its metrics")
    assert '["aux_loss"]' in SOURCE["_compute_loss"], leaning("evaluation/held_out.py", "aux_loss, where there is one")


def test_metrics_are_means_of_batches_so_that_ours_are_computed_from_every_pair():
    averaged = "{key: sum(val) / len(val) for key, val in self._metrics[mode].items()}"
    assert averaged in SOURCE["log"], leaning("evaluation/held_out.py", "a mean of means")

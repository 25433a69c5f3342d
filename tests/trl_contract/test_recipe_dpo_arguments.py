"""What recipe/dpo_arguments.py gives to DPOConfig, and what TRL makes of it.

Read again: what `loss_type`, `loss_weights` and `precompute_ref_log_probs` mean in `DPOTrainer.__init__`, and what an
empty list of losses leaves of `DPOTrainer._compute_loss`.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from reading_trl import SOURCE, bare_trainer, first_batch, leaning


def loss_of(trainer) -> float:
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, first_batch(trainer), False))


def test_without_a_loss_trl_returns_0_and_measures_everything(tiny, tmp_path):
    """A recipe with plugin losses alone asks TRL for no loss of its own, and TRL still fills the log."""
    without, beside = bare_trainer(tiny, tmp_path, loss_type=[]), bare_trainer(tiny, tmp_path, loss_type=["sigmoid"])
    assert loss_of(without) == 0.0, leaning("recipe/dpo_arguments.py", "loss_type=[] is 0")
    assert loss_of(beside) == pytest.approx(math.log(2), abs=1e-5), leaning(
        "recipe/dpo_arguments.py", "sigmoid is ln 2"
    )
    measured = dict(without._metrics["train"])
    assert measured, leaning("recipe/dpo_arguments.py", "metrics without a loss")
    assert measured == dict(beside._metrics["train"]), leaning("recipe/dpo_arguments.py", "metrics without a loss")


def test_losses_without_weights_weigh_1(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path, loss_type=["sigmoid", "hinge"])
    assert list(trainer.loss_weights) == [1.0, 1.0], leaning("recipe/dpo_arguments.py", "loss_weights=None")
    assert loss_of(trainer) == pytest.approx(math.log(2) + 1, abs=1e-5), leaning("recipe/dpo_arguments.py", "a sum")


def test_the_metrics_are_computed_at_every_step_whether_they_are_logged_or_not():
    metrics = re.findall(r'self\._metrics\[mode\]\["([\w/]+)"\]', SOURCE["_compute_loss"])
    assert "rewards/margins" in metrics, leaning("recipe/dpo_arguments.py", "logging_steps=1 costs nothing")
    assert "logging_steps" not in SOURCE["_compute_loss"], leaning("recipe/dpo_arguments.py", "logging_steps=1")

"""Real steps before a run: on the longest pairs, which need most, and then on pairs as they come, to be timed."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback

from ..training.session import Session
from .memory import measured_peak

TIMED = 3  # steps on pairs as they come, after a first one on the longest


class Trial(NamedTuple):
    """What real steps took, and what was looked at on the way."""

    peak: int  # bytes that were live at most, in training or evaluation
    seconds_per_step: float  # the median of the timed steps
    same_start: bool  # whether policy and reference were compared before the first update, and agreed
    known_loss: bool  # whether the loss was compared with its known value there, and agreed


class Clock(TrainerCallback):
    """The seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begun)


def try_steps(session: Session) -> Trial:
    """Train for a step on the longest pairs and for TIMED others, and evaluate the longest batch; nothing is kept.

    Whatever is wrong with a step is raised: the guard's RecipeError, or the error of a library or of the device.
    """
    clock = Clock()
    options: dict[str, Any] = {
        "max_steps": 1 + TIMED,
        "train_sampling_strategy": "sequential",  # the longest come first
        "save_strategy": "no",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "push_to_hub": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = _on_the_longest_pairs(session).make_trainer(Path(folder), [clock], **options)

        def train_and_evaluate() -> None:
            trainer.train()
            trainer.evaluate()

        peak = measured_peak(train_and_evaluate, _resident(trainer))
    return Trial(
        peak=peak,
        seconds_per_step=statistics.median(clock.seconds[1:]),
        same_start=trainer.health.same_start,
        known_loss=trainer.health.declared_loss is not None,
    )


def _on_the_longest_pairs(session: Session) -> Session:
    """The session on few pairs: the longest of a step, then the first ones; the longest of an evaluation batch."""
    recipe = session.recipe
    pairs_a_step = recipe.global_batch_size
    pairs_a_pass = recipe.trl.get("per_device_eval_batch_size", session.settings.micro_batch_size)
    first = range(min(len(session.train), TIMED * pairs_a_step))

    few = copy.copy(session)
    few.train = session.train.select([*_longest_first(session.train)[:pairs_a_step], *first])
    few.eval = session.eval.select(_longest_first(session.eval)[:pairs_a_pass])
    return few


def _longest_first(pairs: Any) -> list[int]:
    """The indices of tokenised pairs by their length, the earlier one first among equals."""
    return np.argsort(-np.array(pairs["length"]), kind="stable").tolist()


def _resident(trainer: Any) -> list[torch.Tensor]:
    """What a trainer holds before its first step: the parameters and buffers of policy and reference."""
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    return [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]

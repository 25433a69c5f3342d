"""Real steps before a run: on the longest pairs, which need most, and then on pairs as they come, to be timed."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback

from ..models.device import wall_seconds
from ..recipe.recipe import Recipe
from ..training.session import LOOKS_ONLY, Session
from . import process
from .stored_lengths import pair_lengths

TIMED = 3  # steps on pairs as they come, after a first one on the longest


class Trial(NamedTuple):
    """What real steps took, and what was looked at on the way."""

    peak: int  # bytes: on a CPU resident in this process, as the system counts; on CUDA reserved by torch
    seconds_per_step: float  # the median of the timed steps
    same_start: bool  # whether policy and reference were compared before the first update, and agreed
    known_loss: bool  # whether the loss was compared with its known value there, and agreed


class Clock(TrainerCallback):
    """The seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = wall_seconds()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(wall_seconds() - self._begun)


def try_steps(session: Session) -> Trial:
    """Train for a step on the longest pairs and for TIMED others, and evaluate the longest batch; nothing is kept.

    Whatever is wrong with a step is raised: the guard's RecipeError, or the error of a library or of the device.
    """
    clock = Clock()
    options: dict[str, Any] = {
        **LOOKS_ONLY,
        "max_steps": 1 + TIMED,
        "train_sampling_strategy": "sequential",  # the longest come first
    }
    with tempfile.TemporaryDirectory() as folder:
        process.reset_peak_on(session.device.kind)
        trainer = _on_the_longest_pairs(session).make_trainer(Path(folder), [clock], **options)
        trainer.train()
        trainer.evaluate()
        peak = _peak(session.device.kind)
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

    longest = _longest_first(session.train, recipe)[:pairs_a_step]
    longest_held_out = _longest_first(session.eval, recipe)[:pairs_a_pass]
    return session.on_pairs(session.train.select([*longest, *first]), session.eval.select(longest_held_out))


def _longest_first(pairs: Any, recipe: Recipe) -> list[int]:
    """The indices of tokenised pairs by their length, the earlier one first among equals.

    The length is that of the longer side with its prompt, or of all that is read where a prompt is read once.
    """
    lengths = pair_lengths([pairs], recipe.max_length)
    tokens = lengths.longer_rows if recipe.pair_sharing == "off" else lengths.read_once
    return np.argsort(-tokens, kind="stable").tolist()


def _peak(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.max_memory_reserved()
    return process.peak()

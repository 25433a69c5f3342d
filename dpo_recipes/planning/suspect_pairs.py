"""Which pairs to look at before training: those that will pull chosen down, and those whose label looks wrong.

Two scores, neither of which is proof. Displacement is the CHES score of Razin et al. (2410.08847, definition 2, with
the means over tokens in place of sums, as their appendix has it for answers of different lengths): with h the hidden
states that the head reads, before each token of an answer,

    CHES = <mean h(chosen), mean h(rejected)> - |mean h(chosen)|^2

The larger it is, the more the two answers are one direction to the model, and the more of the push away from rejected
lands on chosen too. It takes one forward pass.

The label is judged by a model that has not seen it: the pairs are cut in two halves, the recipe trains on each half
from the start, and each judges the other half. A margin of log-ratios far below zero says that what the other labels
teach speaks against this one (cross-validated as in confident learning, 1911.00068, section 3).
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from ..data.excluded import KEY, as_text
from ..models.base_model import without_adapters
from ..progress import Stage, TrainingBar
from ..training.session import LOOKS_ONLY, Session


def displacement(hidden: Tensor, is_completion: Tensor) -> Tensor:
    """The CHES score of each of B pairs.

    `hidden`: (2B, T, width), what the head reads, chosen rows first; `is_completion`: (2B, T), true at the tokens of
    the answers. A token is predicted from the position before its own.
    """
    weights = is_completion[:, 1:].float()
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    means = torch.einsum("bt,btw->bw", weights, hidden[:, :-1].float())
    chosen, rejected = means.chunk(2)
    return (chosen * rejected).sum(dim=1) - chosen.square().sum(dim=1)


def displacements(trainer: Any, pairs: Any, batch_size: int, stage: Stage) -> np.ndarray:
    """The CHES score of each pair under the policy as it is now, in the order of `pairs`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    causal_lm = without_adapters(model)
    was_training = model.training
    model.eval()

    scores = []
    for start in range(0, len(pairs), batch_size):
        examples = [pairs[index] for index in range(start, min(start + batch_size, len(pairs)))]
        batch = trainer._prepare_inputs(trainer.data_collator(examples))
        with torch.no_grad(), trainer.accelerator.autocast():
            hidden = causal_lm.base_model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
        scores.append(displacement(hidden, batch["completion_mask"].bool()).cpu())
        stage.advance(len(examples))
    model.train(was_training)
    return torch.cat(scores).double().numpy()


class Scores(NamedTuple):
    """Of each train pair, in their order; the larger, the more it deserves a look."""

    displacement: np.ndarray  # CHES
    label: np.ndarray  # nats by which models that have not seen the pair rank rejected above chosen


def score_pairs(session: Session, folder: Path) -> Scores:
    """Both scores of the train pairs of a session; trainers write to `folder`.

    RecipeError where the recipe cannot train, as where a half has fewer pairs than a step takes.
    """
    first, second = halves(session.train["prompt_ids"], session.recipe.seed)
    batch_size = session.settings.micro_batch_size
    count = len(session.train)
    displacement_scores = np.empty(0)
    margins = np.zeros(count)

    for number, (trained, judged) in enumerate([(first, second), (second, first)], start=1):
        half = session.on_pairs(session.train.select(trained), session.train.select(judged))
        bar = TrainingBar(session.console, {})
        session.say(f"Training on half {number} of 2, to judge the labels of the other: {len(trained):,} pairs.")
        with contextlib.closing(bar):
            trainer = half.make_trainer(folder, [_Steps(bar)], **LOOKS_ONLY)
            if not len(displacement_scores):
                with Stage(session.console, "Reading the pairs for displacement", total=count) as stage:
                    displacement_scores = displacements(trainer, session.train, batch_size, stage)
            trainer.train()
        _, pairs = trainer.held_out()
        margins[judged] = pairs.h.numpy()
    return Scores(displacement=displacement_scores, label=-margins)


class _Steps(TrainerCallback):
    """Shows on a bar how far a training has come."""

    def __init__(self, bar: TrainingBar):
        self.bar = bar

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.begin(state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.part(state.global_step, state.max_steps)


def halves(prompts: list[list[int]], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the pairs of two halves of the prompts, drawn with `seed`; `prompts` are token ids."""
    pairs_of: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        pairs_of.setdefault(tuple(prompt), []).append(index)
    groups = list(pairs_of.values())
    random.Random(seed).shuffle(groups)

    first: list[int] = []
    second: list[int] = []
    for group in groups:
        smaller = first if len(first) <= len(second) else second
        smaller += group
    return sorted(first), sorted(second)


def worst(scores: np.ndarray, share: float) -> list[int]:
    """The indices of a share of the pairs, largest score first; at least one."""
    count = max(1, round(share * len(scores)))
    return np.argsort(-scores, kind="stable")[:count].tolist()


def named(session: Session, scores: Scores, share: float) -> list[dict[str, Any]]:
    """The pairs of which one of the scores is among its largest `share`, as the lines of a file for data.exclude.

    The labels first, each by its score; a pair that both scores name comes once, with both.
    """
    lines: dict[int, dict[str, Any]] = {}
    tokenizer = session.tokenizer.tokenizer
    for why in ("label", "displacement"):
        values = getattr(scores, why)
        for index in worst(values, share):
            if index not in lines:
                lines[index] = _line(session.train[index], tokenizer)
            lines[index]["why"].append(why)
            lines[index][why] = float(values[index])
    return list(lines.values())


def _line(pair: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    return {
        KEY: as_text(pair[KEY]),
        "row": pair["row"],
        "why": [],
        "prompt": tokenizer.decode(pair["prompt_ids"]),
        "chosen": tokenizer.decode(pair["chosen_ids"]),
        "rejected": tokenizer.decode(pair["rejected_ids"]),
    }

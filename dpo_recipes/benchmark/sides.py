"""Two trainers side by side: TRL's own and ours, on the same weights and the same batches, timed in turns.

Leans on TRL 1.16: the columns of its batches, and what `benchmark/bare.py` leans on.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..guard.callback import Watch
from ..models.base_model import without_adapters
from ..progress import Stage
from ..recipe.dpo_arguments import dpo_arguments
from ..shared_prefix.layout import Row
from ..training.session import LOOKS_ONLY, Session
from .bare import BareTrainer, score_answers_only, with_trl_defaults
from .parts import Parts, time_parts
from .steps import COMPARED, Agreement, Side, Watcher, compare_first_steps, time_steps

# Two rounds, each side first in one of them: what drifts meets both alike.
ROUNDS = 2
PARTED = 4  # steps of each side of which the parts are timed
# A step is one micro-batch, as the accumulated ones are all alike; and nothing moves.
STEP_OPTIONS: dict[str, Any] = {
    **LOOKS_ONLY,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "train_sampling_strategy": "sequential",
    "num_train_epochs": 1,
    "max_steps": -1,  # each call says how many
}


def make_sides(session: Session, folder: Path, *, against_defaults: bool, compact_head: bool) -> dict[str, Side]:
    """Both trainers on the same weights, a little away from the reference, so that no loss stands at its start."""
    watch_trl, watch_ours = Watcher(), Watcher()
    options = dpo_arguments(session.recipe, session.settings, str(folder))
    bare = session.make_trainer(
        folder,
        [watch_trl],
        kind=BareTrainer,
        options=with_trl_defaults(options) if against_defaults else options,
        **STEP_OPTIONS,
    )
    ours = session.make_trainer(folder, [watch_ours], **STEP_OPTIONS)
    ours.health.same_start = False  # it is not, from here on
    ours.remove_callback(Watch)  # which stops a run whose weights stay where they are, as they are to do here
    _move_away(bare.model)
    _copy_trained(bare.model, ours.model)
    if compact_head:
        score_answers_only(without_adapters(bare.model))
    return {"trl": Side(bare, watch_trl), "ours": Side(ours, watch_ours)}


def _move_away(model: Any) -> None:
    """Shift each trained parameter at random by a hundredth of its spread, or by 0.001 where it has none."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            spread = parameter.detach().float().std(correction=0).item()
            size = 0.01 * spread if spread else 0.001
            shift = size * torch.randn(parameter.shape, generator=generator)
            parameter.data += shift.to(parameter)


def _copy_trained(source: Any, target: Any) -> None:
    weights = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(weights[name].data)


def run(sides: dict[str, Side], batches: int, console: Console) -> tuple[Agreement, dict[str, Parts]]:
    """The compared steps of each side, which warm up too, then the timed rounds, each side first in turn.

    And then a few steps more: what those of each side are made of.
    """
    compared = min(COMPARED, batches)
    with Stage(console, "Comparing TRL's steps with ours", len(sides) * compared, "steps") as stage:
        agreement = compare_first_steps(sides["trl"], sides["ours"], functools.partial(stage.advance, compared))

    order = list(sides.values())
    for number in range(1, ROUNDS + 1):
        words = f"Timing, round {number} of {ROUNDS}"
        with Stage(console, words, len(sides) * batches, "steps") as stage:
            for side in order:
                time_steps(side, batches, stage.advance)
        order.reverse()

    steps = min(PARTED, batches)
    with Stage(console, "Timing what a step is made of", len(sides) * steps, "steps") as stage:
        parts = {name: time_parts(side, steps, stage.advance) for name, side in sides.items()}
    return agreement, parts


def count_tokens(trainer: Any, micro_batch_size: int, batches: int) -> tuple[int, int, int]:
    """(tokens without padding, tokens with padding, tokens in rows in which each pair stands once) of all batches."""
    tokens = padded = read = 0
    pairs = trainer.train_dataset
    for batch in range(batches):
        examples = [pairs[index] for index in range(batch * micro_batch_size, (batch + 1) * micro_batch_size)]
        inputs = trainer.data_collator(examples)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        row = Row.of(inputs["input_ids"], inputs["attention_mask"], labels, fused_lm_head=True)
        tokens += int(inputs["attention_mask"].sum())
        padded += inputs["input_ids"].numel()
        read += row.tokens.numel() if row is not None else inputs["input_ids"].numel()
    return tokens, padded, read

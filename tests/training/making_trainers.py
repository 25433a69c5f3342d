"""Trainers of tiny recipes, and what is read of them."""

from __future__ import annotations

import torch
from making import make_pairs, recipe_for, trainer_of

from dpo_recipes import LoRA
from dpo_recipes.losses.pair_logps import PairLogps

FAST = {"gradient_checkpointing": False, "max_steps": 4, "save_strategy": "no"}
PAIRS, HELD_OUT = make_pairs(24), make_pairs(10, seed=9)


def build(folder, train=PAIRS, held_out=HELD_OUT, out="out", trl=None, cls=None, options=None, more=None, **changes):
    """A RecipeTrainer of a tiny recipe, or with `cls` bare TRL's trainer on the very same arguments.

    Each pair is read twice, as in TRL, unless `pair_sharing` says otherwise: in one row the numbers round otherwise.
    `options` are attributes of its DPOConfig, `more` arguments of our trainer alone.
    """
    given = {"adapter": LoRA(r=4), "global_batch_size": 8, "learning_rate": 1e-3, "max_length": 96}
    given["pair_sharing"] = "off"
    given["trl"] = {name: value for name, value in (FAST | (trl or {})).items() if value is not None}
    recipe = recipe_for(folder, **given | changes)
    return trainer_of(recipe, train, held_out, out, cls=cls, options=options, **more or {})


def logps(trainer) -> list[list[float]]:
    """What is known of the reference: chosen and rejected of each split, in nats."""
    splits = (trainer.train_dataset, trainer.eval_dataset)
    return [split[name][:] for split in splits for name in ("ref_chosen_logps", "ref_rejected_logps")]


def history(trainer, *names) -> list:
    return [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]


def dpo(pairs: PairLogps, *, beta: float):
    """DPO written as a plugin, to be compared with TRL's own."""
    return -torch.nn.functional.logsigmoid(beta * pairs.h)

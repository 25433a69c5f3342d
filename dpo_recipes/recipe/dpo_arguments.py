"""The one translation of a recipe: Recipe and Settings -> the arguments of TRL's DPOConfig.

Leans on TRL 1.16: the names and the meaning of DPOConfig's fields, and that no `loss_type` computes the metrics only.
"""

from __future__ import annotations

from typing import Any

from .recipe import Recipe
from .resolve import Settings

KEPT_CHECKPOINTS = 2  # the last one may be damaged


def dpo_arguments(recipe: Recipe, settings: Settings, output_dir: str) -> dict[str, Any]:
    """Every DPOConfig argument that is not TRL's own default. `recipe.trl` has the last word."""
    trl_losses = recipe.trl_losses
    each_weighs_one = all(weight == 1 for weight in trl_losses.values())
    return {
        # The objective
        "beta": recipe.beta,
        "loss_type": list(trl_losses),  # empty when every loss is a plugin: TRL then computes its metrics only
        "loss_weights": None if each_weighs_one else list(trl_losses.values()),
        "max_length": recipe.max_length,
        "precompute_ref_log_probs": settings.precompute,
        # The optimisation
        "learning_rate": settings.learning_rate,
        "num_train_epochs": recipe.num_train_epochs,
        "per_device_train_batch_size": settings.micro_batch_size,
        "per_device_eval_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "seed": recipe.seed,
        # The device
        "use_cpu": settings.device == "cpu",  # or else bf16 is refused there
        "bf16": settings.autocast == "bf16",
        "fp16": settings.autocast == "fp16",
        "trust_remote_code": recipe.trust_remote_code,
        # What is written down
        "output_dir": output_dir,
        "disable_tqdm": True,  # the progress bar is ours
        "logging_steps": 1,  # every step lands in metrics.jsonl; TRL computes the metrics at every step anyway
        **_checkpoints(recipe),
        **recipe.trl,
    }


def _checkpoints(recipe: Recipe) -> dict[str, Any]:
    """Where the recipe does not say when one is written, training/checkpoints.py does."""
    return {"save_strategy": "no", "save_total_limit": KEPT_CHECKPOINTS} if recipe.checkpoints_are_paced else {}

"""The one translation of a recipe: Recipe and Settings -> the arguments of TRL's DPOConfig.

Leans on TRL 1.16: the names and the meaning of DPOConfig's fields.
"""

from typing import Any

from .recipe import Recipe
from .resolve import Settings


def dpo_arguments(recipe: Recipe, settings: Settings, output_dir: str) -> dict[str, Any]:
    """The one translation: every DPOConfig argument that is not TRL's own default. `recipe.trl` has the last word."""
    weights = list(recipe.trl_losses.values())
    return {
        "output_dir": output_dir, "learning_rate": settings.learning_rate,
        **{n: getattr(recipe, n) for n in ("beta", "num_train_epochs", "max_length", "seed", "trust_remote_code")},
        "loss_type": list(recipe.trl_losses),  # empty beside plugins alone: TRL then computes the metrics only
        "loss_weights": weights if any(w != 1 for w in weights) else None,
        "per_device_train_batch_size": settings.micro_batch_size,
        "per_device_eval_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "bf16": settings.autocast == "bf16", "fp16": settings.autocast == "fp16",
        "use_cpu": settings.device == "cpu",  # or else bf16 is refused there
        "precompute_ref_log_probs": settings.precompute,
        "disable_tqdm": True,  # the progress bar is ours
        "logging_steps": 1,  # every step lands in metrics.jsonl; TRL computes the metrics at every step anyway
        **recipe.trl,
    }  # fmt: skip

"""What lies in a checkpoint beside what the Trainer writes, and what is to be minded when it is read.

Leans on TRL 1.16: its Trainer, which is Transformers', writes a checkpoint into `checkpoint-<step>` of
`_get_output_dir`, the arguments as a pickle with it, and removes older ones with `rotate_checkpoints`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..progress import Stage
from ..runs.checkpoint_folders import mark_whole, readable, sizes_of
from . import processes

MOVING_REFERENCE = "reference.safetensors"
PICKLE = "training_args.bin"  # of the arguments


def write(trainer: Any, by_trainer: Callable[[], None]) -> None:
    """What the Trainer's method writes, marked as whole when all processes have; only then older ones are removed."""
    args = trainer.args
    step = trainer.state.global_step
    checkpoint = Path(trainer._get_output_dir(trial=None)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    most_kept = args.save_total_limit
    args.save_total_limit = None
    try:
        with Stage(trainer.console, f"Writing the checkpoint of step {step}"):
            by_trainer()
            # The recipe gives only where a reference that moves with the policy began.
            if trainer.settings.reference == "moving copy" and args.should_save:
                save_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(checkpoint / MOVING_REFERENCE))
    finally:
        args.save_total_limit = most_kept
    trainer.accelerator.wait_for_everyone()
    seen_by_all = processes.from_all(sizes_of(checkpoint))
    if args.should_save:
        (checkpoint / PICKLE).unlink(missing_ok=True)  # trl.json says the same
        sizes: dict[str, int] = {}
        for seen in seen_by_all:
            sizes |= seen
        sizes.pop(PICKLE, None)
        mark_whole(checkpoint, sizes)
        rotate_checkpoints(
            output_dir=str(checkpoint.parent),
            save_total_limit=most_kept,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
        )


def load_weights(trainer: Any, checkpoint: str, by_trainer: Callable[[], None]) -> None:
    """What the Trainer's method loads, with each parameter as precise as it was: PEFT loads 16 bits in 32."""
    precisions = {name: parameter.dtype for name, parameter in trainer.model.named_parameters()}
    with readable(checkpoint):
        by_trainer()
    for name, parameter in trainer.model.named_parameters():
        if parameter.dtype != precisions[name]:
            parameter.data = parameter.data.to(precisions[name])
    if trainer.settings.reference == "moving copy":
        with readable(checkpoint):
            load_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(Path(checkpoint) / MOVING_REFERENCE))

"""The trained model as files: what they are, and where they go when the run folder takes none."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..runs import files
from ..runs.checkpoint_folders import remove_unfinished, whole_checkpoints
from ..runs.folder import Run
from ..runs.unwritable import places_with_room, unwritable_place, unwritable_reason
from .engine import divides_weights

if TYPE_CHECKING:
    from ..models.tokenizer import Tokenizer


def save_model(where: Path, trainer: Any, tokenizer: Tokenizer) -> None:
    """The trained adapter or weights and the tokenizer, and no more than that."""
    trainer.save_model(str(where))
    shutil.rmtree(where / "ref", ignore_errors=True)  # the frozen copy of a continued adapter is not the result
    (where / "training_args.bin").unlink(missing_ok=True)  # a pickle; trl.json says the same
    tokenizer.save(where)


@contextlib.contextmanager
def kept_when_disk_is_full(run: Run, trainer: Any, tokenizer: Tokenizer) -> Iterator[None]:
    """Where the run folder cannot be written any more, save the model, as far as it is trained, somewhere else.

    Not where each process holds a part of the weights: to be saved they would need all processes.
    """
    if divides_weights(trainer):
        yield
        return
    try:
        yield
    except Exception as error:  # of whichever library finds the disk full
        reason = unwritable_reason(error)
        if not run.path.is_dir():
            reason = "the folder has been removed"
        if reason is None or isinstance(error, RecipeError):
            raise
        remove_unfinished(run.path / "checkpoints")
        state = trainer.state
        message = (
            f"{unwritable_place(error) or run.path} cannot be written: {reason}. "
            f"Training had come to step {state.global_step:,} of {state.max_steps:,}. "
        )
        place = _save_elsewhere(run, trainer, tokenizer)
        if place is not None:
            message += f"The model as it was then is in {place}."
        else:
            message += "No other place has room for the model, which is lost."
            checkpoints = [str(path) for path in reversed(whole_checkpoints(run.path / "checkpoints"))]
            if checkpoints:
                message += f" Whole checkpoints: {', '.join(checkpoints)}."
        raise RecipeError(message) from error


def _save_elsewhere(run: Run, trainer: Any, tokenizer: Tokenizer) -> Path | None:
    """The folder in which the model is saved now; None where no place takes it."""
    tensors = [tensor for tensor in trainer.model.parameters() if tensor.requires_grad]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    for place in places_with_room(2 * size, run.path):
        model = place / "model" if place == run.path else place / f"{run.path.name}-model"
        try:
            files.write_folder(model, functools.partial(save_model, trainer=trainer, tokenizer=tokenizer))
        except Exception as error:  # of whichever library finds this place full, too
            if unwritable_reason(error) is None:
                raise
            continue
        return model
    return None

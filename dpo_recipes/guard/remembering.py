"""What a callback of ours remembers between steps, kept in each checkpoint.

Leans on TRL 1.16: its Trainer, which is Transformers', keeps the `state()` of every ExportableState callback, under the
name of its class, in the trainer_state.json of a checkpoint, and has them as `state.stateful_callbacks` of a run that
goes on.
"""

from abc import ABC, abstractmethod
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Remembering(TrainerCallback, ExportableState, ABC):
    """A callback whose own numbers go into each checkpoint, and come from the one that a run goes on from."""

    def state(self) -> dict[str, Any]:
        """What goes into the checkpoint, as Transformers asks for it."""
        return {"args": {}, "attributes": self.remembered()}

    @abstractmethod
    def remembered(self) -> dict[str, Any]:
        """Values as JSON holds them."""

    @abstractmethod
    def remember(self, values: dict[str, Any]) -> None:
        """Take the values of a checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:  # a run that goes on
            kept = state.stateful_callbacks.get(type(self).__name__)
            if kept is not None:
                self.remember(kept["attributes"])

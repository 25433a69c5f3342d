"""Where the time of a step goes: into the model's layers, into head and loss, or elsewhere."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..models.base_model import without_adapters
from .steps import Side, clock_of, take


class Parts(NamedTuple):
    """Seconds of one step."""

    layers: float  # embedding and layers of policy and reference, forward and backward
    head: float  # what makes log-probabilities of hidden states, and a loss of these, forward and backward
    rest: float  # clipping, optimizer, and what the Trainer does between


def time_parts(side: Side, steps: int, on_step: Callable[[], None]) -> Parts:
    """Take `steps` steps and time what each is made of; the median of each part.

    The clock is read between the parts, for which a GPU is waited for: these are steps of their own, beside those that
    are timed whole.
    """
    taken = _StepParts(side.trainer)
    parts: list[Parts] = []

    def end() -> None:
        parts.append(taken.end())
        on_step()

    side.watcher.begins = taken.begin
    side.watcher.ends = end
    try:
        with taken.watched():
            take(side.trainer, steps)
    finally:
        side.watcher.be_silent()
    return Parts(*(statistics.median(values) for values in zip(*parts, strict=True)))


class _StepParts:
    """A clock that is read where layers begin and end, in the forward and in the backward of one trainer."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.clock = clock_of(trainer.accelerator.device)
        self.begun = 0.0  # when this step did
        self.forward_begun = 0.0  # when the layers last did
        self.gradient_came = 0.0  # to the layers: from then on backward is theirs
        self.layers = 0.0  # seconds in this step so far
        self.loss_and_backward = 0.0  # seconds in this step so far, with those of the layers in them

    def begin(self) -> None:
        self.layers = self.loss_and_backward = 0.0
        self.begun = self.clock()

    def end(self) -> Parts:
        whole = self.clock() - self.begun
        return Parts(self.layers, self.loss_and_backward - self.layers, whole - self.loss_and_backward)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Meanwhile the trainer's models and its own methods tell when they are at work."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        with contextlib.ExitStack() as undone:
            for model in filter(None, (trainer.model, trainer.ref_model)):
                layers = without_adapters(accelerator.unwrap_model(model)).base_model
                undone.callback(layers.register_forward_pre_hook(self._layers_begin).remove)
                undone.callback(layers.register_forward_hook(self._layers_end).remove)
            for owner, name, timed in (
                (trainer, "compute_loss", self._loss),
                (accelerator, "backward", self._backward),
            ):
                undone.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, functools.partial(timed, getattr(owner, name)))
            yield

    def _layers_begin(self, *_: Any) -> None:
        self.forward_begun = self.clock()

    def _layers_end(self, module: Any, args: Any, output: Any) -> None:
        self.layers += self.clock() - self.forward_begun
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(self._gradient_comes)

    def _gradient_comes(self, gradient: Any) -> None:
        self.gradient_came = self.clock()

    def _loss(self, compute: Callable[..., Any], *args: Any, **given: Any) -> Any:
        begun = self.clock()
        loss = compute(*args, **given)
        self.loss_and_backward += self.clock() - begun
        return loss

    def _backward(self, backward: Callable[..., Any], *args: Any, **given: Any) -> None:
        begun = self.clock()
        backward(*args, **given)
        ended = self.clock()
        self.loss_and_backward += ended - begun
        self.layers += ended - self.gradient_came

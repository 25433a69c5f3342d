"""Steps of two trainers on the same batches, taken in turns: what they take, what they hold, and whether they agree."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback

from ..models.device import wall_seconds

COMPARED = 2  # batches on which the gradients are compared


class Watcher(TrainerCallback):
    """What the Trainer does at each step, told to whoever asked."""

    def __init__(self) -> None:
        self.be_silent()

    def be_silent(self) -> None:
        """Tell nobody."""
        self.begins: Callable[[], None] = _nothing
        self.has_gradients: Callable[[], None] = _nothing
        self.ends: Callable[[], None] = _nothing

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begins()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.has_gradients()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends()


def _nothing() -> None:
    """Nobody asked."""


@dataclass
class Side:
    """A trainer, and what its steps have shown."""

    trainer: Any
    watcher: Watcher  # among its callbacks
    rounds: list[list[float]] = field(default_factory=list)  # of each round, the seconds of each step
    losses: list[float] = field(default_factory=list)  # of the first steps
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)  # of the first steps, by parameter
    held: list[int] = field(default_factory=list)  # bytes, of the first steps

    def seconds(self) -> list[float]:
        """The median seconds of each step over the rounds."""
        return [statistics.median(times) for times in zip(*self.rounds, strict=True)]


class Agreement(NamedTuple):
    """The largest differences between the two sides, relative."""

    loss: float
    gradient: float


def compare_first_steps(side: Side) -> None:
    """Take COMPARED steps and keep their losses, their gradients and the bytes they hold; these warm up too."""
    trainer = side.trainer
    compute_loss = trainer.compute_loss

    def counted(*args: Any, **given: Any) -> Any:
        with Held(trainer.model) as held:
            loss = compute_loss(*args, **given)
        side.held.append(held.bytes)
        side.losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss

    def keep_gradients() -> None:
        side.gradients.append(_gradients(trainer.model))

    trainer.compute_loss = counted
    side.watcher.has_gradients = keep_gradients
    try:
        take(trainer, COMPARED)
    finally:
        trainer.compute_loss = compute_loss
        side.watcher.be_silent()


def time_steps(side: Side, steps: int, on_step: Callable[[], None]) -> None:
    """Take `steps` steps and keep the seconds of each: policy, reference, loss, backward, clipping, optimizer."""
    clock = clock_of(side.trainer.accelerator.device)
    seconds: list[float] = []
    begun = 0.0

    def begin() -> None:
        nonlocal begun
        begun = clock()

    def end() -> None:
        seconds.append(clock() - begun)
        on_step()

    side.watcher.begins = begin
    side.watcher.ends = end
    try:
        take(side.trainer, steps)
    finally:
        side.watcher.be_silent()
    side.rounds.append(seconds)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds of this process on a CPU, which other programs do not lengthen; on a GPU those of the wall."""
    return time.process_time if device.type == "cpu" else wall_seconds


def take(trainer: Any, steps: int) -> None:
    """Let a trainer take its first steps again."""
    trainer.args.max_steps = steps
    trainer.train()


def agreement(trl: Side, ours: Side) -> Agreement:
    """How far losses and gradients lie apart at most: |ours - TRL's| / |TRL's|, for gradients of the norms."""
    losses = [abs(b - a) / abs(a) for a, b in zip(trl.losses, ours.losses, strict=True)]
    gradients = [_distance(a, b) for a, b in zip(trl.gradients, ours.gradients, strict=True)]
    return Agreement(max(losses), max(gradients))


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.detach().float().cpu().clone()
    return gradients


def _distance(of_trl: dict[str, torch.Tensor], of_ours: dict[str, torch.Tensor]) -> float:
    squared_difference = squared_norm = 0.0
    for name, gradient in of_trl.items():
        squared_difference += (of_ours[name] - gradient).double().square().sum().item()
        squared_norm += gradient.double().square().sum().item()
    return (squared_difference / squared_norm) ** 0.5


class Held:
    """Counts the bytes that a forward holds for its backward, each storage once and the model's own not at all."""

    def __init__(self, model: Any):
        self.bytes = 0
        self._storages: dict[int, Any] = {}  # kept alive, so that no address comes twice
        own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

        def hold(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address not in own and address not in self._storages:
                self._storages[address] = storage
                self.bytes += storage.nbytes()
            return tensor.detach()  # else what a node saves of its own output would never be freed

        self._hooks = torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor)

    def __enter__(self) -> Held:
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.__exit__()
        self._storages.clear()

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
    # Of the first steps
    losses: list[float] = field(default_factory=list)
    held: list[int] = field(default_factory=list)  # bytes

    def seconds(self) -> list[float]:
        """The median seconds of each step over the rounds."""
        return [statistics.median(times) for times in zip(*self.rounds, strict=True)]


class Agreement(NamedTuple):
    """The largest differences between the two sides, |ours - TRL's| / |TRL's|, for gradients of the norms."""

    loss: float
    gradient: float


def compare_first_steps(trl: Side, ours: Side, on_side: Callable[[], None]) -> Agreement:
    """Take COMPARED steps of each side, which warm up too; keep their losses and the bytes they hold.

    Gradients are compared as they come, and none is kept.
    """
    of_trl: list[dict[str, torch.Tensor]] = []  # gradients of each step, until ours are there
    differences: list[float] = []

    def keep() -> None:
        of_trl.append(_gradients(trl.trainer.model))

    def compare() -> None:
        differences.append(_distance(of_trl.pop(0), ours.trainer.model))

    for side, look in ((trl, keep), (ours, compare)):
        _take_first_steps(side, look)
        on_side()
    of_losses = [abs(b - a) / abs(a) for a, b in zip(trl.losses, ours.losses, strict=True)]
    return Agreement(max(of_losses), max(differences))


def _take_first_steps(side: Side, has_gradients: Callable[[], None]) -> None:
    trainer = side.trainer
    compute_loss = trainer.compute_loss

    def counted(*args: Any, **given: Any) -> Any:
        with Held(trainer.model) as held:
            loss = compute_loss(*args, **given)
        side.held.append(held.bytes)
        side.losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss

    trainer.compute_loss = counted
    side.watcher.has_gradients = has_gradients
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


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.detach().float().cpu().clone()
    return gradients


def _distance(of_trl: dict[str, torch.Tensor], ours: Any) -> float:
    """How far the gradients of our model lie from TRL's: |ours - TRL's| / |TRL's|, of the norms over all parameters."""
    of_ours = dict(ours.named_parameters())
    squared_difference = squared_norm = 0.0
    for name, gradient in of_trl.items():
        squared_difference += (of_ours[name].grad.float().cpu() - gradient).double().square().sum().item()
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

"""The callback that asks the rules while a run goes on, and what it remembers between steps.

Leans on TRL 1.16: the order of the events of its Trainer, which is Transformers', and what each of them is given.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .remembering import Remembering
from .rules import MOVED_AFTER, gradient_is_finite, rewards_moved, sample_weights, something_moved, stop


@dataclass
class Health:
    """What the guard needs to remember between steps."""

    declared_loss: float | None  # what the loss must be where policy and reference agree
    same_start: bool  # the reference is the start weights, so that rewards begin at 0
    plugins: tuple[str, ...] = ()  # names of the losses of one's own
    first_weights: dict[str, Tensor] = field(default_factory=dict)  # samples; empty once they have been compared
    grad_norms: list[float] = field(default_factory=list)  # finite ones, of the first steps
    steps: int = 0  # optimiser steps at a learning rate above 0
    full_steps: int = 0  # and at half the peak or more
    largest_reward: float = 0.0  # the largest log-ratio seen after such a step, nats


class Watch(Remembering):
    """Stops a run that does not train: nothing moves, no gradient, a gradient that is not a number."""

    def __init__(self, health: Health):
        self.health = health

    def remembered(self) -> dict[str, Any]:
        health = self.health
        return {
            "grad_norms": health.grad_norms,
            "steps": health.steps,
            "full_steps": health.full_steps,
            "largest_reward": health.largest_reward,
            "has_moved": not health.first_weights,
        }

    def remember(self, values: dict[str, Any]) -> None:
        has_moved = values.pop("has_moved")
        for name, value in values.items():
            setattr(self.health, name, value)
        if has_moved:
            self.health.first_weights = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.health.first_weights = sample_weights(list(model.named_parameters()))
        super().on_train_begin(args, state, control, **kwargs)
        # Asked of the parameters themselves: where the weights are sharded, they hold no elements to sample here.
        if not any(parameter.requires_grad for parameter in model.parameters()):
            stop(something_moved({}, {}, [], self.health.plugins))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if getattr(optimizer, "step_was_skipped", False):  # fp16's loss scaling, after an overflow
            return
        learning_rate = optimizer.param_groups[0]["lr"]
        if learning_rate > 0:
            self.health.steps += 1
        if learning_rate >= args.learning_rate / 2:
            self.health.full_steps += 1

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        grad_norm = (logs or {}).get("grad_norm")
        if grad_norm is None:
            return
        if not args.fp16:  # whose loss scaling starts with overflows
            stop(gradient_is_finite(grad_norm, state.global_step, self.health.plugins))
        # A step is logged after its end, so that the last norm to look at comes one step late.
        if math.isfinite(grad_norm) and self.health.steps <= MOVED_AFTER + 1:
            self.health.grad_norms.append(grad_norm)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.health.steps >= MOVED_AFTER:
            self._compare_weights(model)
        # The forwards so far have seen one update less than there were steps.
        stop(rewards_moved(self.health.largest_reward, self.health.full_steps - 1))
        # The first gradient norms are looked at however rarely the recipe logs.
        if self.health.steps <= MOVED_AFTER:
            control.should_log = True

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # and not one that was stopped, and may go on
            self._compare_weights(model)  # of a run that was too short for it

    def _compare_weights(self, model: Any) -> None:
        """Stop where nothing has moved since the start; looked at once."""
        first_weights = self.health.first_weights
        if not first_weights:
            return
        self.health.first_weights = {}
        weights = sample_weights(list(model.named_parameters()))
        stop(something_moved(first_weights, weights, self.health.grad_norms, self.health.plugins))

"""A run must not fail in silence: rules, which return the reason to stop in words or None, and their callback."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from ..errors import RecipeError
from ..losses.pair_logps import PairLogps

# Nats per token by which policy and reference may differ before the first update, when both are the same weights:
# kernels and batch shapes round differently, above all in 16 bit.
TOLERANCE = {False: 1e-3, True: 5e-2}
MOVED_AFTER = 5  # optimiser steps with a learning rate above 0
REWARDS_AFTER = 10  # and these many for the rewards, which 16-bit activations may round away at first


def start_is_identity(pairs: PairLogps, loss: float, declared: float | None, half: bool) -> str | None:
    """Before the first update policy and reference agree, so rewards are 0 and the loss has its declared value.

    `declared` is that value in nats where the losses have one; `half` says that the forward runs in 16 bit.
    """
    chosen = pairs.chosen_logratios.abs() / pairs.chosen_tokens.clamp(min=1)
    rejected = pairs.rejected_logratios.abs() / pairs.rejected_tokens.clamp(min=1)
    gap = chosen.maximum(rejected).max().item()  # a NaN stays one, which Python's max would lose
    if not gap <= TOLERANCE[half]:
        return (
            f"Before the first update the policy must equal its reference, but they differ by {gap:.2g} nats per token "
            f"(at most {TOLERANCE[half]:g} is rounding). Suspects: a wrong reference (an adapter whose start is not "
            "zero, or other weights), dropout that is still on, a precision that differs between the two passes, or "
            "padding that changes the numbers (try attn_implementation='eager')."
        )
    if declared is not None and not abs(loss - declared) <= (0.1 if half else 0.01) * max(abs(declared), 1):
        suspects = "a loss that does not compute what it declares, or a weight applied twice"
        found = f"the loss must be {declared:.6g}, but it is {loss:.6g} although policy and reference agree"
        return f"Before the first update {found}. Suspects: {suspects}."
    return None


def samples(parameters: list[tuple[str, Tensor]], each: int = 256) -> dict[str, Tensor]:
    """Up to `each` evenly spread elements of every trainable tensor, copied: enough to see whether it moves."""
    found = {name: tensor.detach() for name, tensor in parameters if tensor.requires_grad and tensor.numel()}
    return {name: t.flatten()[:: -(-t.numel() // each)].float().cpu().clone() for name, t in found.items()}


def something_moved(before: dict[str, Tensor], after: dict[str, Tensor], grad_norms: list[float]) -> str | None:
    """After a few optimiser steps some trainable tensor has changed and some gradient norm was positive."""
    suspects = (
        "a frozen adapter, a learning rate too small for the weights' precision (16-bit weights swallow small steps), "
        "pairs whose two sides are the same, or gradient checkpointing that cuts the adapter off"
    )
    if not before:
        return f"No tensor of the model is trainable. Suspects: {suspects}."
    if grad_norms and not any(norm > 0 for norm in grad_norms):
        return f"The gradient was exactly 0 in the first {len(grad_norms)} optimiser steps. Suspects: {suspects}."
    if all(before[name].equal(after[name]) for name in before):
        return f"No trainable tensor of {len(before)} has changed in the first optimiser steps. Suspects: {suspects}."
    return None


def rewards_moved(largest: float, steps: int) -> str | None:
    """After some steps at the full learning rate the policy's log-probabilities differ from the reference's."""
    if steps < REWARDS_AFTER or largest != 0:
        return None
    return (
        f"Every reward is still exactly 0 after {steps} optimiser steps at the full learning rate: the weights move, "
        "the outputs do not. Suspects: an adapter that the forward does not use, a reference that moves with the "
        "policy, or a learning rate far too small for 16-bit activations (adapters: 5e-6 and up)."
    )


def stop(reason: str | None) -> None:
    """Raise the reason, if there is one."""
    if reason:
        raise RecipeError(reason)


def first_bad_pair(pairs: PairLogps) -> int:
    """Index of the pair with a non-finite log-probability, else of the one with the largest margin."""
    return int(pairs.h.abs().nan_to_num(nan=math.inf, posinf=math.inf).argmax())


@dataclass
class Health:
    """What the guard needs to remember between steps."""

    declared: float | None
    same_start: bool  # the reference is the start weights, so that rewards begin at 0
    before: dict[str, Tensor] = field(default_factory=dict)
    grad_norms: list[float] = field(default_factory=list)
    steps: int = 0  # optimiser steps at a learning rate above 0
    full_steps: int = 0  # and at half the peak or more
    largest_reward: float = 0.0


class Watch(TrainerCallback):
    """Stops a run that does not train: nothing moves, no gradient, a gradient that is not a number."""

    def __init__(self, health: Health):
        self.health = health

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.health.before = samples(list(model.named_parameters()))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            stop(something_moved({}, {}, []))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        skipped = getattr(optimizer, "step_was_skipped", False)  # fp16's loss scaling, after an overflow
        rate = 0.0 if skipped else optimizer.param_groups[0]["lr"]
        self.health.steps += rate > 0
        self.health.full_steps += rate >= args.learning_rate / 2

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        norm = (logs or {}).get("grad_norm")
        if norm is None or self.health.steps > MOVED_AFTER + 1 and math.isfinite(norm):
            return
        if not math.isfinite(norm) and not args.fp16:  # fp16's loss scaling starts with overflows
            suspects = "an attention kernel (try attn_implementation='eager'), or float16"
            stop(f"The gradient norm is {norm} at step {state.global_step}, the loss is finite. Suspects: {suspects}.")
        self.health.grad_norms.append(norm)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.health.steps >= MOVED_AFTER:
            self.on_train_end(args, state, control, model)
        stop(rewards_moved(self.health.largest_reward, self.health.full_steps - 1))
        # The first gradient norms are looked at however rarely the recipe logs.
        control.should_log |= self.health.steps <= MOVED_AFTER

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        before, self.health.before = self.health.before, {}
        if before:  # once, at the end of a short run or before
            norms = [n for n in self.health.grad_norms if math.isfinite(n)]
            stop(something_moved(before, samples(list(model.named_parameters())), norms))

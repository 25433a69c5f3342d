"""The rules that stop a run: each a pure function of what was measured, which returns the reason in words, or None.

A new rule is one more function here, and one line in `callback.Watch` that asks it.
"""

import math

from torch import Tensor

from ..errors import RecipeError
from ..losses.pair_logps import PairLogps

# Optimiser steps at a learning rate above 0 after which some weight must have changed.
MOVED_AFTER = 5
# And after which the rewards must have changed: 16-bit activations may round their first changes away.
REWARDS_AFTER = 10


def stop(reason: str | None) -> None:
    """Raise the reason of a rule as a RecipeError, if there is one."""
    if reason:
        raise RecipeError(reason)


def sample_weights(parameters: list[tuple[str, Tensor]], each: int = 256) -> dict[str, Tensor]:
    """Up to `each` evenly spread elements of every trainable tensor, copied: enough to see whether it moves."""
    samples = {}
    for name, tensor in parameters:
        if not tensor.requires_grad or not tensor.numel():
            continue
        stride = math.ceil(tensor.numel() / each)
        samples[name] = tensor.detach().flatten()[::stride].float().cpu().clone()
    return samples


def something_moved(
    before: dict[str, Tensor], after: dict[str, Tensor], grad_norms: list[float], plugins: tuple[str, ...] = ()
) -> str | None:
    """After a few optimiser steps some trainable tensor has changed and some gradient norm was positive.

    `before` and `after` are samples of the weights, by name; `plugins` the names of the losses of one's own.
    """
    suspects = (
        "a frozen adapter, a learning rate too small for the weights' precision (16-bit weights swallow small steps), "
        "pairs whose two sides are the same, or gradient checkpointing that cuts the adapter off"
    )
    if not before:
        return f"No tensor of the model is trainable. Suspects: {suspects}."
    if grad_norms and not any(norm > 0 for norm in grad_norms):
        suspects = f"{_losses_first(plugins)}{suspects}"
        return f"The gradient was exactly 0 in the first {len(grad_norms)} optimiser steps. Suspects: {suspects}."
    if all(before[name].equal(after[name]) for name in before):
        return f"No trainable tensor of {len(before)} has changed in the first optimiser steps. Suspects: {suspects}."
    return None


def rewards_moved(largest: float, steps: int) -> str | None:
    """After some steps at the full learning rate the policy's log-probabilities differ from the reference's.

    `largest` is the largest log-ratio that was seen, in nats.
    """
    if steps < REWARDS_AFTER or largest != 0:
        return None
    return (
        f"Every reward is still exactly 0 after {steps} optimiser steps at the full learning rate: the weights move, "
        "the outputs do not. Suspects: an adapter that the forward does not use, a reference that moves with the "
        "policy, or a learning rate far too small for 16-bit activations (adapters: 5e-6 and up)."
    )


def _losses_first(plugins: tuple[str, ...]) -> str:
    """The losses of one's own as the first suspects; nothing where all are TRL's."""
    if not plugins:
        return ""
    return f"{' and '.join(f'{name}()' for name in plugins)}, a loss of your own that may be constant on these pairs; "


def gradient_is_finite(grad_norm: float, step: int, plugins: tuple[str, ...] = ()) -> str | None:
    """The gradient norm is a number at every step. Asked only after a loss that is one, or a run has stopped for it."""
    if math.isfinite(grad_norm):
        return None
    own = ""
    if plugins:
        names = " and ".join(f"{name}()" for name in plugins)
        own = f"the gradient of {names}, a loss of your own (a root or a logarithm at 0, torch.where over a NaN), "
    return (
        f"The gradient norm is {grad_norm} at step {step}, the loss is finite. "
        f"Suspects: {own}an attention kernel (try attn_implementation='eager'), or float16."
    )


def first_bad_pair(pairs: PairLogps) -> int:
    """Index of the pair with a non-finite log-probability, else of the one with the largest margin."""
    margins = pairs.h.abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return int(margins.argmax())

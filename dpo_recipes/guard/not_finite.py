"""A loss that is not finite: what is known at that moment, and the suspects in that order."""

from dataclasses import dataclass

from ..losses.pair_logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is known when a loss or a log-probability is not finite."""

    step: int
    updates: int  # optimiser steps so far at a learning rate above 0
    learning_rate: float
    beta: float
    half: bool  # whether the forward runs in 16 bit
    weights: list[str]  # names of those tensors that hold a number that is not finite
    plugins: tuple[str, ...]  # the losses of one's own whose values are not finite


def why_not_finite(loss: float, pairs: PairLogps, known: Circumstances) -> str:
    """What is not finite first on the way from the weights to the loss, and what may have made it so."""
    what = f"The loss is {loss:g} at step {known.step}"
    no_update = "No update has been made yet, so that the learning rate is not to blame."

    if known.weights:
        where = known.weights[0]
        if len(known.weights) > 1:
            where += f" and {len(known.weights) - 1:,} more"
        if not known.updates:
            return f"{what}: the weights hold numbers that are not finite, in {where}. {no_update}"
        return (
            f"{what}: after {known.updates:,} updates the weights hold numbers that are not finite, in {where}. "
            f"Suspects: a learning rate far too high (learning_rate={known.learning_rate:g}), or a gradient that was "
            "not finite."
        )

    side = _first_side_not_finite(pairs)
    if side:
        suspects = "an attention kernel (try attn_implementation='eager')"
        if known.half:
            suspects = f"16-bit activations that overflow (try dtype='float32'), or {suspects}"
        if known.updates:
            suspects += f", or a learning rate far too high (learning_rate={known.learning_rate:g})"
            no_update = "The weights are finite."
        return f"{what}: the log-probabilities of the {side} are not finite. Suspects: {suspects}. {no_update}"

    if known.plugins:
        names = " and ".join(f"{name}()" for name in known.plugins)
        return (
            f"{what}: {names} gives a value that is not finite for log-probabilities that all are. Look there for a "
            "logarithm, a root, a quotient or an exponential that leaves its range."
        )
    largest = pairs.h.abs().max().item()
    return (
        f"{what}, although the log-probabilities are finite: their margins reach {largest:.3g} nats, and the loss at "
        f"beta={known.beta:g} does not bear that. Suspects: beta, or a loss that grows with its exponential."
    )


def _first_side_not_finite(pairs: PairLogps) -> str | None:
    """The model whose log-probabilities are not finite; the reference first, which no update has changed."""
    for model in ("reference", "policy"):
        chosen, rejected = getattr(pairs, f"{model}_chosen"), getattr(pairs, f"{model}_rejected")
        if not bool((chosen.isfinite() & rejected.isfinite()).all()):
            return model
    return None

"""Before the first update: policy and reference must agree, and the loss must have the value that it declares."""

from ..losses.pair_logps import PairLogps
from ..losses.selection import at_start as plugin_at_start
from ..losses.trl_losses import TRL_LOSSES
from ..recipe.recipe import Recipe


def rounding_tolerance(half: bool) -> float:
    """Nats per token by which two passes of the same weights may differ; `half` says that they run in 16 bit.

    Kernels and batch shapes round differently, above all in 16 bit.
    """
    return 5e-2 if half else 1e-3


def loss_at_start(recipe: Recipe) -> float | None:
    """The recipe's whole loss where the policy still equals its reference; None where a part has no fixed value."""
    if recipe.trl.get("use_weighting"):  # by how likely the policy finds each answer
        return None
    label_smoothing = float(recipe.trl.get("label_smoothing", 0.0))
    total = 0.0
    for name, weight in recipe.trl_losses.items():
        at_start = TRL_LOSSES[name].at_start
        if at_start is None:
            return None
        total += weight * at_start(recipe.beta, label_smoothing)
    for function, weight in recipe.plugins.values():
        declared = plugin_at_start(function, recipe.beta, recipe.numbers(function))
        if declared is None:
            return None
        total += weight * declared
    return total


def start_is_identity(pairs: PairLogps, loss: float, declared_loss: float | None, half: bool) -> str | None:
    """Before the first update policy and reference agree, so rewards are 0 and the loss has its declared value.

    `declared_loss` is that value in nats where the losses have one; `half` says that the forward runs in 16 bit.
    Returns the reason to stop, or None.
    """
    gap = _largest_gap_per_token(pairs)
    tolerance = rounding_tolerance(half)
    if not gap <= tolerance:  # and not `gap > tolerance`, which a NaN is not
        return (
            f"Before the first update the policy must equal its reference, but they differ by {gap:.2g} nats per token "
            f"(at most {tolerance:g} is rounding). Suspects: a wrong reference (an adapter whose start is not "
            "zero, or other weights), dropout that is still on, a precision that differs between the two passes, or "
            "padding that changes the numbers (try attn_implementation='eager')."
        )

    if declared_loss is None:
        return None
    # Relative, but not below a value of 1: rounding of a loss near 0 is not relative to it.
    allowed = (0.1 if half else 0.01) * max(abs(declared_loss), 1)
    if not abs(loss - declared_loss) <= allowed:
        return (
            f"Before the first update the loss must be {declared_loss:.6g}, but it is {loss:.6g} although policy and "
            "reference agree. Suspects: a loss that does not compute what it declares, or a weight applied twice."
        )
    return None


def _largest_gap_per_token(pairs: PairLogps) -> float:
    """Nats per token between policy and reference, of the side where they differ most; NaN where one is NaN."""
    chosen = pairs.chosen_logratios.abs() / pairs.chosen_tokens.clamp(min=1)
    rejected = pairs.rejected_logratios.abs() / pairs.rejected_tokens.clamp(min=1)
    return chosen.maximum(rejected).max().item()  # of tensors: Python's max would lose a NaN

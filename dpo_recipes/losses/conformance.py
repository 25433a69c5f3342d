"""The kit that checks any plugin loss: its shape, its numbers at the edges, its gradient, its formula.

torch is imported inside the functions only, so that naming the kit does not pay for it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .pair_logps import PairLogps
from .plugins import Loss
from .selection import at_start, own_numbers

if TYPE_CHECKING:
    from torch import Generator, Tensor

PAIRS = 64  # in the batch of ordinary margins
EXTREMES = [-1e4, 1e4, 1.0]  # nats


def conformance(loss: Loss, *, beta: float = 0.1, formula: Callable[..., Any] | None = None, **args: Any) -> list[str]:
    """What is wrong with a plugin loss, one sentence each; an empty list is a pass.

    `formula` is an independent float64 computation of the value for one pair. It names what it reads of `h`, `policy_h`
    (log pi(chosen) - log pi(rejected)), `chosen_logratio` and `rejected_logratio`, all in nats, beside `beta` and the
    loss's own numbers.
    """
    try:
        own_numbers(loss)  # which refuses what is no loss
        return list(_broken_rules(loss, beta, args, formula))
    except Exception as error:
        return [f"it fails: {type(error).__name__}: {error}"]


def _broken_rules(
    loss: Loss, beta: float, numbers: dict[str, Any], formula: Callable[..., Any] | None
) -> Iterator[str]:
    """A sentence for each rule that does not hold; after a wrong shape none of the others can be asked."""
    import torch

    draw = torch.Generator().manual_seed(0)
    value_of = functools.partial(loss, beta=beta, **numbers)

    ordinary = _pairs_with(20 * torch.randn(PAIRS, generator=draw, dtype=torch.float64), draw)
    extreme = _pairs_with(torch.tensor(EXTREMES), draw)
    start = _pairs_at_the_start(8, draw)

    values = value_of(ordinary)
    if tuple(values.shape) != (PAIRS,):
        yield f"the result has shape {tuple(values.shape)}, not (pairs,) = ({PAIRS},)"
        return

    yield from _not_finite(value_of, extreme)
    yield from _dependent_on_neighbours(value_of, ordinary, draw)
    declared = at_start(loss, beta, numbers)
    if declared is not None:
        yield from _not_as_declared(value_of(start), declared)
    yield from _wrong_direction(value_of, start)
    if formula is not None:
        yield from _not_the_formula(values, ordinary, functools.partial(formula, beta=beta, **numbers))


# The batches.


def _pairs_with(h: Tensor, draw: Generator) -> PairLogps:
    """Random log-probabilities whose difference of log-ratios is h, for each pair; the policy's have gradients."""
    import torch

    # `elsewhere` moves both log-ratios alike, so that a loss which reads one of them alone meets other values than h.
    chosen, rejected, elsewhere = -100 * torch.rand(3, len(h), generator=draw, dtype=h.dtype)
    shift = elsewhere - rejected
    return _pairs(chosen + shift + h, rejected + shift, chosen, rejected, draw)


def _pairs_at_the_start(count: int, draw: Generator) -> PairLogps:
    """As before the first update: policy and reference agree, so that both log-ratios are 0."""
    import torch

    chosen, rejected = -100 * torch.rand(2, count, generator=draw, dtype=torch.float64)
    return _pairs(chosen.clone(), rejected.clone(), chosen, rejected, draw)


def _pairs(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    draw: Generator,
) -> PairLogps:
    import torch

    chosen_tokens, rejected_tokens = torch.randint(1, 200, (2, len(policy_chosen)), generator=draw)
    return PairLogps(
        policy_chosen=policy_chosen.requires_grad_(),
        policy_rejected=policy_rejected.requires_grad_(),
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
    )


# The rules: each yields a sentence where it does not hold.


def _not_finite(value_of: Loss, extreme: PairLogps) -> Iterator[str]:
    values = value_of(extreme)
    if not values.isfinite().all():
        yield f"not finite at margins of -1e4, 1e4 and 1 nats: {values.tolist()}"
    chosen_gradient, rejected_gradient = _gradients(value_of, extreme)
    if not (chosen_gradient.isfinite().all() and rejected_gradient.isfinite().all()):
        yield "its gradient is not finite at margins of -1e4 or 1e4 nats"


def _dependent_on_neighbours(value_of: Loss, pairs: PairLogps, draw: Generator) -> Iterator[str]:
    """The order of the pairs and the micro-batch that they stand in must not matter."""
    import torch

    same = functools.partial(torch.allclose, rtol=1e-9, atol=1e-12)
    values = value_of(pairs)

    order = torch.randperm(PAIRS, generator=draw)
    reordered = pairs.map(lambda tensor: tensor[order])
    if not same(value_of(reordered), values[order]):
        yield "the order of the pairs changes their losses"

    half = PAIRS // 2
    first = pairs.map(lambda tensor: tensor[:half])
    second = pairs.map(lambda tensor: tensor[half:])
    if not same(torch.cat([value_of(first), value_of(second)]), values):
        yield "the micro-batch split changes the losses: a pair must not depend on its neighbours"


def _not_as_declared(values: Tensor, declared: float) -> Iterator[str]:
    import torch

    if not values.allclose(torch.full_like(values, declared), rtol=1e-6):
        yield f"declared {declared} where policy and reference agree, but it is {values.mean().item()}"


def _wrong_direction(value_of: Loss, start: PairLogps) -> Iterator[str]:
    chosen_gradient, rejected_gradient = _gradients(value_of, start)
    if not (chosen_gradient < 0).all():
        yield "a step down its gradient does not raise the chosen log-probability"
    if not (rejected_gradient >= 0).all():
        yield "a step down its gradient raises the rejected log-probability"


def _not_the_formula(values: Tensor, pairs: PairLogps, formula: Callable[..., float]) -> Iterator[str]:
    import torch

    known = {
        "h": pairs.h,
        "policy_h": pairs.policy_chosen - pairs.policy_rejected,
        "chosen_logratio": pairs.chosen_logratios,
        "rejected_logratio": pairs.rejected_logratios,
    }
    parameters = inspect.signature(formula).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    columns = {name: values.tolist() for name, values in known.items() if takes_all or name in names}

    by_formula = []
    for pair in range(len(pairs.h)):
        by_formula.append(formula(**{name: column[pair] for name, column in columns.items()}))
    expected = torch.tensor(by_formula, dtype=torch.float64)
    gap = ((values - expected).abs() / expected.abs().clamp(min=1)).max().item()
    if not gap <= 1e-6:  # so that a NaN is a gap too
        yield f"differs from the formula by {gap:.1e}"


def _gradients(value_of: Loss, pairs: PairLogps) -> tuple[Tensor, Tensor]:
    """Of the summed loss: with respect to the policy's chosen and to its rejected log-probabilities."""
    import torch

    sides = (pairs.policy_chosen, pairs.policy_rejected)
    # Where a loss does not read a side, autograd would raise; tied to 0 times that side, its gradient is 0.
    tied = value_of(pairs).sum() + 0 * pairs.policy_chosen.sum() + 0 * pairs.policy_rejected.sum()
    chosen_gradient, rejected_gradient = torch.autograd.grad(tied, sides)
    return chosen_gradient, rejected_gradient

"""The kit that checks any plugin loss: its result, its numbers at the edges, its gradient, its formula.

Some rules stop a run, as training cannot work where they are broken; the others advise, as published losses break them.
torch is imported inside the functions only, so that naming the kit does not pay for it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import RecipeError
from .pair_logps import PairLogps
from .plugins import Loss
from .selection import at_start, own_numbers

if TYPE_CHECKING:
    from torch import Generator, Tensor

PAIRS = 64  # in the batch of ordinary margins
EXTREMES = [-1e4, 1e4, 1.0]  # nats
WIDEST = 1e4  # nats, the spread of margins where beta is tiny
# Nats: the highest log-probability of a whole side in the kit. 0 would be certainty, where log(1 - p) has no value.
HIGHEST_LOGP = -0.1
# By how much the value at the start may miss the declared one: rounding; and what stops a run, as in its first step.
ROUNDING, MISDECLARED = 1e-6, 1e-2
# The share of pairs above which a loss is said to prefer the rejected side; one that restrains only is right in half.
MOSTLY = 0.75


class Breach(NamedTuple):
    """A rule that does not hold."""

    sentence: str  # what is wrong, to be read after the name of the loss
    stops: bool  # training cannot work so; False: it can, and one should know


def conformance(loss: Loss, *, beta: float = 0.1, formula: Callable[..., Any] | None = None, **args: Any) -> list[str]:
    """What is wrong with a plugin loss, one sentence each; an empty list is a pass.

    `formula` is an independent float64 computation of the value for one pair. It names what it reads of `h`, `policy_h`
    (log pi(chosen) - log pi(rejected)), `chosen_logratio` and `rejected_logratio`, all in nats, beside `beta` and the
    loss's own numbers.
    """
    return [breach.sentence for breach in breaches(loss, beta, args, formula=formula)]


def breaches(
    loss: Loss,
    beta: float,
    numbers: dict[str, Any],
    *,
    alone: bool = True,
    same_start: bool = True,
    formula: Callable[..., Any] | None = None,
) -> list[Breach]:
    """The broken rules of a plugin loss with these numbers, up to the first that stops.

    `alone`: no other loss stands beside it, so that it has to tell the sides apart; what only holds the policy back
    need not. `same_start`: the reference is the policy's start, so that training begins where the two agree.
    """
    import torch

    try:
        own_numbers(loss)  # which refuses what is no loss
        # The run that follows draws the same random numbers as without the kit, and nothing of the kit is printed.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return list(_broken_rules(loss, beta, numbers, alone, same_start, formula))
    except RecipeError as error:
        return [Breach(str(error), stops=True)]
    except (Exception, SystemExit) as error:
        return [Breach(f"it fails: {failure(loss, error)}", stops=True)]


def failure(loss: Loss, error: BaseException) -> str:
    """The error that a loss raised, and the line of its own file that raised it."""
    text = f"{type(error).__name__}: {str(error).strip()}"
    file = getattr(getattr(loss, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if lines:
        text += f" (line {lines[-1]} of {file})"
    return text


def wrong_result(values: Any, pairs: int) -> str | None:
    """Why what a loss returned for so many pairs is no loss of each pair; None where it is one."""
    import torch

    if not isinstance(values, torch.Tensor):
        kind = "None" if values is None else f"a {type(values).__name__}"
        return f"it returns {kind}, not a tensor of shape (pairs,)"
    if tuple(values.shape) != (pairs,):
        return f"the result has shape {tuple(values.shape)}, not (pairs,) = ({pairs},)"
    if not values.is_floating_point():
        return f"the result is {_word(values.dtype)}, which has no gradient; float32 has"
    return None


def _broken_rules(
    loss: Loss,
    beta: float,
    numbers: dict[str, Any],
    alone: bool,
    same_start: bool,
    formula: Callable[..., Any] | None,
) -> Iterator[Breach]:
    """A breach for each rule that does not hold, up to the first that stops: the rest would only follow from it."""
    import torch

    draw = torch.Generator().manual_seed(0)
    value_of = functools.partial(loss, beta=beta, **numbers)

    ordinary = _pairs_with(20 * torch.randn(PAIRS, generator=draw, dtype=torch.float64), draw)
    extreme = _pairs_with(torch.tensor(EXTREMES), draw)
    start = _pairs_with(torch.zeros(8, dtype=torch.float64), draw, at_start=True)
    spread = min(max(20.0, 5 / beta), WIDEST)  # so that beta h is neither near 0 in all of them nor beyond all numbers
    wide = _pairs_with(spread * torch.randn(PAIRS, generator=draw, dtype=torch.float64), draw)

    rules = [
        _changed_inputs(value_of, ordinary),
        _no_loss_of_each_pair(value_of, ordinary),
        _other_when_asked_again(value_of, ordinary),
        _not_finite(value_of, ordinary, start),
        _dependent_on_neighbours(value_of, ordinary, draw),
        _not_as_declared(loss, beta, numbers, start),
        _no_gradient(value_of, ordinary),
        _wrong_way_round(value_of, start, wide, alone, same_start),
        _not_finite_far_out(value_of, extreme),
        _imprecise(value_of, ordinary),
    ]
    if formula is not None:
        rules.append(_not_the_formula(value_of, ordinary, functools.partial(formula, beta=beta, **numbers)))
    for rule in rules:
        for breach in rule:
            yield breach
            if breach.stops:
                return


# The batches.


def _pairs_with(h: Tensor, draw: Generator, at_start: bool = False) -> PairLogps:
    """Random log-probabilities whose difference of log-ratios is h, for each pair; the policy's have gradients.

    `at_start`: as before the first update, policy and reference agree; h is 0.
    """
    import torch

    tokens = torch.randint(1, 100, (2, len(h)), generator=draw)
    # Of the reference's chosen and rejected sides, and of the policy's rejected ones
    nats_per_token = 0.1 + torch.rand(3, len(h), generator=draw, dtype=h.dtype)
    chosen, rejected = -nats_per_token[:2] * tokens

    # The policy is drawn anew, so that a loss which reads one log-ratio alone meets other values than h.
    policy_rejected = rejected
    if not at_start:
        policy_rejected = -nats_per_token[2] * tokens[1]
    policy_chosen = chosen + (policy_rejected - rejected) + h
    too_high = (policy_chosen.maximum(policy_rejected) - HIGHEST_LOGP).clamp(min=0)
    return PairLogps(
        policy_chosen=(policy_chosen - too_high).requires_grad_(),
        policy_rejected=(policy_rejected - too_high).requires_grad_(),
        reference_chosen=chosen,
        reference_rejected=rejected,
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
    )


# The rules: each yields a breach where it does not hold.


def _changed_inputs(value_of: Loss, pairs: PairLogps) -> Iterator[Breach]:
    """What one loss changes, the other losses of a mix and the metrics would read."""
    given = pairs.map(lambda tensor: tensor.detach().clone())
    value_of(given)
    for name, tensor in vars(pairs).items():
        if not tensor.equal(getattr(given, name)):
            yield Breach(f"it changes pairs.{name} in place: leave the pairs as they are", stops=True)


def _no_loss_of_each_pair(value_of: Loss, pairs: PairLogps) -> Iterator[Breach]:
    """The result is a tensor of one float for each pair, also where a micro-batch holds one pair alone."""
    values = value_of(pairs)
    wrong = wrong_result(values, PAIRS)
    if wrong:
        yield Breach(wrong, stops=True)
    elif not values.requires_grad:
        yield Breach(
            "its result is cut off from the policy: it is a constant, detached, or made with item() or numpy, and has "
            "no gradient",
            stops=True,
        )
    wrong = wrong_result(value_of(pairs.map(lambda tensor: tensor[:1])), 1)
    if wrong:
        yield Breach(f"of one pair alone, {wrong}", stops=True)


def _other_when_asked_again(value_of: Loss, pairs: PairLogps) -> Iterator[Breach]:
    """The same pairs have the same losses, whenever they are asked for."""
    if not _values_with_seed(0, value_of, pairs).equal(_values_with_seed(0, value_of, pairs)):
        yield Breach(
            "the same pairs have other losses when they are asked for again: it remembers earlier calls, of an "
            "evaluation and of this check too, or draws from a random generator of its own",
            stops=True,
        )


def _values_with_seed(seed: int, value_of: Loss, pairs: PairLogps) -> Tensor:
    import torch

    torch.manual_seed(seed)
    return value_of(pairs).detach().nan_to_num()  # a NaN equals nothing, itself neither


def _not_finite(value_of: Loss, ordinary: PairLogps, start: PairLogps) -> Iterator[Breach]:
    for words, pairs in (("where policy and reference agree", start), ("at ordinary margins", ordinary)):
        values = value_of(pairs)
        if not values.isfinite().all():
            first = values[~values.isfinite()][0].item()
            yield Breach(f"it is not finite {words}: {first}", stops=True)
        if not _gradients_are_finite(value_of, pairs):
            yield Breach(f"its gradient is not finite {words}", stops=True)


def _not_finite_far_out(value_of: Loss, extreme: PairLogps) -> Iterator[Breach]:
    values = value_of(extreme)
    if not values.isfinite().all():
        yield Breach(f"not finite at margins of -1e4, 1e4 and 1 nats: {values.tolist()}", stops=False)
    if not _gradients_are_finite(value_of, extreme):
        yield Breach("its gradient is not finite at margins of -1e4 or 1e4 nats", stops=False)


def _gradients_are_finite(value_of: Loss, pairs: PairLogps) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in _gradients(value_of, pairs))


def _dependent_on_neighbours(value_of: Loss, pairs: PairLogps, draw: Generator) -> Iterator[Breach]:
    """The order of the pairs and the micro-batch that they stand in must not matter."""
    import torch

    if not _values_with_seed(0, value_of, pairs).equal(_values_with_seed(1, value_of, pairs)):
        yield Breach(
            "it draws random numbers: its values before and after training cannot be compared, and whether a pair "
            "depends on its neighbours cannot be checked",
            stops=False,
        )
        return

    values = value_of(pairs)
    tolerance = 1e-9 if values.dtype == torch.float64 else 1e3 * torch.finfo(values.dtype).eps
    same = functools.partial(torch.allclose, rtol=tolerance, atol=tolerance, equal_nan=True)

    order = torch.randperm(PAIRS, generator=draw)
    reordered = pairs.map(lambda tensor: tensor[order])
    if not same(value_of(reordered), values[order]):
        yield Breach("the order of the pairs changes their losses", stops=True)

    first = pairs.map(lambda tensor: tensor[:1])
    second = pairs.map(lambda tensor: tensor[1:])
    if not same(torch.cat([value_of(first), value_of(second)]), values):
        yield Breach(
            "the micro-batch split changes the losses: a pair must not depend on its neighbours, or micro_batch_size "
            "and the number of devices would decide what is trained",
            stops=True,
        )


def _not_as_declared(loss: Loss, beta: float, numbers: dict[str, Any], start: PairLogps) -> Iterator[Breach]:
    try:
        declared = at_start(loss, beta, numbers)
    except Exception as error:  # the user's function
        yield Breach(
            "its at_start must be a function of beta and the loss's own numbers that returns a number, and it fails: "
            f"{type(error).__name__}: {error}",
            stops=True,
        )
        return
    if declared is None:
        return

    values = loss(start, beta=beta, **numbers)
    gap = (values - declared).abs().max().item() / max(abs(declared), 1)
    if not gap <= ROUNDING:  # and not `gap > ROUNDING`, which a NaN is not
        yield Breach(
            f"declared {declared} where policy and reference agree, but it is {values.mean().item()}",
            stops=not gap <= MISDECLARED,
        )


def _no_gradient(value_of: Loss, pairs: PairLogps) -> Iterator[Breach]:
    if not _has_gradient(value_of, pairs):
        yield Breach("its gradient is 0: no pair teaches anything", stops=True)


def _has_gradient(value_of: Loss, pairs: PairLogps) -> bool:
    return any(bool(gradient.any()) for gradient in _gradients(value_of, pairs))


def _wrong_way_round(
    value_of: Loss, start: PairLogps, wide: PairLogps, alone: bool, same_start: bool
) -> Iterator[Breach]:
    if not _has_gradient(value_of, start):
        yield Breach(
            "its gradient is 0 where policy and reference agree: it cannot begin to train", stops=alone and same_start
        )
        if not alone:  # it holds the policy back once that has moved, in whatever direction
            return
    yield from _wrong_preference(value_of, wide, alone)
    yield from _wrong_direction(value_of, start, wide, alone)


def _wrong_preference(value_of: Loss, wide: PairLogps, alone: bool) -> Iterator[Breach]:
    """Where it is ranked as labelled, a pair costs less as it is than with its two sides exchanged."""
    is_ranked = _clearly_ranked(wide)
    ranked = wide.map(lambda tensor: tensor[is_ranked])
    exchanged = PairLogps(
        policy_chosen=ranked.policy_rejected,
        policy_rejected=ranked.policy_chosen,
        reference_chosen=ranked.reference_rejected,
        reference_rejected=ranked.reference_chosen,
        chosen_tokens=ranked.rejected_tokens,
        rejected_tokens=ranked.chosen_tokens,
    )
    gain = value_of(exchanged) - value_of(ranked)
    if not gain.any():
        yield Breach(
            "it does not tell chosen from rejected: a pair costs the same with its sides exchanged", stops=alone
        )
    elif (gain < 0).double().mean() > MOSTLY:
        yield Breach(
            "it prefers the rejected side: a pair that is ranked as labelled costs more than with its sides exchanged. "
            "Look at its sign, and at which side is which",
            stops=True,
        )


def _clearly_ranked(pairs: PairLogps) -> Tensor:
    """Which pairs the policy ranks as labelled, against its reference and without one, in all and per token."""
    is_ranked = (pairs.h > 0) & (pairs.policy_chosen > pairs.policy_rejected)
    is_ranked &= pairs.policy_chosen / pairs.chosen_tokens > pairs.policy_rejected / pairs.rejected_tokens
    chosen_per_token = pairs.chosen_logratios / pairs.chosen_tokens
    return is_ranked & (chosen_per_token > pairs.rejected_logratios / pairs.rejected_tokens)


def _wrong_direction(value_of: Loss, start: PairLogps, wide: PairLogps, alone: bool) -> Iterator[Breach]:
    """A step down the gradient widens the margin: it raises the chosen log-probability more than the rejected one.

    Not of every pair: a loss that has a target, or a hinge, may be content with some, and DiscoPOP narrows the smallest
    margins. And not by both sides: losses are published that lower the chosen side too, or raise the rejected one.
    """
    is_misranked = (wide.h < 0) & (wide.policy_chosen < wide.policy_rejected)
    chosen_gradient, rejected_gradient = _gradients(value_of, wide)
    if not (rejected_gradient > chosen_gradient)[is_misranked].any():
        yield Breach(
            "a step down its gradient widens the margin of no pair that is ranked the wrong way round", stops=alone
        )
        return

    chosen_gradient, rejected_gradient = _gradients(value_of, start)
    if (rejected_gradient < chosen_gradient).any():
        yield Breach("a step down its gradient narrows the margin of some pairs at the start", stops=False)
    elif not (chosen_gradient < 0).any():
        yield Breach("a step down its gradient does not raise the chosen log-probability", stops=False)
    elif (rejected_gradient < 0).any():
        yield Breach("a step down its gradient raises the rejected log-probability", stops=False)


def _imprecise(value_of: Loss, pairs: PairLogps) -> Iterator[Breach]:
    import torch

    dtype = value_of(pairs).dtype
    if torch.finfo(dtype).bits == 16:
        yield Breach(
            f"the result is {_word(dtype)}, in which small differences vanish; float32 keeps them", stops=False
        )


def _not_the_formula(value_of: Loss, pairs: PairLogps, formula: Callable[..., float]) -> Iterator[Breach]:
    import torch

    values = value_of(pairs)
    known = {
        "h": pairs.h,
        "policy_h": pairs.policy_chosen - pairs.policy_rejected,
        "chosen_logratio": pairs.chosen_logratios,
        "rejected_logratio": pairs.rejected_logratios,
    }
    parameters = inspect.signature(formula).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    columns = {name: column.tolist() for name, column in known.items() if takes_all or name in names}

    by_formula = []
    for pair in range(len(pairs.h)):
        by_formula.append(formula(**{name: column[pair] for name, column in columns.items()}))
    expected = torch.tensor(by_formula, dtype=torch.float64)
    gap = ((values - expected).abs() / expected.abs().clamp(min=1)).max().item()
    if not gap <= 1e-6:  # so that a NaN is a gap too
        yield Breach(f"differs from the formula by {gap:.1e}", stops=True)


def reads_beta(loss: Loss, beta: float, numbers: dict[str, Any]) -> bool:
    """Whether another beta gives other losses."""
    import torch

    draw = torch.Generator().manual_seed(0)
    pairs = _pairs_with(20 * torch.randn(PAIRS, generator=draw, dtype=torch.float64), draw)
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)
        values = loss(pairs, beta=beta, **numbers)
        torch.manual_seed(0)
        return not torch.equal(values, loss(pairs, beta=2 * beta, **numbers))


def _gradients(value_of: Loss, pairs: PairLogps) -> tuple[Tensor, Tensor]:
    """Of the summed loss: with respect to the policy's chosen and to its rejected log-probabilities."""
    import torch

    sides = (pairs.policy_chosen, pairs.policy_rejected)
    # Where a loss does not read a side, autograd would raise; tied to 0 times that side, its gradient is 0.
    tied = value_of(pairs).sum() + 0 * pairs.policy_chosen.sum() + 0 * pairs.policy_rejected.sum()
    chosen_gradient, rejected_gradient = torch.autograd.grad(tied, sides)
    return chosen_gradient, rejected_gradient


def _word(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")

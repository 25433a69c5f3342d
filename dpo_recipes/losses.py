"""Plugin losses: pure functions of `PairLogps`, each with its equation and paper, and the kit that checks them.

TRL's fifteen losses are TRL's and are not written again here; this table holds the ones that it lacks. A recipe file
may define its own with the same shape: `loss(pairs, *, beta, **its_own_numbers) -> Tensor of shape (pairs,)`.

h = (log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected)), in nats, summed over completion tokens.
torch is imported inside the functions, so that a recipe can name a loss without paying for the import.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .errors import RecipeError, UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[..., "Tensor"]
TRL_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
# What people look for here: plain DPO by its name, and losses that have a trainer of their own in TRL.
NOT_HERE = {"dpo": "Plain DPO is 'sigmoid'."} | dict.fromkeys(
    ("cpo", "simpo", "orpo", "kto"), "TRL has a trainer of its own for it."
)


@dataclass(frozen=True, kw_only=True)
class PairLogps:
    """What a plugin loss may see of a batch. Every tensor has shape (pairs,)."""

    policy_chosen: Tensor  # sum of completion-token log-probabilities, nats
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor  # completion lengths
    rejected_tokens: Tensor

    @property
    def chosen_logratios(self) -> Tensor:
        """log pi(chosen) - log ref(chosen), nats; beta times it is DPO's implicit reward (2305.18290, section 4)."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        """log pi(rejected) - log ref(rejected), nats."""
        return self.policy_rejected - self.reference_rejected

    @property
    def h(self) -> Tensor:
        """The difference of the two log-ratios, nats; beta * h is the reward margin."""
        return self.chosen_logratios - self.rejected_logratios

    def map(self, function: Callable[[Tensor], Tensor]) -> PairLogps:
        """The same pairs with `function` applied to each tensor."""
        return PairLogps(**{f.name: function(getattr(self, f.name)) for f in fields(self)})


def _logsigmoid(x: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def cdpo(pairs: PairLogps, *, beta: float, label_smoothing: float = 0.1) -> Tensor:
    """Conservative DPO: -(1-e) logsigmoid(beta h) - e logsigmoid(-beta h), labels flipped with probability e.

    Mitchell, "A note on DPO with noisy preferences & relationship to IPO" (2023), eq. 3; e in [0, 0.5).
    TRL's `sigmoid` read `label_smoothing` so until 0.28 and ignores it since 0.29.
    """
    h = pairs.h
    return -(1 - label_smoothing) * _logsigmoid(beta * h) - label_smoothing * _logsigmoid(-beta * h)


def ipo_sum(pairs: PairLogps, *, beta: float) -> Tensor:
    """IPO on summed log-ratios: (h - 1/(2 beta))^2. Azar et al. (2310.12036), eq. 17, with tau = beta.

    TRL's `ipo` divides each log-ratio by the completion length first, so a beta tuned for one is wrong for the other:
    here the target margin is 1/(2 beta) nats for the whole completion, there for each token.
    """
    return (pairs.h - 1 / (2 * beta)) ** 2


def reference_free(pairs: PairLogps, *, beta: float) -> Tensor:
    """-logsigmoid(beta (log pi(chosen) - log pi(rejected))): DPO with a uniform reference.

    The `reference_free` option of the DPO paper's own code (eric-mitchell/direct-preference-optimization,
    `preference_loss`), which TRL dropped. The reference is still read for the metrics, not for the loss.
    """
    return -_logsigmoid(beta * (pairs.policy_chosen - pairs.policy_rejected))


LOSSES: dict[str, Loss] = {"cdpo": cdpo, "ipo_sum": ipo_sum, "reference_free": reference_free}
# The value where policy and reference agree. A loss of one's own declares it as an attribute:
# `function.at_start = lambda beta, **its_own: number`; one that does not read the reference has none.
AT_START: dict[str, Callable[..., float]] = {
    "cdpo": lambda beta, **_: math.log(2),
    "ipo_sum": lambda beta, **_: 1 / (2 * beta) ** 2,
}
MUST_BE_GIVEN = inspect.Parameter.empty


def own_numbers(loss: Loss) -> dict[str, Any]:
    """The keyword numbers a plugin loss takes besides `beta`, with their defaults; RecipeError if it is no loss."""
    name = getattr(loss, "__name__", "<nameless>")
    if not name.isidentifier():
        raise RecipeError("A lambda, a partial or an object is no loss: write it with `def`, so that it has a name.")
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        signature = inspect.Signature()
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    first, own = parameters[:1], {p.name: p.default for p in parameters[1:]}
    positional = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in first)
    if not first or not positional or any(p.kind is not p.KEYWORD_ONLY for p in parameters[1:]) or "beta" not in own:
        raise RecipeError(
            f"The loss function {name!r} cannot be called as loss(pairs, *, beta, ...) with a name for each of its own "
            f"numbers: it is {name}{inspect.Signature(parameters)}. Write `def {name}(pairs, *, beta, ...)`."
        )
    return {name: default for name, default in own.items() if name != "beta"}


def name_of(loss: str | Loss) -> str:
    """The name a loss goes by in a recipe, in files and in messages."""
    return loss if isinstance(loss, str) else getattr(loss, "__name__", repr(loss))


def check(weights: dict[Any, float], args: dict[str, Any]) -> None:
    """Refuse losses that do not exist or share a name, weights that are not positive, and numbers no loss reads."""
    known, accepted = (*TRL_LOSSES, *LOSSES), dict[str, Any]()
    if not weights:
        raise UsageError("Recipe.loss={} names no loss.")
    for loss, weight in weights.items():
        name = name_of(loss)
        if isinstance(loss, str) and loss not in known:
            near = f" {NOT_HERE[loss]}" if loss in NOT_HERE else nearest(loss, known)
            raise UsageError(
                f"Recipe.loss={loss!r} is neither TRL's nor ours.{near} Known: {', '.join(known)}; a mix of several is "
                "{'sigmoid': 1.0, 'sft': 0.1}."
            )
        if not 0 < weight < math.inf:
            raise UsageError(f"Recipe.loss gives {name!r} the weight {weight!r}: weights are positive, finite numbers.")
        if not isinstance(loss, str) and name in known and LOSSES.get(name) is not loss:
            raise UsageError(
                f"Recipe.loss: a function named {name!r} would pass for the known loss: give it another name."
            )
        if not isinstance(loss, str) or loss in LOSSES:
            accepted |= own_numbers(LOSSES[loss] if isinstance(loss, str) else loss)
    if len({name_of(loss) for loss in weights}) < len(weights):
        raise UsageError(f"Recipe.loss names a loss twice: {', '.join(name_of(loss) for loss in weights)}.")
    for number, value in args.items():
        at = f"Recipe.loss_args.{number}={value!r}"
        if number not in accepted:
            takes = f"It takes {', '.join(accepted)}." if accepted else "TRL's losses take theirs in trl={...}."
            raise UsageError(
                f"{at} is read by no loss of {sorted(map(name_of, weights))}.{nearest(number, accepted)} {takes}"
            )
        if isinstance(accepted[number], (int, float)) and not (
            isinstance(value, (int, float)) and math.isfinite(value)
        ):
            raise UsageError(f"{at} has the wrong type: expected a number such as {accepted[number]!r}, its default.")
        if number == "label_smoothing" and not 0 <= value < 0.5:
            raise UsageError(f"{at} must lie in [0, 0.5).")
    if missing := [n for n, default in accepted.items() if default is MUST_BE_GIVEN and n not in args]:
        raise UsageError(f"Recipe.loss_args.{missing[0]} must be given: the loss has no default for it.")


def at_start(loss: Loss, beta: float, args: dict[str, Any]) -> float | None:
    """The declared value of a plugin loss where the policy still equals its reference; None when it has none."""
    ours = LOSSES.get(loss.__name__) is loss
    declared = AT_START.get(loss.__name__) if ours else getattr(loss, "at_start", None)
    defaults = {name: value for name, value in own_numbers(loss).items() if value is not MUST_BE_GIVEN}
    return float(declared(beta, **{**defaults, **args})) if declared else None


def conformance(
    loss: Loss, *, beta: float = 0.1, formula: Callable[..., float] | None = None, **args: Any
) -> list[str]:
    """What is wrong with a plugin loss, one sentence each; an empty list is a pass.

    Checked: signature, shape, value and gradient finite at margins up to +-1e4 nats, a gradient that raises chosen and
    does not raise rejected at the start, independence of pair order and of the micro-batch split, the declared start
    value, and, where `formula(h, beta, policy_h, **args)` is given as an independent float64 computation per pair, the
    value itself to 1e-6.
    """
    try:
        own_numbers(loss)
        return list(_violations(loss, beta, formula, args))
    except Exception as error:
        return [
            f"it fails: {error}" if isinstance(error, RecipeError) else f"it fails: {type(error).__name__}: {error}"
        ]


def _violations(loss: Loss, beta: float, formula: Callable[..., float] | None, args: dict[str, Any]) -> Iterator[str]:
    import torch

    draw = torch.Generator().manual_seed(0)

    def batch(h: Tensor) -> PairLogps:
        """Random log-probabilities whose difference of log-ratios is h; the policy's take part in gradients."""
        chosen, rejected, policy = -100 * torch.rand(3, len(h), generator=draw, dtype=h.dtype)
        tokens = torch.randint(1, 200, (2, len(h)), generator=draw)
        shift = policy - rejected if bool(h.any()) else torch.zeros_like(h)  # at h = 0 both log-ratios are 0
        return PairLogps(
            policy_chosen=(chosen + shift + h).requires_grad_(), policy_rejected=(rejected + shift).requires_grad_(),
            reference_chosen=chosen, reference_rejected=rejected, chosen_tokens=tokens[0], rejected_tokens=tokens[1],
        )  # fmt: skip

    def gradients(value: Tensor, pairs: PairLogps) -> list[Tensor]:
        sides = [pairs.policy_chosen, pairs.policy_rejected]
        found = torch.autograd.grad(value.sum(), sides, allow_unused=True) if value.requires_grad else (None, None)
        return [torch.zeros_like(pairs.h) if g is None else g for g in found]

    def same(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, rtol=1e-9, atol=1e-12)

    pairs = batch(20 * torch.randn(64, generator=draw, dtype=torch.float64))
    value = loss(pairs, beta=beta, **args)
    if tuple(value.shape) != (64,):
        yield f"the result has shape {tuple(value.shape)}, not (pairs,) = (64,)"
        return
    extreme = batch(torch.tensor([-1e4, 1e4, 1.0]))
    values = loss(extreme, beta=beta, **args)
    if not values.isfinite().all():
        yield f"not finite at margins of -1e4, 1e4 and 1 nats: {values.tolist()}"
    elif not all(g.isfinite().all() for g in gradients(values, extreme)):
        yield "its gradient is not finite at margins of -1e4, 1e4 and 1 nats"
    order = torch.randperm(64, generator=draw)
    if not same(loss(pairs.map(lambda t: t[order]), beta=beta, **args), value[order]):
        yield "the order of the pairs changes their losses"
    halves = [loss(half, beta=beta, **args) for half in (pairs.map(lambda t: t[:32]), pairs.map(lambda t: t[32:]))]
    if not same(torch.cat(halves), value):
        yield "the micro-batch split changes the losses: a pair must not depend on its neighbours"
    start = batch(torch.zeros(8, dtype=torch.float64))
    at_zero = loss(start, beta=beta, **args)
    declared = at_start(loss, beta, args)
    if declared is not None and not torch.allclose(at_zero, torch.full_like(at_zero, declared), rtol=1e-6):
        yield f"declared {declared:.6g} where policy and reference agree, but it is {at_zero.mean().item():.6g}"
    chosen, rejected = gradients(at_zero, start)
    if not bool((chosen < 0).all()):
        yield "a step down its gradient does not raise the chosen log-probability"
    if not bool((rejected >= 0).all()):
        yield "a step down its gradient raises the rejected log-probability"
    if formula is not None:
        columns = zip(pairs.h.tolist(), (pairs.policy_chosen - pairs.policy_rejected).tolist(), strict=True)
        expected = torch.tensor([formula(h=h, beta=beta, policy_h=p, **args) for h, p in columns], dtype=torch.float64)
        gap = ((value - expected).abs() / expected.abs().clamp(min=1)).max().item()
        if not gap <= 1e-6:
            yield f"differs from the formula by {gap:.1e}"

"""Plugin losses: pure functions of `PairLogps`, each with its equation and paper, and the kit that checks them.

The table holds the losses that TRL lacks; a recipe file may define its own, `loss(pairs, *, beta, **its_own_numbers)
-> Tensor of shape (pairs,)`. torch is imported inside functions only, so that naming a loss does not pay for it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[..., "Tensor"]
TRL_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip


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
        """The difference of the two log-ratios, nats, summed over completion tokens; beta * h is the reward margin."""
        return self.chosen_logratios - self.rejected_logratios

    def map(self, function: Callable[[Tensor], Tensor]) -> PairLogps:
        return PairLogps(**{f.name: function(getattr(self, f.name)) for f in fields(self)})


def cdpo(pairs: PairLogps, *, beta: float, label_smoothing: float = 0.1) -> Tensor:
    """Conservative DPO: -(1-e) logsigmoid(beta h) - e logsigmoid(-beta h), labels flipped with probability e.

    Mitchell, "A note on DPO with noisy preferences & relationship to IPO" (2023), eq. 3; e in [0, 0.5).
    TRL's `sigmoid` read `label_smoothing` so until 0.28 and ignores it since 0.29.
    """
    from torch.nn.functional import logsigmoid

    return -(1 - label_smoothing) * logsigmoid(beta * pairs.h) - label_smoothing * logsigmoid(-beta * pairs.h)


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
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (pairs.policy_chosen - pairs.policy_rejected))


LOSSES: dict[str, Loss] = {"cdpo": cdpo, "ipo_sum": ipo_sum, "reference_free": reference_free}
# The value where policy and reference agree; a loss of one's own declares it in the same way.
cdpo.at_start = lambda beta, **_: math.log(2)  # type: ignore[attr-defined]
ipo_sum.at_start = lambda beta, **_: 1 / (2 * beta) ** 2  # type: ignore[attr-defined]


def name_of(loss: str | Callable[..., Any]) -> str:
    """The name a loss, or any function, goes by in a recipe, in files and in messages."""
    return loss if isinstance(loss, str) else getattr(loss, "__name__", repr(loss))


def function_of(loss: str | Loss) -> Loss | None:
    """The function of a plugin loss; None for TRL's."""
    return LOSSES.get(loss) if isinstance(loss, str) else loss


def own_numbers(loss: Loss) -> dict[str, Any]:
    """The keyword numbers a plugin loss takes besides `beta`, with their defaults; RecipeError if it is no loss."""
    name, parameters = name_of(loss), list[inspect.Parameter]()
    with contextlib.suppress(TypeError, ValueError):
        parameters = [p.replace(annotation=p.empty) for p in inspect.signature(loss).parameters.values()]
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if not name.isidentifier() or "beta" not in own or list(own) != [p.name for p in parameters[1:]]:
        shape = "`def name(pairs, *, beta, ...)`, with a name for each of its own numbers"
        raise RecipeError(f"The loss {name}{inspect.Signature(parameters)} must be written {shape}.")
    return {name: default for name, default in own.items() if name != "beta"}


def check(weights: dict[Any, float], args: dict[str, Any]) -> None:
    """Refuse losses that do not exist or share a name, weights that are not positive, and numbers no loss reads."""
    known, names, accepted = (*TRL_LOSSES, *LOSSES), [name_of(loss) for loss in weights], dict[str, Any]()
    for name, (loss, weight) in zip(names, weights.items(), strict=True):
        if name not in known and isinstance(loss, str):
            near = " Plain DPO is 'sigmoid'." if loss == "dpo" else nearest(loss, known)
            mix = "a mix of several is {'sigmoid': 1.0, 'sft': 0.1}."
            raise UsageError(f"Recipe.loss={loss!r} is neither TRL's nor ours.{near} Known: {', '.join(known)}; {mix}")
        if not 0 < weight < math.inf:
            raise UsageError(f"Recipe.loss gives {name!r} the weight {weight!r}: weights are positive, finite numbers.")
        if names.count(name) > 1 or name in known and loss not in (name, LOSSES.get(name)):
            raise UsageError(f"Recipe.loss: two losses go by the name {name!r}: give your function another one.")
        if function := function_of(loss):
            accepted |= own_numbers(function)
    for number, value in args.items():
        at, default = f"Recipe.loss_args.{number}={value!r}", accepted.get(number)
        if number not in accepted:
            near = nearest(number, accepted) or " TRL's losses take theirs in trl={...}."
            raise UsageError(f"{at} is read by no loss of {sorted(names)}.{near}")
        if isinstance(default, (int, float)) and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise UsageError(f"{at} has the wrong type: expected a number such as {default!r}, its default.")
        if number == "label_smoothing" and not (isinstance(value, (int, float)) and 0 <= value < 0.5):
            raise UsageError(f"{at} must lie in [0, 0.5).")
    if missing := [n for n, default in accepted.items() if default is inspect.Parameter.empty and n not in args]:
        raise UsageError(f"Recipe.loss_args.{missing[0]} must be given: the loss has no default for it.")


def at_start(loss: Loss, beta: float, args: dict[str, Any]) -> float | None:
    """The declared value of a plugin loss where the policy still equals its reference; None when it has none."""
    declared = getattr(loss, "at_start", None)
    return float(declared(beta, **(own_numbers(loss) | args))) if declared else None


def conformance(loss: Loss, *, beta: float = 0.1, formula: Callable[..., Any] | None = None, **args: Any) -> list[str]:
    """What is wrong with a plugin loss, one sentence each; an empty list is a pass.

    `formula(h, beta, policy_h, **args)` is an independent float64 computation of the value for one pair.
    """
    try:
        own_numbers(loss)
        return [sentence for holds, sentence in _rules(loss, beta, formula, args) if not holds]
    except Exception as error:
        return [f"it fails: {type(error).__name__}: {error}"]


def _rules(loss: Loss, beta: float, formula: Any, args: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """(whether it holds, what is wrong where it does not) of each rule."""
    import torch

    draw = torch.Generator().manual_seed(0)
    value_of = functools.partial(loss, beta=beta, **args)
    same = functools.partial(torch.allclose, rtol=1e-9, atol=1e-12)

    def batch(h: Tensor) -> PairLogps:
        """Random log-probabilities whose difference of log-ratios is h; the policy's take part in gradients."""
        chosen, rejected, policy = -100 * torch.rand(3, len(h), generator=draw, dtype=h.dtype)
        tokens = torch.randint(1, 200, (2, len(h)), generator=draw)
        shift = policy - rejected if bool(h.any()) else torch.zeros_like(h)  # at h = 0 both log-ratios are 0
        return PairLogps(
            policy_chosen=(chosen + shift + h).requires_grad_(), policy_rejected=(rejected + shift).requires_grad_(),
            reference_chosen=chosen, reference_rejected=rejected, chosen_tokens=tokens[0], rejected_tokens=tokens[1],
        )  # fmt: skip

    def gradients(pairs: PairLogps) -> tuple[Tensor, ...]:
        sides = (pairs.policy_chosen, pairs.policy_rejected)
        tied = value_of(pairs).sum() + 0 * sum(side.sum() for side in sides)  # where the loss reads no policy: 0
        return torch.autograd.grad(tied, sides)

    pairs = batch(20 * torch.randn(64, generator=draw, dtype=torch.float64))
    extreme, start = batch(torch.tensor([-1e4, 1e4, 1.0])), batch(torch.zeros(8, dtype=torch.float64))
    value, at_extremes, at_zero = value_of(pairs), value_of(extreme), value_of(start)
    yield (right := tuple(value.shape) == (64,)), f"the result has shape {tuple(value.shape)}, not (pairs,) = (64,)"
    if not right:
        return
    yield at_extremes.isfinite().all(), f"not finite at margins of -1e4, 1e4 and 1 nats: {at_extremes.tolist()}"
    yield torch.cat(gradients(extreme)).isfinite().all(), "its gradient is not finite at margins of -1e4 or 1e4 nats"
    order = torch.randperm(64, generator=draw)
    yield same(value_of(pairs.map(lambda t: t[order])), value[order]), "the order of the pairs changes their losses"
    halves = torch.cat([value_of(pairs.map(lambda t: t[:32])), value_of(pairs.map(lambda t: t[32:]))])
    yield same(halves, value), "the micro-batch split changes the losses: a pair must not depend on its neighbours"
    if (declared := at_start(loss, beta, args)) is not None:
        agrees = at_zero.allclose(torch.full_like(at_zero, declared), rtol=1e-6)
        yield agrees, f"declared {declared} where policy and reference agree, but it is {at_zero.mean().item()}"
    chosen, rejected = gradients(start)
    yield (chosen < 0).all(), "a step down its gradient does not raise the chosen log-probability"
    yield (rejected >= 0).all(), "a step down its gradient raises the rejected log-probability"
    if formula is not None:
        columns = zip(pairs.h.tolist(), (pairs.policy_chosen - pairs.policy_rejected).tolist(), strict=True)
        expected = torch.tensor([formula(h=h, beta=beta, policy_h=p, **args) for h, p in columns], dtype=torch.float64)
        gap = ((value - expected).abs() / expected.abs().clamp(min=1)).max().item()
        yield gap <= 1e-6, f"differs from the formula by {gap:.1e}"

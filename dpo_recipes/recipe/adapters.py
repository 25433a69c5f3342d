"""The adapters of a recipe: LoRA, and QLoRA over a base of 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..errors import UsageError
from .validation import Limit, Value, at_least, at_most


def _is_below_one(value: float) -> bool:
    return 0 <= value < 1


def _are_modules(names: str | list[str]) -> bool:
    if isinstance(names, str):
        return names not in ("all_linear", "lm_head")  # with a hyphen it is PEFT's word for all
    return bool(names) and all(names) and not {"all_linear", "lm_head"}.intersection(names)


BELOW_ONE = Limit(_is_below_one, "in [0, 1)")
MODULES = Limit(
    _are_modules, "'all-linear' or names of modules; never the head, whose weight TRL reads past any adapter"
)


HIGHEST_RANK = at_most(16384, "no adapter is wider than the layers that it changes; published ranks are 4 to 256")
LARGEST_SCALE = 256  # alpha / r, by which the adapter's output is multiplied; published ones are 0.25 to 2


@dataclass(frozen=True, kw_only=True)
class LoRA(Value):
    """Train a low-rank adapter (2106.09685); the reference is the base model with the adapter disabled."""

    r: Annotated[int, at_least(1), HIGHEST_RANK] = 16
    alpha: Annotated[int | None, at_least(1)] = None  # None: twice the rank
    dropout: Annotated[float, BELOW_ONE] = 0.0  # acts only with trl={"disable_dropout": False}
    target_modules: Annotated[str | list[str], MODULES] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    continue_from: str | None = None  # folder of an adapter to train on; the reference is then its frozen copy

    def refuse_contradictions(self) -> None:
        if self.alpha is not None and self.alpha > LARGEST_SCALE * self.r:
            raise UsageError(
                f"adapter.alpha={self.alpha} over adapter.r={self.r} scales the adapter by {self.alpha / self.r:g}: "
                f"at most {LARGEST_SCALE} can be meant, and 2 is usual, which is what alpha=None stands for."
            )
        if self.continue_from is None:
            return
        # How the base is quantised is the one thing that an adapter does not bring.
        brought = self.given - {"continue_from", "double_quant"}
        if brought:
            raise UsageError(f"adapter.{min(brought)} cannot stand beside continue_from: that adapter brings its own.")


@dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """LoRA over a base quantised to 4-bit NF4 with bf16 compute (2305.14314)."""

    double_quant: bool = True

"""What a plugin loss may see of a batch: six tensors, and the log-ratios that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
        """The same pairs after `function` of each of the six tensors."""
        return PairLogps(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

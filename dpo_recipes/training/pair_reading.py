"""Whether policy and reference read each pair once, and how far from TRL's own forward that has been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..losses.trl_losses import COUPLED_LOSSES
from ..models.base_model import without_adapters
from ..shared_prefix import forward as shared_prefix
from ..shared_prefix.products import wants_round_numbers

HAS_IMAGES = "the pairs have images, and what is read once is token ids alone"


def why_read_twice(model: Any, *, has_images: bool) -> str | None:
    """Why a model, with or without an adapter, will not read each pair once; None where it will."""
    if has_images:
        return HAS_IMAGES
    return shared_prefix.why_not(without_adapters(model))


class PairReading:
    """How the models of one trainer read pairs: once where they can, unless the recipe says not to."""

    def __init__(self, trainer: Any, say: Callable[[str], None], cost_of_reading_twice: str):
        """`cost_of_reading_twice`: the sentence behind the one that says why pairs are read as TRL does."""
        self.trainer = trainer
        self.say = say
        self.cost_of_reading_twice = cost_of_reading_twice
        self._why_not: list[str] = []  # known before the first batch
        self._models: list[Any] = []  # that were asked to read pairs once, policy and reference

    def share(self) -> None:
        """Let policy and reference read each pair once, unless the recipe says not to; a reason why not is said once.

        TRL asks for the reference of each split while the trainer is being made, so that this is called several times.
        """
        trainer = self.trainer
        if trainer.recipe.pair_sharing == "off":
            return
        if trainer._is_vision_dataset:
            if not self._why_not:
                self._why_not.append(HAS_IMAGES)
                self.say(shared_prefix.read_twice(HAS_IMAGES, self.cost_of_reading_twice))
            return
        options: dict[str, Any] = {
            "require": trainer.recipe.pair_sharing == "require",
            "cost": self.cost_of_reading_twice,
            "in_round_numbers": wants_round_numbers(trainer.settings),
        }
        for model, say in ((trainer.model, self.say), (trainer.ref_model, self._say_of_reference)):
            if model is None:
                continue
            causal = without_adapters(trainer.accelerator.unwrap_model(model))  # DeepSpeed has its engine around it
            reason = shared_prefix.share(causal, say=say, **options)
            if reason is None:
                if causal not in self._models:
                    self._models.append(causal)
            elif reason not in self._why_not:
                self._why_not.append(reason)
                self.say(shared_prefix.read_twice(reason, self.cost_of_reading_twice))

    def _say_of_reference(self, text: str) -> None:
        """A sentence about a reference that is a model of its own."""
        self.say(f"The reference: {text[0].lower()}{text[1:]}")

    def pads_independent_pairs(self) -> bool:
        """Whether pairs are padded because a model cannot read them once, and none depends on its neighbours."""
        is_coupled = bool(self.trainer.recipe.loss_names & COUPLED_LOSSES)
        return bool(self._why_not) and not is_coupled and not self.trainer.aux_loss_enabled

    def receipt(self) -> dict[str, Any]:
        """How pairs have been read so far, and how far from TRL's own forward: `pair_sharing` of evaluation.json.

        The differences are in nats per scored token, of the batches that were read both ways, and so are the tokens.
        """
        trusts = [shared_prefix.trust_in(model) for model in self._models]
        seen = [trust for trust in trusts if trust is not None and (trust.kinds or trust.why_lost)]
        reasons = [*self._why_not, *(trust.why_lost for trust in seen if trust.why_lost)]
        return {
            "asked_for": self.trainer.recipe.pair_sharing,
            "read_once": bool(seen) and not reasons,
            "why_not": "; ".join(reasons) or None,
            "largest_difference": max((trust.largest for trust in seen if trust.kinds), default=None),
            "mean_difference": max((trust.mean for trust in seen if trust.kinds), default=None),
            "tokens": sum(trust.tokens for trust in seen),
            "padded_tokens": sum(trust.padded_tokens for trust in seen),
        }

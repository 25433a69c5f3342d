"""RecipeTrainer, and everything that leans on TRL's internals (pinned by tests/test_trl_contract.py)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import hash_module

from . import guard, losses
from .errors import RecipeError
from .losses import PairLogps
from .recipe import Recipe
from .settings import Settings

# The Trainer's default asks for pinned memory on machines without an accelerator too.
warnings.filterwarnings("ignore", message=".*pin_memory.* no accelerator is found", category=UserWarning)

# Value of TRL's losses where policy and reference agree (h = 0, both log-ratios 0), from the formulas of
# `DPOTrainer._compute_loss`; `sft` has none, as it does not compare.
_LN2 = math.log(2)
AT_START: dict[str, Callable[[float, float], float]] = {
    **dict.fromkeys(("sigmoid", "sigmoid_norm", "robust", "aot", "aot_unpaired"), lambda beta, e: _LN2),
    **dict.fromkeys(("nca_pair", "bco_pair"), lambda beta, e: 2 * _LN2),
    **dict.fromkeys(("hinge", "apo_zero", "apo_down"), lambda beta, e: 1.0),
    "ipo": lambda beta, e: 1 / (2 * beta) ** 2,
    "exo_pair": lambda beta, e: -_LN2 - 0.5 * (math.log1p(-e) + math.log(e)),
    "sppo_hard": lambda beta, e: 0.5 / beta**2,
    "discopop": lambda beta, e: 0.5 * _LN2 + 0.5,
}


def loss_at_start(recipe: Recipe) -> float | None:
    """The recipe's whole loss where the policy still equals its reference; None where a part has no fixed value."""
    smoothing = float(recipe.trl.get("label_smoothing", 0.0))
    parts = [(w, AT_START[n](recipe.beta, smoothing) if n in AT_START else None) for n, w in recipe.trl_losses.items()]
    parts += [(w, losses.at_start(f, recipe.beta, recipe.numbers(f))) for f, w in recipe.plugins.values()]
    if recipe.trl.get("use_weighting") or any(value is None for _, value in parts):
        return None
    return sum(weight * value for weight, value in parts if value is not None)


def config(arguments: dict[str, Any]) -> DPOConfig:
    """DPOConfig, its refusals turned into ours."""
    try:
        return DPOConfig(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"DPOConfig refuses the recipe: {str(error).strip()}") from error


class RecipeTrainer(DPOTrainer):
    """DPOTrainer with plugin losses, the guard's stops and per-pair held-out numbers.

    With TRL's own losses it adds nothing to the maths: the loss sequence is bit-identical to DPOTrainer's.
    """

    model: Any  # the Trainer declares them optional, and its own arguments
    args: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(self, *, recipe: Recipe, settings: Settings, **arguments: Any):
        self.recipe, self.settings = recipe, settings
        self.plugins = [(f, w, recipe.numbers(f)) for f, w in recipe.plugins.values()]
        self.half = settings.autocast is not None
        self.health = guard.Health(loss_at_start(recipe), same_start=settings.reference != "other model")
        self.recorded: list[PairLogps] | None = None
        super().__init__(**arguments)
        if self.aux_loss_enabled:
            self.health.declared = None  # the router's balancing loss comes on top
        if settings.reference == "other model":
            self.ref_model = None  # its log-probabilities are in the data now
        self.add_callback(guard.Watch(self.health))

    def _send_telemetry(self) -> None:
        """Nothing is sent unless asked."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Pairs that are tokenised already are taken as they are; TRL's own tokenising would drop rows in silence."""
        if "prompt_ids" in next(iter(dataset)):
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # TRL's cache key is the data and the weights, so a change of ld_alpha or of the precision would return stale
        # numbers where the data's fingerprint does not hold them.
        salt = (self.args.ld_alpha, self.args.max_length, self.args.truncation_mode, self.args.bf16, self.args.fp16)
        plain = self._precompute_model_hash
        self._precompute_model_hash = Hasher.hash((plain, salt))
        try:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        finally:
            self._precompute_model_hash = plain

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's loss and metrics, plus the plugin terms computed from the log-probabilities that TRL's forward gave."""
        if "ref_chosen_logps" not in inputs:
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        forwards: list[Any] = []  # what the one policy forward in TRL's method returns

        def recording(**model_inputs: Any) -> Any:
            forwards.append(model(**model_inputs))
            return forwards[0]

        live, self.precompute_ref_logps = self.precompute_ref_logps, True  # "the batch carries the reference"
        try:
            result = super()._compute_loss(recording, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = live
        loss, outputs = result if return_outputs else (result, None)
        pairs = self._pairs(forwards[0], inputs)
        for function, weight, own in self.plugins:
            loss = loss + weight * function(pairs, beta=self.beta, **own).mean()
        self._watch(loss, pairs.map(torch.Tensor.detach), inputs)
        return (loss, outputs) if return_outputs else loss

    def _pairs(self, output: Any, inputs: dict[str, Any]) -> PairLogps:
        mask = inputs["completion_mask"][:, 1:]
        per_token = output.log_probs[:, -mask.size(1) :]
        chosen_tokens, rejected_tokens = mask.sum(dim=1).chunk(2)
        if self.ld_alpha is not None:  # LD-DPO (2409.06411): tokens past the shorter side's length count ld_alpha
            shared = torch.minimum(chosen_tokens, rejected_tokens).repeat(2).unsqueeze(1)
            per_token = torch.where(mask.cumsum(dim=1) <= shared, per_token, self.ld_alpha * per_token)
        chosen, rejected = per_token.sum(dim=1).chunk(2)
        return PairLogps(
            policy_chosen=chosen, policy_rejected=rejected,
            reference_chosen=inputs["ref_chosen_logps"], reference_rejected=inputs["ref_rejected_logps"],
            chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens,
        )  # fmt: skip

    def _watch(self, loss: torch.Tensor, pairs: PairLogps, inputs: dict[str, Any]) -> None:
        if not bool(torch.isfinite(loss.detach())):
            index = guard.first_bad_pair(pairs)
            sides = [inputs["input_ids"][i][inputs["attention_mask"][i].bool()] for i in (index, index + len(pairs.h))]
            chosen, rejected = (self._tokenizer.decode(side)[:2000] for side in sides)
            raise RecipeError(
                f"The loss is {loss.item()} at step {self.state.global_step}. Suspects: weights in float16, a learning "
                "rate far too high, or an attention kernel. The pair that shows it:\n"
                f"--- chosen ({pairs.policy_chosen[index].item():.4g} nats)\n{chosen}\n"
                f"--- rejected ({pairs.policy_rejected[index].item():.4g} nats)\n{rejected}"
            )
        if self.model.training:
            health = self.health
            if self.state.global_step == 0 and health.same_start:
                guard.stop(guard.start_is_identity(pairs, loss.item(), health.declared, self.half))
            if health.full_steps and not health.largest_reward:
                ratios = torch.cat([pairs.chosen_logratios, pairs.rejected_logratios])
                health.largest_reward = ratios.abs().max().item()
        elif self.recorded is not None:
            self.recorded.append(pairs.map(self.accelerator.gather_for_metrics))

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, all) parameters; 4-bit weights count as the numbers they hold, a reference copy not at all."""
        counts = [0, 0]
        for name, p in self.model.named_parameters():
            if ".ref." not in name:
                counts[1] += (size := p.numel() * (2 if type(p).__name__ == "Params4bit" else 1))
                counts[0] += size * p.requires_grad
        return counts[0], counts[1]

    def fingerprint(self) -> str:
        """A hash of the reference's weights (with a new adapter, which starts as nothing, those of the policy)."""
        return self._precompute_model_hash or hash_module(self.ref_model or self.model)

    def held_out(self) -> tuple[dict[str, float], PairLogps]:
        """(TRL's metrics over the held-out pairs without their `eval_` prefix, the log-probabilities of every pair)."""
        self.recorded = []
        with torch.random.fork_rng():  # a data loader draws from the global generator
            metrics = self.evaluate()
        pairs, self.recorded = self.recorded, None
        columns = {n: torch.cat([getattr(p, n) for p in pairs]).double().cpu() for n in PairLogps.__dataclass_fields__}
        return {key.removeprefix("eval_"): value for key, value in metrics.items()}, PairLogps(**columns)

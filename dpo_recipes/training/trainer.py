"""RecipeTrainer: TRL's trainer with plugin losses, the guard and per-pair held-out numbers.

Leans on TRL 1.16: `DPOTrainer._compute_loss` and what it asks of model and batch, the reference passes, and the
attributes that `DPOTrainer.__init__` sets.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from trl import DPOConfig, DPOTrainer

from ..errors import RecipeError
from ..guard.callback import Health, Watch
from ..guard.rules import first_bad_pair, stop
from ..guard.start import loss_at_start, rounding_tolerance, start_is_identity
from ..losses.pair_logps import PairLogps
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings
from ..runs import environment
from ..shared_prefix import forward as shared_prefix
from . import reference_cache

# The Trainer's default asks for pinned memory on machines without an accelerator too.
warnings.filterwarnings("ignore", message=".*pin_memory.* no accelerator is found", category=UserWarning)


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
    reference_cache: dict[str, str] = {}  # split -> hit, computed or rebuilt, where it is computed beforehand
    _fingerprint: str | None = None

    def __init__(
        self, *, recipe: Recipe, settings: Settings, say: Callable[[str], None] = lambda _: None, **arguments: Any
    ):
        self.recipe, self.settings, self.say = recipe, settings, say
        self.plugins = [(f, w, recipe.numbers(f)) for f, w in recipe.plugins.values()]
        self.half = settings.autocast is not None
        self.health = Health(loss_at_start(recipe), same_start=settings.reference != "other model")
        self.recorded: list[PairLogps] | None = None
        super().__init__(**arguments)
        self._share_pairs()
        if self.aux_loss_enabled:
            self.health.declared_loss = None  # the router's balancing loss comes on top
        if settings.reference == "other model":
            self.ref_model = None  # its log-probabilities are in the data now
        self.add_callback(Watch(self.health))

    def _share_pairs(self) -> None:
        """Let policy and reference read each pair once, where the recipe asks for it."""
        how, models = self.recipe.pair_sharing, list[Any]([self.model, self.ref_model])
        for model in models if how != "off" else ():
            base = model.get_base_model() if hasattr(model, "peft_config") else model
            if base is not None and (no := shared_prefix.share(base, require=how == "require", say=self.say)):
                self.say(f"Each pair is read twice and padded, as in TRL: {no}.")

    def _send_telemetry(self) -> None:
        """Nothing is sent unless asked."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Pairs that are tokenised already are taken as they are; TRL's own tokenising would drop rows in silence."""
        if "prompt_ids" in next(iter(dataset)):
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's, for the pairs whose reference log-probabilities no earlier run has left in the user's cache."""
        self._share_pairs()  # TRL comes here while it is being made
        args, parent = self.args, super()._precompute_ref_logps
        if not isinstance(dataset, Dataset) or not len(dataset):
            return parent(dataset, name, batch_size)  # which refuses it
        if dataset._indices is not None:
            dataset = dataset.flatten_indices()  # as the last line would do; here, so that it is done once

        def share(value: Any) -> Any:
            return broadcast_object_list([value])[0]

        def compute(rows: list[int]) -> np.ndarray:
            part: Any = dataset.select_columns(reference_cache.IDS)
            part = part if rows == list(range(len(part))) else part.select(rows)
            # TRL's own cache takes stale numbers for new ones (another ld_alpha, say): each time it gets a new place.
            with tempfile.TemporaryDirectory() as folder:
                part._get_cache_file_path = functools.partial("{}/{}.arrow".format, share(folder))
                made = parent(part, name, batch_size).with_format("numpy")
                logps = np.stack([made["ref_chosen_logps"][:], made["ref_rejected_logps"][:]], axis=1)
                self.accelerator.wait_for_everyone()
            return logps

        # All that the numbers depend on but the token ids, and nothing else. Versions, as a library may mend a model.
        context = {
            "weights": self.fingerprint(),
            "truncation": (args.max_length, args.truncation_mode),
            "ld_alpha": args.ld_alpha,
            "precision": (args.bf16, args.fp16, args.tf32, self.accelerator.device.type),
            "attention": (self.ref_model or self.model).config._attn_implementation,
            "versions": {n: version(n) for n in ("torch", "transformers", "trl", "peft", "bitsandbytes")},
        }
        entries = reference_cache.Entries(environment.cache() / "reference", context)
        tolerance, main = rounding_tolerance(self.half), self.accelerator.is_main_process
        logps, how = reference_cache.complete(dataset, entries, compute, tolerance, share, main)
        self.reference_cache = {**self.reference_cache, name: how}
        columns = {"ref_chosen_logps": logps[:, 0], "ref_rejected_logps": logps[:, 1]}
        return concatenate_datasets([dataset, Dataset.from_dict(columns)], axis=1)

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
            index = first_bad_pair(pairs)
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
                stop(start_is_identity(pairs, loss.item(), health.declared_loss, self.half))
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
        """A hash of the reference: its weights and config, without the adapter that is trained. Made once."""
        if self._fingerprint is None:
            sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled  # so TRL's, which is from before that
            reference = (self.model, "default") if self.ref_model is None else (self.ref_model,)
            made_before = sharded and self._precompute_model_hash
            self._fingerprint = made_before or reference_cache.fingerprint(*reference)
        return self._fingerprint

    def held_out(self) -> tuple[dict[str, float], PairLogps]:
        """(TRL's metrics over the held-out pairs without their `eval_` prefix, the log-probabilities of every pair)."""
        self.recorded = []
        with torch.random.fork_rng():  # a data loader draws from the global generator
            metrics = self.evaluate()
        pairs, self.recorded = self.recorded, None
        columns = {n: torch.cat([getattr(p, n) for p in pairs]).double().cpu() for n in PairLogps.__dataclass_fields__}
        return {key.removeprefix("eval_"): value for key, value in metrics.items()}, PairLogps(**columns)

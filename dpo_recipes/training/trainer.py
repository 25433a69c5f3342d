"""RecipeTrainer: TRL's trainer with plugin losses, the guard's stops and per-pair held-out numbers.

Leans on TRL 1.16: `DPOTrainer._compute_loss`, which calls the model once and reads the reference from the batch where
`precompute_ref_logps` is set, adds one number a batch to each list of `_metrics`, and gives the mean of its pairs'
losses, plus that of a router where `aux_loss_enabled` is set; `_precompute_ref_logps`, `_prepare_dataset`,
`_send_telemetry`, `_set_signature_columns_if_needed`, `prediction_step`, `_total_train_tokens` and
`compute_ref_log_probs`; the columns of its batches; and of its Trainer, which is Transformers', `_save_checkpoint`,
`_load_from_checkpoint`, `_load_optimizer_and_scheduler`, `_load_rng_state` and `_total_loss_scalar`.
"""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, concatenate_datasets
from rich.console import Console
from safetensors.torch import load_model, save_model
from torch.utils.data import SequentialSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import DPOConfig, DPOTrainer

from ..errors import RecipeError
from ..formats.pair_weights import WEIGHT
from ..guard.callback import Health, Watch
from ..guard.last_pairs import LastPairs
from ..guard.not_finite import Circumstances, why_not_finite
from ..guard.remembering import Remembering
from ..guard.rules import first_bad_pair, stop
from ..guard.start import loss_at_start, rounding_tolerance, start_is_identity
from ..losses.conformance import failure, wrong_result
from ..losses.pair_logps import PairLogps
from ..losses.plugins import Loss
from ..losses.selection import name_of
from ..losses.trl_losses import COUPLED_LOSSES
from ..models.base_model import without_adapters
from ..models.weights import not_finite
from ..progress import Stage
from ..recipe.choices import ORDER
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings
from ..runs import environment
from ..runs.checkpoint_folders import mark_whole, readable
from ..runs.full_memory import is_out_of_memory
from ..shared_prefix import forward as shared_prefix
from . import reference_cache
from .by_length import ByLengthWithinSteps, longest_first, places_before
from .memory_recovery import MemoryRecovery, of_pairs, with_fewer_at_once
from .published_reference import Published

# The Trainer's default asks for pinned memory on machines without an accelerator too.
warnings.filterwarnings("ignore", message=".*pin_memory.* no accelerator is found", category=UserWarning)

SIDES = ("chosen_ids", "rejected_ids")
SHOWN_OF_A_BAD_PAIR = 2000  # characters of each side
MOVING_REFERENCE = "reference.safetensors"  # in a checkpoint


def config(arguments: dict[str, Any]) -> DPOConfig:
    """DPOConfig, its refusals turned into ours."""
    try:
        return DPOConfig(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"DPOConfig refuses the recipe: {str(error).strip()}") from error


class RecipeTrainer(DPOTrainer):
    """DPOTrainer with plugin losses, the guard's stops and per-pair held-out numbers.

    With TRL's own losses it adds nothing to the maths: where pairs are read as TRL reads them, the loss sequence is
    bit-identical to DPOTrainer's.
    """

    # The Trainer declares them optional, and `args` as its own arguments.
    model: Any
    args: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        *,
        recipe: Recipe,
        settings: Settings,
        say: Callable[[str], None] = lambda _: None,
        console: Console | None = None,
        cost_of_reading_twice: str = "",
        **arguments: Any,
    ):
        """`arguments` are DPOTrainer's; `say` takes one sentence for whoever watches, `console` shows what goes on.

        `cost_of_reading_twice`: the sentence behind the one that says why pairs are read as TRL does.
        """
        self.recipe = recipe
        self.settings = settings
        self.say = say
        self.console = console or Console(quiet=True)
        # The passes over pairs without training on them, while they go on
        self._reference_pass: Stage | None = None
        self._evaluation: Stage | None = None
        # Function, weight and its own numbers
        self.plugins = [(loss, weight, recipe.numbers(loss)) for loss, weight in recipe.plugins.values()]
        self.half = settings.autocast is not None
        self.health = Health(
            loss_at_start(recipe),
            same_start=settings.reference != "other model",
            plugins=tuple(recipe.plugins),
        )
        self.recorded: list[PairLogps] | None = None  # of each evaluation batch, while held_out() asks for them
        # Split -> hit, computed or rebuilt, where the reference is computed beforehand
        self.reference_cache: dict[str, str] = {}
        self._rows_with_reference: set[int] | None = None  # of the train pairs; None: all of them, or computed in steps
        self._fingerprint: str | None = None
        self.is_trained = False  # whether its policy has been trained elsewhere
        self.tie = 0.0  # nats: the largest rounding seen before training, within which a pair is ranked neither way
        self.memory = MemoryRecovery(self, say)
        self.last_pairs = LastPairs(
            recipe.beta, changes_are_known=settings.reference in ("adapter off", "frozen adapter", "start weights")
        )
        self.cost_of_reading_twice = cost_of_reading_twice
        self._why_not_shared: list[str] = []  # known before the first batch
        self._eval_order: list[int] | None = None  # of the held-out pairs, where it is not their own
        self._read_once: list[Any] = []  # the models that were asked to, policy and reference

        super().__init__(**arguments)  # which may already compute the reference

        self.data_collator = WithWeights(self.data_collator)
        self._share_pairs()
        if self.aux_loss_enabled:
            self.health.declared_loss = None  # the router's balancing loss comes on top
        if settings.reference == "other model":
            self.ref_model = None  # its log-probabilities are in the data now
        self.add_callback(Watch(self.health))
        self.add_callback(TrainerNumbers(self))
        self.add_callback(self.memory)

    def _share_pairs(self) -> None:
        """Let policy and reference read each pair once, unless the recipe says not to; a reason why not is said once.

        TRL asks for the reference of each split while the trainer is being made, so that this is called several times.
        """
        if self.recipe.pair_sharing == "off":
            return
        cost = self.cost_of_reading_twice
        for model, say in ((self.model, self.say), (self.ref_model, self._say_of_reference)):
            if model is None:
                continue
            causal = without_adapters(self.accelerator.unwrap_model(model))  # DeepSpeed has its engine around it
            reason = shared_prefix.share(causal, require=self.recipe.pair_sharing == "require", say=say, cost=cost)
            if reason is None:
                if causal not in self._read_once:
                    self._read_once.append(causal)
            elif reason not in self._why_not_shared:
                self._why_not_shared.append(reason)
                self.say(shared_prefix.read_twice(reason, cost))

    def _say_of_reference(self, text: str) -> None:
        """A sentence about a reference that is a model of its own."""
        self.say(f"The reference: {text[0].lower()}{text[1:]}")

    def pair_reading(self) -> dict[str, Any]:
        """How pairs have been read so far, and how far from TRL's own forward: `pair_sharing` of evaluation.json.

        The differences are in nats per scored token, of the batches that were read both ways, and so are the tokens.
        """
        trusts = [shared_prefix.trust_in(model) for model in self._read_once]
        seen = [trust for trust in trusts if trust is not None and (trust.kinds or trust.why_lost)]
        reasons = [*self._why_not_shared, *(trust.why_lost for trust in seen if trust.why_lost)]
        return {
            "asked_for": self.recipe.pair_sharing,
            "read_once": bool(seen) and not reasons,
            "why_not": "; ".join(reasons) or None,
            "largest_difference": max((trust.largest for trust in seen if trust.kinds), default=None),
            "mean_difference": max((trust.mean for trust in seen if trust.kinds), default=None),
            "tokens": sum(trust.tokens for trust in seen),
            "padded_tokens": sum(trust.padded_tokens for trust in seen),
        }

    def _send_telemetry(self) -> None:
        """Nothing is sent unless asked."""

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        """In order, however training pairs are drawn: numbers before and after are compared pair by pair.

        Where pairs are padded, by length; `held_out` puts what it gives into the order of the pairs again.
        """
        self._eval_order = None
        if self._pads_pairs_of_their_own() and len(eval_dataset) == len(self.eval_dataset):
            self._eval_order = longest_first(self._lengths(eval_dataset))
            return self._eval_order
        return SequentialSampler(eval_dataset)

    def _pads_pairs_of_their_own(self) -> bool:
        """Whether pairs are padded because the model cannot read them once, and none depends on its neighbours."""
        coupled = bool(self.recipe.loss_names & COUPLED_LOSSES)
        return bool(self._why_not_shared) and not coupled and not self.aux_loss_enabled

    def _lengths(self, pairs: Dataset) -> list[int]:
        """Tokens of the longer row of each pair, as max_length cuts it."""
        column = self.args.length_column_name
        if column in pairs.column_names:
            lengths = list(pairs[column])
        else:
            lengths = [len(pair["prompt_ids"]) + max(len(pair[side]) for side in SIDES) for pair in pairs]
        return [min(length, self.args.max_length or length) for length in lengths]

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Pairs that are tokenised already are taken as they are; TRL's own tokenising would drop rows in silence."""
        if "prompt_ids" in next(iter(dataset)):
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    # The reference, computed beforehand

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's, for the pairs that the run reads and whose reference log-probabilities are not there already."""
        self._share_pairs()  # TRL comes here while it is being made
        if not isinstance(dataset, Dataset) or not len(dataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)  # which refuses it
        if dataset._indices is not None:
            # As concatenate_datasets would do for each; here, so that it is done once.
            dataset = dataset.flatten_indices()

        # A trial of ten steps on a large set would spend hours on pairs that it never comes to.
        rows = self._rows_of_a_part_of_an_epoch() if name == "train" else None
        if rows is None:
            logps, how = self._known_or_computed(dataset, name, batch_size)
        else:
            logps = np.full((len(dataset), 2), np.nan, np.float32)
            logps[rows], how = self._known_or_computed(dataset.select(rows), name, batch_size)
            how += f", for the {len(rows):,} of {len(dataset):,} pairs that the run reads"
            self._rows_with_reference = set(rows)
        self.reference_cache = {**self.reference_cache, name: how}
        columns = Dataset.from_dict({"ref_chosen_logps": logps[:, 0], "ref_rejected_logps": logps[:, 1]})
        return concatenate_datasets([dataset, columns], axis=1)

    def _known_or_computed(self, pairs: Dataset, name: str, batch_size: int) -> tuple[np.ndarray, str]:
        """(reference log-probabilities in nats, shape (pairs, 2); how they came about)."""
        compute = functools.partial(self._compute_ref_logps, pairs, name, batch_size)
        tolerance = rounding_tolerance(self.half)
        if self.recipe.data.reference is not None:
            published = Published(self.recipe.data.reference)
            logps = published.find(pairs, name, self.args.max_length, self.args.ld_alpha)
            words = published.verify(pairs, logps, compute, self.args.max_length, tolerance, share=_from_main_process)
            return logps, words
        return reference_cache.complete(
            pairs,
            reference_cache.Entries(environment.cache() / "reference", self._reference_context()),
            compute=compute,
            tolerance=tolerance,
            share=_from_main_process,
            main=self.accelerator.is_main_process,
        )

    def _rows_of_a_part_of_an_epoch(self) -> list[int] | None:
        """The train pairs that a run shorter than an epoch reads; None where it reads all, or its order is not known.

        The order is drawn from the seed alone, so that the loader that training will make can be asked beforehand.
        """
        loader = super().get_train_dataloader()
        batches = self._batches_of_a_part_of_an_epoch(loader)
        if batches is None:
            return None
        with torch.random.fork_rng():
            rows, once_more = _rows_drawn(loader, batches), _rows_drawn(loader, batches)
        if rows != once_more:  # drawn from the global generator, whose state by then nobody knows
            return None
        rows_of_processes = gather_object([sorted(rows)])
        return sorted(set().union(*rows_of_processes))

    def _batches_of_a_part_of_an_epoch(self, loader: Any) -> int | None:
        """How many batches of its first epoch a run reads; None where it reads all of them."""
        args = self.args
        steps_an_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
        steps = args.max_steps
        if steps <= 0:
            steps = math.ceil(args.num_train_epochs * steps_an_epoch)
        if steps >= steps_an_epoch:
            return None
        return steps * args.gradient_accumulation_steps

    def get_train_dataloader(self) -> Any:
        """The Trainer's. A run reads no pair whose reference has not been computed: then nothing is trained.

        Where that was chosen, the pairs of a step come by length.
        """
        loader: Any = super().get_train_dataloader()
        if ORDER in self.recipe.reasons:
            drawn = loader.batch_sampler.sampler
            lengths = self._lengths(self.train_dataset)
            loader.batch_sampler.sampler = ByLengthWithinSteps(drawn, lengths, self.recipe.global_batch_size)
        if self._rows_with_reference is not None:
            batches = self._batches_of_a_part_of_an_epoch(loader)
            if batches is None or not _rows_drawn(loader, batches) <= self._rows_with_reference:
                raise RuntimeError("The run would read pairs other than those that it has a reference for.")
        return loader

    def reference_in_words(self) -> str:
        """How the reference's log-probabilities came about, in sentences; empty where each step computes them."""
        splits_of_words: dict[str, list[str]] = {}
        for split, how in self.reference_cache.items():
            words = how
            if how.startswith("hit"):
                words = how.replace("hit", "found in the cache", 1)
            splits_of_words.setdefault(words, []).append(split)

        sentences: list[str] = []
        for words, splits in splits_of_words.items():
            start = "Of" if sentences else "Reference log-probabilities of"
            sentences.append(f"{start} {' and '.join(splits)} pairs: {words}.")
        return " ".join(sentences)

    def _compute_ref_logps(self, dataset: Dataset, name: str, batch_size: int, rows: list[int]) -> np.ndarray:
        """Reference log-probabilities of some rows as TRL computes them, in nats, shape (rows, 2)."""

        def compute(pairs_at_once: int) -> np.ndarray:
            return self._compute_ref_logps_at_once(dataset, name, pairs_at_once, rows)

        what = f"the reference reads the {name} pairs again"
        return with_fewer_at_once(batch_size, compute, self.accelerator, self.say, what)

    def _compute_ref_logps_at_once(self, dataset: Dataset, name: str, batch_size: int, rows: list[int]) -> np.ndarray:
        part: Any = dataset.select_columns(reference_cache.IDS)
        order = list(range(len(rows)))
        if self._pads_pairs_of_their_own():
            order = longest_first(self._lengths(dataset.select(rows)))
        if [rows[place] for place in order] != list(range(len(part))):
            part = part.select([rows[place] for place in order])

        # TRL's own cache takes stale numbers for new ones (another ld_alpha, say): each time it gets a new place.
        with tempfile.TemporaryDirectory() as folder:
            part._get_cache_file_path = functools.partial(_cache_file, _from_main_process(folder))
            words = f"Reference log-probabilities, {name} pairs"
            try:
                with Stage(self.console, words, len(part)) as self._reference_pass:
                    computed = super()._precompute_ref_logps(part, name, batch_size).with_format("numpy")
            finally:
                self._reference_pass = None
            logps = np.stack([computed["ref_chosen_logps"][:], computed["ref_rejected_logps"][:]], axis=1)
            logps = logps[places_before(order)]
            self.accelerator.wait_for_everyone()  # before the folder goes
        return logps

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """TRL's, counted while the reference is computed beforehand."""
        logps = super().compute_ref_log_probs(model, inputs)
        self._count_pairs(self._reference_pass, inputs)
        return logps

    def _reference_context(self) -> dict[str, Any]:
        """All that the reference's log-probabilities depend on but the token ids, and nothing else."""
        args = self.args
        packages = ("torch", "transformers", "trl", "peft", "bitsandbytes")
        return {
            "weights": self.fingerprint(),
            "truncation": (args.max_length, args.truncation_mode),
            "ld_alpha": args.ld_alpha,
            "precision": (args.bf16, args.fp16, args.tf32, self.accelerator.device.type),
            "attention": (self.ref_model or self.model).config._attn_implementation,
            "versions": {package: version(package) for package in packages},  # a library may mend a model
        }

    def fingerprint(self) -> str:
        """A hash of the reference: its weights and config, without the adapter that is trained. Made once."""
        if self._fingerprint is None:
            with Stage(self.console, "Hashing the reference's weights"):
                self._fingerprint = self._make_fingerprint()
        return self._fingerprint

    def _make_fingerprint(self) -> str:
        if self.ref_model is not None:
            return reference_cache.fingerprint(self.accelerator.unwrap_model(self.ref_model))
        return reference_cache.fingerprint(self.model, trained="default")

    # The loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's; in parts where memory does not suffice for the whole micro-batch."""

        def take(part: dict[str, Any]) -> torch.Tensor:
            return super(RecipeTrainer, self).training_step(model, part, num_items_in_batch)

        return self.memory.step(inputs, take)

    def _set_signature_columns_if_needed(self) -> None:
        """The columns that TRL keeps: its own, the weight of a pair, and its length, by which pairs may be drawn."""
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        for column in (WEIGHT, self.args.length_column_name):
            if column not in columns:
                columns.append(column)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's loss and metrics, plus the plugin terms computed from the log-probabilities that TRL's forward gave.

        Where pairs have weights w, the loss of a batch is sum(w * loss of the pair) / pairs: TRL's where all are 1.
        """
        inputs = dict(inputs)
        weights = inputs.pop(WEIGHT, None)
        is_weighted = weights is not None and bool((weights != 1).any())
        if "ref_chosen_logps" not in inputs:
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

        outputs_of_policy: list[Any] = []  # of the one forward in TRL's method

        def recording_model(**model_inputs: Any) -> Any:
            output = model(**model_inputs)
            outputs_of_policy.append(output)
            return output

        precompute_ref_logps = self.precompute_ref_logps
        self.precompute_ref_logps = True  # which tells TRL that the batch carries the reference
        try:
            result = super()._compute_loss(recording_model, inputs, return_outputs)
            loss = result[0] if return_outputs else result
            if is_weighted:
                loss = self._weighted_loss(outputs_of_policy[0], inputs, weights)
        finally:
            self.precompute_ref_logps = precompute_ref_logps

        pairs = self._pair_logps(outputs_of_policy[0], inputs)
        values: dict[str, torch.Tensor] = {}  # of each plugin loss, for each pair
        for plugin, weight, numbers in self.plugins:
            values[name_of(plugin)] = self._plugin_values(plugin, numbers, pairs)
            weighted = values[name_of(plugin)] * weights if is_weighted else values[name_of(plugin)]
            loss = loss + weight * weighted.mean()

        detached_pairs = pairs.map(torch.Tensor.detach)
        mean_weight = weights.mean().item() if is_weighted else 1.0
        self._watch(loss.detach(), detached_pairs, values, inputs, mean_weight)
        self._log_per_pair(detached_pairs)
        if return_outputs:
            return loss, result[1]
        if self.memory.share < 1:  # a part of a micro-batch
            return self.memory.share * loss
        return loss

    def _weighted_loss(self, output: Any, inputs: dict[str, Any], weights: torch.Tensor) -> Any:
        """TRL's losses of a batch, each pair's times its weight, over the number of pairs; the router's as it is.

        TRL gives only the mean of a batch. So it is asked once more for the pairs of each weight, about the output that
        the model has already given: a mean over pairs that weigh the same is theirs to be weighted.
        """
        refuse_coupled_losses(self.recipe)
        total: Any = 0.0
        for weight in weights.unique():
            weighs_so = weights == weight
            part = {name: of_pairs(value, weighs_so) for name, value in output.items()}
            part_of_inputs = {name: of_pairs(value, weighs_so) for name, value in inputs.items()}
            with self._asked_again():
                mean = super()._compute_loss(functools.partial(_answer, SimpleNamespace(**part)), part_of_inputs, False)
            total = total + weight * weighs_so.float().mean() * mean
        if self.aux_loss_enabled:
            total = total + self.router_aux_loss_coef * output.aux_loss
        return total

    @contextmanager
    def _asked_again(self) -> Iterator[None]:
        """TRL's method leaves nothing in the log, adds no loss of the router, and asks no other process for numbers."""
        kept = self._metrics, self._total_train_tokens, self.accelerator, self.aux_loss_enabled
        alone = SimpleNamespace(device=self.accelerator.device, gather=_unchanged, gather_for_metrics=_unchanged)
        self._metrics = defaultdict(lambda: defaultdict(list))
        self.accelerator = alone
        self.aux_loss_enabled = False
        try:
            yield
        finally:
            self._metrics, self._total_train_tokens, self.accelerator, self.aux_loss_enabled = kept

    def _plugin_values(self, plugin: Loss, numbers: dict[str, Any], pairs: PairLogps) -> torch.Tensor:
        """A plugin loss of each pair; what the kit could not foresee, as another device, is one message too."""
        try:
            values = plugin(pairs, beta=self.beta, **numbers)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise RecipeError(f"The loss {name_of(plugin)} fails on real pairs: {failure(plugin, error)}") from error
        wrong = wrong_result(values, len(pairs.h))
        if wrong:
            raise RecipeError(f"The loss {name_of(plugin)} cannot train: {wrong}.")
        if pairs.policy_chosen.requires_grad and not values.requires_grad:
            raise RecipeError(f"The loss {name_of(plugin)} cannot train: its result is cut off from the policy.")
        return values

    def _pair_logps(self, output: Any, inputs: dict[str, Any]) -> PairLogps:
        """What a plugin loss may see of a batch.

        TRL's batch holds all chosen sides and then all rejected ones, each with its prompt; `log_probs` has shape
        (2 * pairs, tokens - 1), as nothing predicts the first token.
        """
        is_completion = inputs["completion_mask"][:, 1:]
        per_token = output.log_probs[:, -is_completion.size(1) :]
        chosen_tokens, rejected_tokens = is_completion.sum(dim=1).chunk(2)
        if self.ld_alpha is not None:
            # LD-DPO (2409.06411): tokens past the shorter side's length count ld_alpha.
            shorter_side = torch.minimum(chosen_tokens, rejected_tokens).repeat(2).unsqueeze(1)
            is_within = is_completion.cumsum(dim=1) <= shorter_side
            per_token = torch.where(is_within, per_token, self.ld_alpha * per_token)

        chosen, rejected = per_token.sum(dim=1).chunk(2)
        return PairLogps(
            policy_chosen=chosen,
            policy_rejected=rejected,
            reference_chosen=inputs["ref_chosen_logps"],
            reference_rejected=inputs["ref_rejected_logps"],
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
        )

    # What is watched at every forward

    def _watch(
        self,
        loss: torch.Tensor,
        pairs: PairLogps,
        values: dict[str, torch.Tensor],
        inputs: dict[str, Any],
        mean_weight: float,
    ) -> None:
        """Stop at a loss that is no number; look at the start and the rewards in training, record in evaluation."""
        if not bool(torch.isfinite(loss)):
            plugins = tuple(name for name, value in values.items() if not bool(value.isfinite().all()))
            self._stop_at_bad_pair(loss, pairs, plugins, inputs)
        if self.model.training:
            self._watch_training(loss, pairs, mean_weight)
        elif self.recorded is not None:
            self.recorded.append(pairs.map(self.accelerator.gather_for_metrics))

    def _stop_at_bad_pair(
        self, loss: torch.Tensor, pairs: PairLogps, plugins: tuple[str, ...], inputs: dict[str, Any]
    ) -> None:
        known = Circumstances(
            step=self.state.global_step,
            updates=self.health.steps,
            learning_rate=self.args.learning_rate,
            beta=self.beta,
            half=self.half,
            weights=not_finite(self.model),
            plugins=plugins,
        )
        index = first_bad_pair(pairs)
        chosen = self._decoded(inputs, index)
        rejected = self._decoded(inputs, index + len(pairs.h))
        raise RecipeError(
            f"{why_not_finite(loss.item(), pairs, known)} The pair that shows it:\n"
            f"--- chosen ({pairs.policy_chosen[index].item():.4g} nats)\n{chosen}\n"
            f"--- rejected ({pairs.policy_rejected[index].item():.4g} nats)\n{rejected}"
        )

    def _decoded(self, inputs: dict[str, Any], row: int) -> str:
        """The start of one row of a batch as text, without its padding."""
        is_token = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row][is_token]
        return self._tokenizer.decode(ids)[:SHOWN_OF_A_BAD_PAIR]

    def _watch_training(self, loss: torch.Tensor, pairs: PairLogps, mean_weight: float) -> None:
        health = self.health
        if self.state.global_step == 0 and health.same_start:
            declared = None if health.declared_loss is None else mean_weight * health.declared_loss
            stop(start_is_identity(pairs, loss.item(), declared, self.half))
        # Once a reward has moved, nothing more is to be learned: from there on no number leaves the device for it.
        if health.full_steps and not health.largest_reward:
            logratios = torch.cat([pairs.chosen_logratios, pairs.rejected_logratios])
            health.largest_reward = logratios.abs().max().item()

    def _log_per_pair(self, pairs: PairLogps) -> None:
        """Let what TRL has just logged of a batch mean what it means in evaluation.json.

        TRL counts a tie as lost, so that its accuracy is 0 where policy and reference are the same model; here a tie
        counts half. And it averages an evaluation over batches, of which the last may be smaller; here over pairs.
        """
        gaps = pairs.h.abs()
        if self.state.global_step == 0 and self.health.same_start:
            is_tied = torch.ones_like(gaps, dtype=torch.bool)  # what there is of a gap is rounding
        else:
            is_tied = gaps <= self.tie
        wins = torch.where(is_tied, 0.5, (pairs.h > 0).float())

        if self.model.training:
            self._metrics["train"]["rewards/accuracies"][-1] = self.accelerator.gather(wins).mean().item()
            if self.state.global_step:  # before the first update no pair tells anything
                self.last_pairs.add(self.accelerator.gather(LastPairs.rows(wins, pairs)))
            return

        if self.state.global_step == 0 and self.health.same_start:
            self.tie = max(self.tie, self.accelerator.gather(gaps).max().item())
        values_per_pair = {
            "rewards/accuracies": wins,
            "rewards/margins": self.beta * pairs.h,
            "rewards/chosen": self.beta * pairs.chosen_logratios,
            "rewards/rejected": self.beta * pairs.rejected_logratios,
            "logps/chosen": pairs.policy_chosen,
            "logps/rejected": pairs.policy_rejected,
        }
        for name, values in values_per_pair.items():
            logged = self._metrics["eval"][name]
            logged.pop()  # the mean of this batch
            logged.extend(self.accelerator.gather_for_metrics(values).tolist())

    def log(self, logs: dict[str, float], *arguments: Any) -> None:
        """TRL's, with what the last pairs tell beside the numbers of a training step."""
        if self.model.training and "loss" in logs:
            logs.update(self.last_pairs.numbers())
        super().log(logs, *arguments)

    # What is shown while it goes on

    def _count_pairs(self, stage: Stage | None, inputs: dict[str, Any]) -> None:
        """The pairs of a batch are done: its rows are all chosen sides and then all rejected ones."""
        if stage is not None:
            stage.advance(len(inputs["input_ids"]) // 2)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The Trainer's, shown while it goes on."""
        when = "before training"
        if self.is_in_train:
            when = f"at step {self.state.global_step}"
        elif self.state.global_step or self.is_trained:
            when = "after training"

        def measure(pairs_at_once: int) -> dict[str, float]:
            self.args.per_device_eval_batch_size = pairs_at_once
            self._metrics["eval"].clear()
            if self.recorded is not None:
                self.recorded.clear()
            try:
                with Stage(self.console, f"Held-out pairs {when}", len(self.eval_dataset)) as self._evaluation:
                    return super(RecipeTrainer, self).evaluate(*arguments, **options)
            finally:
                self._evaluation = None

        pairs_at_once = self.args.per_device_eval_batch_size
        return with_fewer_at_once(
            pairs_at_once, measure, self.accelerator, self.say, "the held-out pairs are read again"
        )

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """TRL's, counted."""
        result = super().prediction_step(model, inputs, *arguments, **options)
        self._count_pairs(self._evaluation, inputs)
        return result

    # Checkpoints

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """The Trainer's, marked as whole when all processes have written; only then older ones are removed."""
        args, step = self.args, self.state.global_step
        checkpoint = Path(self._get_output_dir(trial=None)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        most_kept, args.save_total_limit = args.save_total_limit, None
        try:
            with Stage(self.console, f"Writing the checkpoint of step {step}"):
                super()._save_checkpoint(*arguments, **options)
                self._save_moving_reference(checkpoint)
        finally:
            args.save_total_limit = most_kept
        self.accelerator.wait_for_everyone()
        if args.should_save:
            (checkpoint / "training_args.bin").unlink(missing_ok=True)  # a pickle; trl.json says the same
            mark_whole(checkpoint)
            rotate_checkpoints(
                output_dir=str(checkpoint.parent),
                save_total_limit=most_kept,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def _save_moving_reference(self, checkpoint: Path) -> None:
        """A reference that moves with the policy: the recipe gives only where it began."""
        if self.settings.reference == "moving copy" and self.args.should_save:
            save_model(self.accelerator.unwrap_model(self.ref_model), str(checkpoint / MOVING_REFERENCE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The Trainer's, with each parameter as precise as it was: PEFT loads an adapter of 16 bits in 32."""
        precisions = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        with readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != precisions[name]:
                parameter.data = parameter.data.to(precisions[name])
        if self.settings.reference == "moving copy":
            moved = Path(resume_from_checkpoint) / MOVING_REFERENCE
            with readable(resume_from_checkpoint):
                load_model(self.accelerator.unwrap_model(self.ref_model), str(moved))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_rng_state(checkpoint)

    # What is asked from outside

    def held_out(self) -> tuple[dict[str, float], PairLogps]:
        """(TRL's metrics over the held-out pairs without their `eval_` prefix, the log-probabilities of every pair)."""
        self.recorded = []
        with torch.random.fork_rng():  # a data loader draws from the global generator
            metrics = self.evaluate()
        batches = self.recorded
        self.recorded = None
        pairs = _joined(batches)
        if self._eval_order is not None:
            places = torch.tensor(places_before(self._eval_order))
            pairs = pairs.map(lambda values: values[places])
        return {name.removeprefix("eval_"): value for name, value in metrics.items()}, pairs

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, all) parameters; 4-bit weights count as the numbers they hold, a reference copy not at all."""
        trainable = total = 0
        for name, parameter in self.model.named_parameters():
            if ".ref." in name:
                continue
            size = parameter.numel()
            if type(parameter).__name__ == "Params4bit":
                size *= 2  # two numbers a byte
            total += size
            if parameter.requires_grad:
                trainable += size
        return trainable, total


class TrainerNumbers(Remembering):
    """What the trainer counts over the steps, so that a run that goes on counts on."""

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer

    def remembered(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "tokens": trainer._total_train_tokens,
            "loss": getattr(trainer, "_total_loss_scalar", 0.0),  # which is made when training begins
            "last_pairs": trainer.last_pairs.kept(),
        }

    def remember(self, values: dict[str, Any]) -> None:
        trainer = self.trainer
        trainer._total_train_tokens = values["tokens"]
        trainer._total_loss_scalar = values["loss"]
        trainer._initial_global_step = 0  # the mean of the losses is that of the whole run
        trainer.last_pairs.take(values["last_pairs"])


class WithWeights:
    """TRL's collator, and the weights of the pairs, shape (pairs,), where the pairs have them."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(examples)
        if WEIGHT in examples[0]:
            batch[WEIGHT] = torch.tensor([example[WEIGHT] for example in examples], dtype=torch.float32)
        return batch


def refuse_coupled_losses(recipe: Recipe) -> None:
    """RecipeError for losses in which a pair has no loss of its own that its weight could multiply."""
    coupled = sorted(recipe.loss_names & COUPLED_LOSSES)
    if coupled:
        raise RecipeError(
            f"The pairs have weights, and loss={coupled[0]!r} is of all pairs of a batch together, so that none has a "
            "loss of its own to be weighted. Choose another loss, such as 'sigmoid' without sft_weight, or leave the "
            "weights out."
        )


def _answer(output: Any, **model_inputs: Any) -> Any:
    """What a model has answered before."""
    return output


def _unchanged(value: torch.Tensor) -> torch.Tensor:
    return value


def _joined(batches: list[PairLogps]) -> PairLogps:
    """All pairs of several batches, in float64 on the CPU."""
    columns = {}
    for field in fields(PairLogps):
        parts = [getattr(batch, field.name) for batch in batches]
        columns[field.name] = torch.cat(parts).double().cpu()
    return PairLogps(**columns)


def _from_main_process(value: Any) -> Any:
    """The main process's value, in all processes."""
    return broadcast_object_list([value])[0]


def _rows_drawn(loader: Any, batches: int) -> set[int]:
    """The rows in the first batches of an epoch that a loader of this process would draw."""
    rows: set[int] = set()
    for batch in itertools.islice(loader.batch_sampler, batches):
        rows.update(batch)
    return rows


def _cache_file(folder: str, fingerprint: str) -> str:
    """Where TRL keeps what it computes, in place of `Dataset._get_cache_file_path`."""
    return f"{folder}/{fingerprint}.arrow"

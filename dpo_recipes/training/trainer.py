"""RecipeTrainer: TRL's trainer with plugin losses, the guard's stops and per-pair held-out numbers.

Leans on TRL 1.16: `DPOTrainer._compute_loss`, which calls the model once and reads the reference from the batch where
`precompute_ref_logps` is set; `_precompute_ref_logps`, `_prepare_dataset`, `_send_telemetry`,
`_set_signature_columns_if_needed`, `prediction_step` and `compute_ref_log_probs`; and of its Trainer, which is
Transformers', `_run_epoch`, `_save_checkpoint`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler` and
`_load_rng_state`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer

from ..errors import RecipeError
from ..formats.pair_weights import WEIGHT
from ..guard.callback import Health, Watch
from ..guard.last_pairs import LastPairs
from ..guard.start import loss_at_start
from ..losses.pair_logps import PairLogps
from ..losses.selection import name_of
from ..progress import Stage
from ..recipe.choices import ORDER
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings
from ..runs.checkpoint_folders import readable
from . import batch_watch, checkpoint_files
from .by_length import ByLengthWithinSteps, lengths, longest_first, places_before
from .engine import clip_as_asked, prepare_again, refuse_training_apart
from .kept_memory import freed_memory_kept
from .memory_recovery import MemoryRecovery, with_fewer_at_once
from .pair_log import PairLog
from .pair_reading import PairReading
from .plugin_losses import joined, losses_of_pairs, pair_logps
from .reference_pass import ReferencePass, in_words
from .trainer_numbers import TrainerNumbers
from .weighted_pairs import WithWeights, weighted_loss
from .with_images import ROW, WithImages

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
        self._evaluation: Stage | None = None  # while held-out pairs are read
        # Function, weight and its own numbers
        self.plugins = [(loss, weight, recipe.numbers(loss)) for loss, weight in recipe.plugins.values()]
        self.half = settings.in_16_bits
        self.health = Health(
            loss_at_start(recipe),
            same_start=settings.reference != "other model",
            plugins=tuple(recipe.plugins),
        )
        self.recorded: list[PairLogps] | None = None  # of each evaluation batch, while held_out() asks for them
        self.is_trained = False  # whether its policy has been trained elsewhere
        self.memory = MemoryRecovery(self, say)
        self.last_pairs = LastPairs(
            recipe.beta, changes_are_known=settings.reference in ("adapter off", "frozen adapter", "start weights")
        )
        self.pair_log = PairLog(self)
        self.reading = PairReading(self, say, cost_of_reading_twice)
        self.reference_pass = ReferencePass(self, super()._precompute_ref_logps, super().get_train_dataloader)
        self._eval_order: list[int] | None = None  # of the held-out pairs, where it is not their own

        super().__init__(**arguments)  # which may already compute the reference

        if self._is_vision_dataset:
            self.data_collator = WithImages(self.data_collator)
        self.data_collator = WithWeights(self.data_collator)
        if self.is_deepspeed_enabled:
            clip_as_asked(self)
        self.reading.share()
        if self.aux_loss_enabled:
            self.health.declared_loss = None  # the router's balancing loss comes on top
        if settings.reference == "other model" and settings.precompute:
            self.ref_model = None  # its log-probabilities are in the data now
        self.add_callback(Watch(self.health))
        self.add_callback(TrainerNumbers(self))
        self.add_callback(self.memory)

    def _send_telemetry(self) -> None:
        """Nothing is sent unless asked."""

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        """In order, however training pairs are drawn: numbers before and after are compared pair by pair.

        Where pairs are padded, by length; `held_out` puts what it gives into the order of the pairs again.
        """
        self._eval_order = None
        if self.reading.pads_independent_pairs() and len(eval_dataset) == len(self.eval_dataset):
            self._eval_order = longest_first(lengths(eval_dataset, self.args))
            return self._eval_order
        return SequentialSampler(eval_dataset)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Pairs that are tokenised already are taken as they are; TRL's own tokenising would drop rows in silence."""
        if "prompt_ids" in next(iter(dataset)):
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    # The reference, computed beforehand

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's, for the pairs that the run reads and whose reference log-probabilities are not there already."""
        self.reading.share()  # TRL comes here while it is being made
        if not isinstance(dataset, Dataset) or not len(dataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)  # which refuses it
        if dataset._indices is not None:
            # As concatenate_datasets would do for each; here, so that it is done once.
            dataset = dataset.flatten_indices()
        return self.reference_pass.add(dataset, name, batch_size)

    def get_train_dataloader(self) -> Any:
        """The Trainer's. A run reads no pair whose reference has not been computed: then nothing is trained.

        Where that was chosen, the pairs of a step come by length.
        """
        loader: Any = super().get_train_dataloader()
        if ORDER in self.recipe.reasons:
            drawn = loader.batch_sampler.sampler
            lengths_of_rows = lengths(self.train_dataset, self.args)
            pairs_a_step = self.recipe.global_batch_size
            loader.batch_sampler.sampler = ByLengthWithinSteps(drawn, lengths_of_rows, pairs_a_step)
        self.reference_pass.refuse_other_pairs(loader)
        return loader

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """TRL's, counted while the reference is computed beforehand."""
        logps = super().compute_ref_log_probs(model, inputs)
        self.reference_pass.count(_pairs_in(inputs))
        return logps

    # The loss

    def train(self, *arguments: Any, **options: Any) -> Any:
        """TRL's. The policy has been read before, which must not keep the processes from training together."""
        prepare_again(self)
        with freed_memory_kept(self.accelerator.device.type):
            return super().train(*arguments, **options)

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """An epoch, unless all steps are done: a run that goes on from its last one, within an epoch, trains no more.

        Transformers 5.23 looks whether a run has come to its end behind a step alone, and would train another one. To
        go when it looks before.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's; in parts where memory does not suffice for the whole micro-batch."""
        refuse_training_apart(self, model)

        def take(part: dict[str, Any]) -> torch.Tensor:
            return super(RecipeTrainer, self).training_step(model, part, num_items_in_batch)

        return self.memory.step(inputs, take)

    def _set_signature_columns_if_needed(self) -> None:
        """The columns that TRL keeps: its own, the weight of a pair, and its length, by which pairs may be drawn."""
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        kept = [WEIGHT, self.args.length_column_name]
        if self._is_vision_dataset:
            kept.append(ROW)
        for column in kept:
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
                loss = weighted_loss(self, super()._compute_loss, outputs_of_policy[0], inputs, weights)
        finally:
            self.precompute_ref_logps = precompute_ref_logps

        pairs = pair_logps(outputs_of_policy[0], inputs, self.ld_alpha)
        values: dict[str, torch.Tensor] = {}  # of each plugin loss, for each pair
        for plugin, weight, numbers in self.plugins:
            losses = losses_of_pairs(plugin, numbers, pairs, self.beta)
            values[name_of(plugin)] = losses
            if is_weighted:
                losses = losses * weights
            loss = loss + weight * losses.mean()

        detached_pairs = pairs.map(torch.Tensor.detach)
        mean_weight = weights.mean().item() if is_weighted else 1.0
        self._watch(loss.detach(), detached_pairs, values, inputs, mean_weight)
        self.pair_log.add(detached_pairs)
        if return_outputs:
            return loss, result[1]
        if self.memory.share < 1:  # a part of a micro-batch
            return self.memory.share * loss
        return loss

    def _watch(
        self,
        loss: torch.Tensor,
        pairs: PairLogps,
        values: dict[str, torch.Tensor],
        inputs: dict[str, Any],
        mean_weight: float,
    ) -> None:
        """Stop at a loss that is no number; look at the start and the rewards in training, record in evaluation."""
        batch_watch.stop_unless_finite(self, loss, pairs, values, inputs)
        if self.model.training:
            batch_watch.watch_training(self, loss, pairs, mean_weight)
        elif self.recorded is not None:
            self.recorded.append(pairs.map(self.accelerator.gather_for_metrics))

    def log(self, logs: dict[str, float], *arguments: Any) -> None:
        """TRL's, with what the last pairs tell beside the numbers of a training step."""
        if self.model.training and "loss" in logs:
            logs.update(self.last_pairs.numbers())
        super().log(logs, *arguments)

    # What is shown while it goes on

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
        if self._evaluation is not None:
            self._evaluation.advance(_pairs_in(inputs))
        return result

    # Checkpoints

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        checkpoint_files.write(self, functools.partial(super()._save_checkpoint, *arguments, **options))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load = functools.partial(super()._load_from_checkpoint, resume_from_checkpoint, model)
        checkpoint_files.load_weights(self, resume_from_checkpoint, load)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_rng_state(checkpoint)

    # What is asked from outside

    @property
    def tokenizer_of_text(self) -> Any:
        """The tokenizer, where pairs have images that of the processor."""
        return getattr(self.processing_class, "tokenizer", self.processing_class)

    @property
    def reference_cache(self) -> dict[str, str]:
        """Split -> hit, computed or rebuilt, where the reference is computed beforehand."""
        return self.reference_pass.how_of_split

    def reference_in_words(self) -> str:
        """How the reference's log-probabilities came about, in sentences; empty where each step computes them."""
        return in_words(self.reference_cache)

    def fingerprint(self) -> str:
        """A hash of the reference: its weights and config, without the adapter that is trained."""
        return self.reference_pass.fingerprint()

    def pair_reading(self) -> dict[str, Any]:
        """How pairs have been read so far: `pair_sharing` of evaluation.json."""
        return self.reading.receipt()

    def held_out(self) -> tuple[dict[str, float], PairLogps]:
        """(TRL's metrics over the held-out pairs without their `eval_` prefix, the log-probabilities of every pair)."""
        self.recorded = []
        with torch.random.fork_rng():  # a data loader draws from the global generator
            metrics = self.evaluate()
        batches = self.recorded
        self.recorded = None
        pairs = joined(batches)
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


def _pairs_in(inputs: dict[str, Any]) -> int:
    """The pairs of a batch, whose rows are all chosen sides and then all rejected ones."""
    return len(inputs["input_ids"]) // 2

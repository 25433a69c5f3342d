"""What a run does where memory does not suffice: it reads fewer pairs at once, then computes activations twice.

Leans on TRL 1.16: its Trainer, which is Transformers', calls `training_step` for each micro-batch, which adds to the
gradients, and `on_step_begin` before the first of an optimizer step; `_compute_loss` adds one number a batch to each
list of `_metrics`; and of Accelerate, `GradientState.dataloader_references`.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from ..errors import RecipeError
from ..losses.trl_losses import COUPLED_LOSSES
from ..runs.full_memory import is_out_of_memory

# Of the model in training, as TRL switches it on
CHECKPOINTING = {"use_reentrant": False}


class MemoryRecovery(TrainerCallback):
    """Takes the step that memory did not suffice for once more, in parts, and all that follow in such parts.

    The loss of a micro-batch is the mean over its pairs, so that the parts, each weighed by its share of the pairs, add
    up to the same loss and gradient. A loss that is of all pairs of a batch together has no parts.
    """

    def __init__(self, trainer: Any, say: Callable[[str], None]):
        self.trainer = trainer
        self.say = say
        self.share = 1.0  # of its micro-batch's pairs, in the part that is read now
        self._pairs_at_once: int | None = None  # None: all of a micro-batch
        self._of_this_step: list[dict[str, Any]] = []  # the micro-batches so far

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._of_this_step.clear()

    def step(self, inputs: dict[str, Any], take: Callable[[dict[str, Any]], torch.Tensor]) -> torch.Tensor:
        """The loss of a micro-batch, whose gradient is added; `take` does both for a part of one."""
        log = self._log_so_far()
        begin_anew = False
        while True:
            try:
                if begin_anew:
                    for before in self._of_this_step:  # whose gradients are gone, and whose log is there
                        self._in_parts(before, take)
                    self._log_again(log)
                loss = self._in_parts(inputs, take)
                self._of_this_step.append(inputs)
                return loss
            except Exception as error:  # of any device or library that finds its memory full
                if not is_out_of_memory(error):
                    raise
                self._log_again(log)
                self._change_something(inputs, error)
            # Behind the exception, which holds what the step has kept. A part of its gradient may have been added.
            self.trainer.model.zero_grad(set_to_none=True)
            give_memory_back()
            begin_anew = True

    def _in_parts(self, inputs: dict[str, Any], take: Callable[[dict[str, Any]], torch.Tensor]) -> torch.Tensor:
        pairs = len(inputs["input_ids"]) // 2
        at_once = self._pairs_at_once or pairs
        if at_once >= pairs:
            return take(inputs)
        lists = self.trainer._metrics["train"]
        before = {name: len(numbers) for name, numbers in lists.items()}
        total: Any = 0.0
        shares = []
        numbers_of_pairs = torch.arange(pairs)
        for first in range(0, pairs, at_once):
            is_within = (numbers_of_pairs >= first) & (numbers_of_pairs < first + at_once)
            part = {name: of_pairs(value, is_within) for name, value in inputs.items()}
            self.share = int(is_within.sum()) / pairs
            shares.append(self.share)
            try:
                total = total + take(part)
            finally:
                self.share = 1.0
        for name, numbers in lists.items():
            _join(numbers, before.get(name, 0), shares)
        return total

    def _log_so_far(self) -> tuple[dict[str, list[Any]], Any, dict[str, list[Any]]]:
        """What the trainer has counted up to this micro-batch."""
        trainer = self.trainer
        lists = {name: list(numbers) for name, numbers in trainer._metrics["train"].items()}
        return lists, trainer._total_train_tokens, trainer.last_pairs.kept()

    def _log_again(self, log: tuple[dict[str, list[Any]], Any, dict[str, list[Any]]]) -> None:
        """Let the trainer have counted no more than that."""
        trainer = self.trainer
        lists, trainer._total_train_tokens, last_pairs = log
        trainer._metrics["train"] = defaultdict(list, {name: list(numbers) for name, numbers in lists.items()})
        trainer.last_pairs.take(last_pairs)

    def _change_something(self, inputs: dict[str, Any], error: Exception) -> None:
        """Fewer pairs at once, then checkpointing; raises where neither is left."""
        trainer = self.trainer
        if trainer.args.world_size > 1:  # the other processes would wait for this one
            raise error
        pairs = self._pairs_at_once or len(inputs["input_ids"]) // 2
        step = f"Memory does not suffice for step {trainer.state.global_step + 1:,}"
        coupled = self._what_couples_pairs()
        has_images = "pixel_values" in inputs  # how many of its rows are a pair's, each model says in its own way
        if pairs > 1 and not coupled and not has_images:
            self._pairs_at_once = (pairs + 1) // 2
            self.say(
                f"{step} with {_pairs(pairs)} at once. It is taken again, and the run goes on, with "
                f"{_pairs(self._pairs_at_once)} at once, which gives the same loss and gradient."
            )
        elif not trainer.model.is_gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
            self.say(
                f"{step} with {_pairs(pairs)} at once. It is taken again, and the run goes on, with gradient "
                "checkpointing, which gives the same loss and gradient and takes longer."
            )
        elif coupled and pairs > 1:
            raise RecipeError(
                f"{step} with {_pairs(pairs)} at once, and {coupled} is of all of them together: with fewer it would "
                "be another loss. `dpo-recipes check` lists what else to change; micro_batch_size="
                f"{(pairs + 1) // 2} changes the loss too."
            ) from error
        elif pairs > 1:
            raise RecipeError(
                f"{step} with {_pairs(pairs)} at once, and a batch with images is not taken in parts. With "
                f"micro_batch_size={(pairs + 1) // 2} the loss is the same; smaller images need less too."
            ) from error
        else:
            raise error

    def _what_couples_pairs(self) -> str:
        """What of the loss is not a mean over pairs; empty where all of it is."""
        coupled = sorted(self.trainer.recipe.loss_names & COUPLED_LOSSES)
        if coupled:
            return f"loss={coupled[0]!r}"
        return "the loss of the router" if self.trainer.aux_loss_enabled else ""


@contextmanager
def data_loaders_kept(accelerator: Any) -> Iterator[None]:
    """Where something fails in here, Accelerate knows no more data loaders than before: one more would mislead it."""
    state = accelerator.gradient_state
    before = list(state.dataloader_references)
    try:
        yield
    except Exception:  # raised again
        state.dataloader_references = before
        raise


def with_fewer_at_once(
    batch_size: int, work: Callable[[int], Any], accelerator: Any, say: Callable[[str], None], what: str
) -> Any:
    """What `work` gives for the batch size, or for half of it, as often as memory does not suffice."""
    while True:
        try:
            with data_loaders_kept(accelerator):
                return work(batch_size)
        except Exception as error:  # of any device or library that finds its memory full
            if not is_out_of_memory(error) or batch_size == 1 or accelerator.num_processes > 1:
                raise
        give_memory_back()
        say(f"Memory does not suffice for {_pairs(batch_size)} at once: {what}, {_pairs(batch_size // 2)} at once.")
        batch_size //= 2


def give_memory_back() -> None:
    """What nothing refers to any more, to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def of_pairs(value: Any, chosen: torch.Tensor) -> Any:
    """The rows of some pairs of a batch, by a flag for each, of a tensor with one row a pair, or with two as TRL's."""
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    if value.size(0) == len(chosen):
        return value[chosen]
    if value.size(0) == 2 * len(chosen):
        return value[torch.cat([chosen, chosen])]
    return value


def _join(numbers: list[Any], before: int, shares: list[float]) -> None:
    """In a list of the log, one number for the parts of a micro-batch: their mean, weighed by their pairs."""
    of_parts = numbers[before:]
    if len(of_parts) == len(shares):
        numbers[before:] = [sum(share * number for share, number in zip(shares, of_parts, strict=True))]


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count:,} pairs"

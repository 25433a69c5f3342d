"""The reference's log-probabilities of the pairs that a run reads, found or computed before it trains.

Leans on TRL 1.16: `DPOTrainer._precompute_ref_logps`, which asks the data where to keep what it computes, and goes
through `compute_ref_log_probs` for each batch.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets

from ..data.tokenize import IDS
from ..guard.start import rounding_tolerance
from ..progress import Stage
from ..runs import environment
from . import reference_cache
from .by_length import lengths, longest_first, places_before
from .memory_recovery import with_fewer_at_once
from .part_of_epoch import batches_read, rows_drawn, rows_read
from .published_reference import Published


class ReferencePass:
    """Finds or computes them for one trainer, and tells how each split came by them."""

    def __init__(self, trainer: Any, by_trl: Callable[[Dataset, str, int], Any], train_loader: Callable[[], Any]):
        """`by_trl` computes them as DPOTrainer does; `train_loader` makes the Trainer's own loader of train pairs."""
        self.trainer = trainer
        self.by_trl = by_trl
        self.train_loader = train_loader
        self.how_of_split: dict[str, str] = {}  # hit, computed or rebuilt
        self._rows: set[int] | None = None  # of the train pairs; None: all of them, or computed in steps
        self._fingerprint: str | None = None
        self._stage: Stage | None = None  # while it goes on

    def add(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The pairs of a split with their reference log-probabilities; not a number for those that the run never reads.

        A trial of ten steps on a large set would spend hours on pairs that it never comes to.
        """
        rows = None
        if name == "train":
            rows = rows_read(self.train_loader(), self.trainer.args)
        if rows is None:
            logps, how = self._known_or_computed(dataset, name, batch_size)
        else:
            logps = np.full((len(dataset), 2), np.nan, np.float32)
            logps[rows], how = self._known_or_computed(dataset.select(rows), name, batch_size)
            how += f", for the {len(rows):,} of {len(dataset):,} pairs that the run reads"
            self._rows = set(rows)
        self.how_of_split[name] = how
        columns = Dataset.from_dict({"ref_chosen_logps": logps[:, 0], "ref_rejected_logps": logps[:, 1]})
        return concatenate_datasets([dataset, columns], axis=1)

    def refuse_other_pairs(self, loader: Any) -> None:
        """A run reads no pair whose reference has not been computed: then nothing is trained."""
        if self._rows is None:
            return
        batches = batches_read(loader, self.trainer.args)
        if batches is None or not rows_drawn(loader, batches) <= self._rows:
            raise RuntimeError("The run would read pairs other than those that it has a reference for.")

    def _known_or_computed(self, pairs: Dataset, name: str, batch_size: int) -> tuple[np.ndarray, str]:
        """(reference log-probabilities in nats, shape (pairs, 2); how they came about)."""
        trainer = self.trainer
        compute = functools.partial(self._compute, pairs, name, batch_size)
        tolerance = rounding_tolerance(trainer.half)
        if trainer.recipe.data.reference is not None:
            published = Published(trainer.recipe.data.reference)
            max_length = trainer.args.max_length
            logps = published.find(pairs, name, max_length, trainer.args.ld_alpha)
            words = published.verify(pairs, logps, compute, max_length, tolerance, share=_from_main_process)
            return logps, words
        return reference_cache.complete(
            pairs,
            reference_cache.Entries(environment.cache() / "reference", self._context()),
            compute=compute,
            tolerance=tolerance,
            share=_from_main_process,
            main=trainer.accelerator.is_main_process,
        )

    def _compute(self, pairs: Dataset, name: str, batch_size: int, rows: list[int]) -> np.ndarray:
        """Reference log-probabilities of some rows as TRL computes them, in nats, shape (rows, 2)."""

        def compute(pairs_at_once: int) -> np.ndarray:
            return self._compute_at_once(pairs, name, pairs_at_once, rows)

        what = f"the reference reads the {name} pairs again"
        return with_fewer_at_once(batch_size, compute, self.trainer.accelerator, self.trainer.say, what)

    def _compute_at_once(self, pairs: Dataset, name: str, batch_size: int, rows: list[int]) -> np.ndarray:
        part: Any = pairs.select_columns(list(IDS))
        order = list(range(len(rows)))
        if self.trainer.reading.pads_independent_pairs():
            order = longest_first(lengths(pairs.select(rows), self.trainer.args))
        rows_in_order = [rows[place] for place in order]
        if rows_in_order != list(range(len(part))):
            part = part.select(rows_in_order)

        # TRL's own cache takes stale numbers for new ones (another ld_alpha, say): each time it gets a new place.
        with tempfile.TemporaryDirectory() as folder:
            part._get_cache_file_path = functools.partial(_cache_file, _from_main_process(folder))
            words = f"Reference log-probabilities, {name} pairs"
            try:
                with Stage(self.trainer.console, words, len(part)) as self._stage:
                    computed = self.by_trl(part, name, batch_size).with_format("numpy")
            finally:
                self._stage = None
            logps = np.stack([computed["ref_chosen_logps"][:], computed["ref_rejected_logps"][:]], axis=1)
            self.trainer.accelerator.wait_for_everyone()  # before the folder goes
        return logps[places_before(order)]

    def count(self, pairs: int) -> None:
        """So many more pairs are done, where the pass is shown."""
        if self._stage is not None:
            self._stage.advance(pairs)

    def _context(self) -> dict[str, Any]:
        """All that the reference's log-probabilities depend on but the token ids, and nothing else."""
        trainer = self.trainer
        args = trainer.args
        packages = ("torch", "transformers", "trl", "peft", "bitsandbytes")
        return {
            "weights": self.fingerprint(),
            "truncation": (args.max_length, args.truncation_mode),
            "ld_alpha": args.ld_alpha,
            "precision": (args.bf16, args.fp16, args.tf32, trainer.accelerator.device.type),
            "attention": (trainer.ref_model or trainer.model).config._attn_implementation,
            "versions": {package: version(package) for package in packages},  # a library may mend a model
        }

    def fingerprint(self) -> str:
        """A hash of the reference: its weights and config, without the adapter that is trained. Made once."""
        if self._fingerprint is None:
            with Stage(self.trainer.console, "Hashing the reference's weights"):
                self._fingerprint = self._make_fingerprint()
        return self._fingerprint

    def _make_fingerprint(self) -> str:
        trainer = self.trainer
        if trainer.ref_model is not None:
            return reference_cache.fingerprint(trainer.accelerator.unwrap_model(trainer.ref_model))
        return reference_cache.fingerprint(trainer.model, trained="default")


def in_words(how_of_split: dict[str, str]) -> str:
    """How the reference's log-probabilities came about, in sentences; empty where each step computes them."""
    splits_of_words: dict[str, list[str]] = {}
    for split, how in how_of_split.items():
        words = how
        if how.startswith("hit"):
            words = how.replace("hit", "found in the cache", 1)
        splits_of_words.setdefault(words, []).append(split)

    sentences: list[str] = []
    for words, splits in splits_of_words.items():
        start = "Of" if sentences else "Reference log-probabilities of"
        sentences.append(f"{start} {' and '.join(splits)} pairs: {words}.")
    return " ".join(sentences)


def _from_main_process(value: Any) -> Any:
    """The main process's value, in all processes."""
    return broadcast_object_list([value])[0]


def _cache_file(folder: str, fingerprint: str) -> str:
    """Where TRL keeps what it computes, in place of `Dataset._get_cache_file_path`."""
    return f"{folder}/{fingerprint}.arrow"

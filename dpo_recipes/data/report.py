"""The data report of a split: lengths, costs and defects of its tokenised pairs.

Leans on TRL 1.16: how far its collator pads the rows of a batch, and what max_length cuts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .batches import Tally, row_names

NO_LIMIT = 2**60  # tokens: longer than any sequence, for max_length=None


@dataclass(frozen=True)
class Figures:
    """What is counted of each pair: arrays with one integer a pair. The names are columns of the tokenised pairs."""

    prompt_tokens: np.ndarray  # of the prompt, as far as both completions leave its tokens alone
    chosen_tokens: np.ndarray  # of the chosen completion
    rejected_tokens: np.ndarray  # of the rejected completion
    common_tokens: np.ndarray  # with which both completions start
    left_out_tokens: np.ndarray  # at the prompt's end: they change when an answer follows, and stand in no part
    start_tokens: np.ndarray  # the tokenizer's start tokens, at the start of the sequence
    fewest_ends: np.ndarray  # end tokens at the end of a side: of the side that has fewer
    most_ends: np.ndarray  # end tokens at the end of a side: the most of one kind
    lost_text: np.ndarray  # 1 where the chat template leaves out or changes the text of a message, or the tools
    control_tokens: np.ndarray  # 1 where a control token stands in the text of a message, else 0

    def select(self, flags: np.ndarray) -> Figures:
        """The figures of some pairs, by a flag for each."""
        return Figures(**{name: getattr(self, name)[flags] for name in FIGURES})


FIGURES = [field.name for field in fields(Figures)]


def figures_of(table: Any) -> Figures:
    """The figures in a pyarrow.Table."""
    return Figures(**{name: table[name].to_numpy().astype(np.int64) for name in FIGURES})


class Lengths:
    """How many pairs have which length: few numbers, however many pairs there are."""

    def __init__(self) -> None:
        self.lengths = np.empty(0, dtype=np.int64)  # each that occurs, sorted
        self.counts = np.empty(0, dtype=np.int64)

    def add(self, lengths: np.ndarray) -> None:
        new_lengths, new_counts = np.unique(lengths, return_counts=True)
        every = np.concatenate([self.lengths, new_lengths])
        self.lengths, places = np.unique(every, return_inverse=True)
        weights = np.concatenate([self.counts, new_counts])
        self.counts = np.bincount(places, weights=weights).astype(np.int64)

    def nth_smallest(self, n: int) -> int:
        """The length at place `n`, from 0 on, where all are sorted."""
        return int(self.lengths[np.searchsorted(np.cumsum(self.counts), n, side="right")])

    def quantiles(self) -> dict[str, int]:
        """Lengths that are reached, not values between two of them."""
        count = int(self.counts.sum())
        shares = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
        return {name: self.nth_smallest(max(0, -(-count * share // 100) - 1)) for name, share in shares.items()}


class Counts:
    """What is counted of the tokenised pairs of a split, batch by batch."""

    def __init__(self, max_length: int | None):
        self.limit = max_length or NO_LIMIT
        # Of every pair, before truncation
        self.every_pair = 0
        self.prompt, self.chosen, self.rejected, self.whole = Lengths(), Lengths(), Lengths(), Lengths()
        # Of the pairs that are kept
        self.pairs = 0
        self.cut, self.cut_chosen, self.cut_rejected = Tally(), Tally(), Tally()
        self.longer_chosen, self.equally_long = Tally(), Tally()
        self.border, self.lost_text, self.control_tokens = Tally(), Tally(), Tally()
        self.no_start, self.one_start, self.doubled_start = Tally(), Tally(), Tally()
        self.no_end, self.repeated_end, self.wrong_end = Tally(), Tally(), Tally()
        self.costs = Costs(max_length)

    def add(self, every: Figures, numbers: np.ndarray, is_kept: np.ndarray) -> None:
        """Count the pairs of these numbers, of which those with a flag are kept."""
        self.every_pair += len(numbers)
        self.prompt.add(every.prompt_tokens)
        self.chosen.add(every.chosen_tokens)
        self.rejected.add(every.rejected_tokens)
        self.whole.add(every.prompt_tokens + np.maximum(every.chosen_tokens, every.rejected_tokens))

        kept = every.select(is_kept)
        numbers = numbers[is_kept]
        self.pairs += len(numbers)
        cut_chosen = kept.prompt_tokens + kept.chosen_tokens > self.limit
        cut_rejected = kept.prompt_tokens + kept.rejected_tokens > self.limit
        no_end = kept.fewest_ends == 0
        repeated_end = kept.most_ends > 1
        for tally, has_it in (
            (self.cut, cut_chosen | cut_rejected),
            (self.cut_chosen, cut_chosen),
            (self.cut_rejected, cut_rejected),
            (self.longer_chosen, kept.chosen_tokens > kept.rejected_tokens),
            (self.equally_long, kept.chosen_tokens == kept.rejected_tokens),
            (self.border, kept.left_out_tokens > 0),
            (self.lost_text, kept.lost_text > 0),
            (self.control_tokens, kept.control_tokens > 0),
            (self.no_start, kept.start_tokens == 0),
            (self.one_start, kept.start_tokens == 1),
            (self.doubled_start, kept.start_tokens > 1),
            (self.no_end, no_end),
            (self.repeated_end, repeated_end),
            (self.wrong_end, no_end | repeated_end),
        ):
            tally.add(numbers[has_it])
        self.costs.add(kept.prompt_tokens, kept.chosen_tokens, kept.rejected_tokens)


def split_report(
    counts: Counts,
    pairs: Any,
    *,
    dropped: dict[str, Any],
    micro_batch_size: int,
    seed: int,
    adds_start_token: bool | None,
    border_example: str | None,
    lost_example: str | None,
) -> dict[str, Any]:
    """The part of the data report that needs tokens, JSON-able.

    `counts` are of `pairs`, by whose numbers and names pairs are known; `dropped`: why others are not kept, reason ->
    {"count", "rows"}; `adds_start_token`: what the tokenizer does to plain text, None where it has no start token;
    `border_example`: text that the first of the pairs in question leaves out; `lost_example`: what the chat template
    loses of the first pair of which it loses something.
    """
    shares_of = max(counts.pairs, 1)
    equally_long = counts.equally_long.count  # whoever picks the longer one guesses here
    return {
        "pairs": counts.pairs,
        "dropped": dropped,
        "tokens": {  # of all pairs, before truncation
            "prompt": counts.prompt.quantiles(),
            "chosen": counts.chosen.quantiles(),
            "rejected": counts.rejected.quantiles(),
        },
        "truncated": {
            "chosen": counts.cut_chosen.count,
            "rejected": counts.cut_rejected.count,
            "pairs": counts.cut.count,
            "rows": row_names(pairs, counts.cut.first),
        },
        "max_length_keeping_99": counts.whole.nth_smallest(counts.every_pair - 1 - counts.every_pair // 100),
        "longer_chosen": counts.longer_chosen.count / shares_of,
        "pick_longer_accuracy": (counts.longer_chosen.count + equally_long / 2) / shares_of,
        "border": {**counts.border.counted(pairs), "example": border_example},
        "start_token": _start_token(counts, pairs, adds_start_token),
        "lost_text": {**counts.lost_text.counted(pairs), "example": lost_example},
        "special_tokens": counts.control_tokens.counted(pairs),
        "end_token": {
            "missing": counts.no_end.count,
            "repeated": counts.repeated_end.count,
            "pairs": counts.wrong_end.count,
            "rows": row_names(pairs, counts.wrong_end.first),
        },
        **counts.costs.of_an_epoch(micro_batch_size, seed),
    }


def _start_token(counts: Counts, pairs: Any, adds_start_token: bool | None) -> dict[str, Any]:
    """How many pairs start with no, one and more start tokens; nothing where the tokenizer has none."""
    if adds_start_token is None:
        return {"none": None, "one": None, "doubled": None, "rows": None, "wanted": False}
    return {
        "none": counts.no_start.count,
        "one": counts.one_start.count,
        "doubled": counts.doubled_start.count,
        "rows": row_names(pairs, counts.doubled_start.first),
        "wanted": adds_start_token,
    }


class Costs:
    """The tokens that pairs cost after truncation. Of each pair one length is kept: 4 bytes."""

    def __init__(self, max_length: int | None):
        self.limit = max_length or NO_LIMIT
        self.real_tokens = 0
        self.prompt_tokens = 0
        self.longer_rows: list[np.ndarray] = []

    def add(self, prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> None:
        """Count pairs of these lengths."""
        chosen_row = np.minimum(prompt + chosen, self.limit)
        rejected_row = np.minimum(prompt + rejected, self.limit)
        self.real_tokens += int(chosen_row.sum() + rejected_row.sum())
        self.prompt_tokens += int(np.minimum(prompt, self.limit).sum())
        self.longer_rows.append(np.maximum(chosen_row, rejected_row).astype(np.int32))

    def of_an_epoch(self, micro_batch_size: int, seed: int) -> dict[str, int]:
        """`padded_tokens`: as TRL reads them, two rows a pair, each as long as the longest of its random micro-batch;
        `real_tokens`: without padding; `shared_tokens`: with a pair's prompt read once.
        """
        longer_row = np.concatenate([np.empty(0, np.int32), *self.longer_rows])
        np.random.default_rng(seed).shuffle(longer_row)
        in_whole_batches = len(longer_row) // micro_batch_size * micro_batch_size
        longest = longer_row[:in_whole_batches].reshape(-1, micro_batch_size).max(axis=1)
        padded_tokens = 2 * micro_batch_size * int(longest.sum(dtype=np.int64))
        last_batch = longer_row[in_whole_batches:]
        if len(last_batch):
            padded_tokens += 2 * len(last_batch) * int(last_batch.max())
        return {
            "padded_tokens": padded_tokens,
            "real_tokens": self.real_tokens,
            "shared_tokens": self.real_tokens - self.prompt_tokens,
        }

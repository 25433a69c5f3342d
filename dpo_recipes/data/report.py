"""The data report of a split: lengths, costs and defects of its tokenised pairs.

Leans on TRL 1.16: how far its collator pads the rows of a batch, and what max_length cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

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

    def select(self, pairs: np.ndarray) -> Figures:
        """The figures of some pairs, by their numbers."""
        return Figures(**{name: getattr(self, name)[pairs] for name in FIGURES})


FIGURES = [field.name for field in fields(Figures)]


def split_report(
    every: Figures,
    kept: Figures,
    rows: Sequence[str],
    *,
    dropped: dict[str, Any],
    max_length: int | None,
    micro_batch_size: int,
    seed: int,
    adds_start_token: bool | None,
    border_example: str | None,
    lost_example: str | None,
) -> dict[str, Any]:
    """The part of the data report that needs tokens, JSON-able.

    `every`: figures of all pairs; `kept`: of those that are left, whose rows are named by `rows`; `dropped`: why the
    others are not, reason -> {"count", "rows"}; `adds_start_token`: what the tokenizer does to plain text, None where
    it has no start token; `border_example`: text that the first of the pairs in question leaves out;
    `lost_example`: what the chat template loses of the first pair of which it loses something.
    """
    limit = max_length or NO_LIMIT
    pairs = len(kept.prompt_tokens)
    shares_of = max(pairs, 1)
    whole_lengths = np.sort(every.prompt_tokens + np.maximum(every.chosen_tokens, every.rejected_tokens))

    chosen_is_cut = kept.prompt_tokens + kept.chosen_tokens > limit
    rejected_is_cut = kept.prompt_tokens + kept.rejected_tokens > limit
    is_cut = chosen_is_cut | rejected_is_cut

    chosen_is_longer = kept.chosen_tokens > kept.rejected_tokens
    equally_long = kept.chosen_tokens == kept.rejected_tokens  # whoever picks the longer one guesses here

    has_border = kept.left_out_tokens > 0
    loses_text = kept.lost_text > 0
    has_control_token = kept.control_tokens > 0
    misses_end = kept.fewest_ends == 0
    repeats_end = kept.most_ends > 1

    return {
        "pairs": pairs,
        "dropped": dropped,
        "tokens": {  # of all pairs, before truncation
            "prompt": _quantiles(every.prompt_tokens),
            "chosen": _quantiles(every.chosen_tokens),
            "rejected": _quantiles(every.rejected_tokens),
        },
        "truncated": {
            "chosen": int(chosen_is_cut.sum()),
            "rejected": int(rejected_is_cut.sum()),
            "pairs": int(is_cut.sum()),
            "rows": _first_rows(is_cut, rows),
        },
        "max_length_keeping_99": int(whole_lengths[-1 - len(whole_lengths) // 100]),  # of all pairs
        "longer_chosen": float(chosen_is_longer.sum() / shares_of),
        "pick_longer_accuracy": float((chosen_is_longer.sum() + equally_long.sum() / 2) / shares_of),
        "border": {
            "count": int(has_border.sum()),
            "rows": _first_rows(has_border, rows),
            "example": border_example,
        },
        "start_token": _start_token(kept.start_tokens, rows, adds_start_token),
        "lost_text": {
            "count": int(loses_text.sum()),
            "rows": _first_rows(loses_text, rows),
            "example": lost_example,
        },
        "special_tokens": {
            "count": int(has_control_token.sum()),
            "rows": _first_rows(has_control_token, rows),
        },
        "end_token": {
            "missing": int(misses_end.sum()),
            "repeated": int(repeats_end.sum()),
            "pairs": int((misses_end | repeats_end).sum()),
            "rows": _first_rows(misses_end | repeats_end, rows),
        },
        **costs(kept.prompt_tokens, kept.chosen_tokens, kept.rejected_tokens, micro_batch_size, max_length, seed),
    }


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    """Lengths that are reached, not values between two of them."""
    p50, p95, p99, longest = np.percentile(lengths, (50, 95, 99, 100), method="inverted_cdf")
    return {"p50": int(p50), "p95": int(p95), "p99": int(p99), "max": int(longest)}


def _first_rows(flags: np.ndarray, rows: Sequence[str]) -> list[str]:
    """The names of the first three rows that have the flag."""
    return [rows[int(pair)] for pair in np.flatnonzero(flags)[:3]]


def _start_token(start_tokens: np.ndarray, rows: Sequence[str], adds_start_token: bool | None) -> dict[str, Any]:
    """How many pairs start with no, one and more start tokens; nothing where the tokenizer has none."""
    if adds_start_token is None:
        return {"none": None, "one": None, "doubled": None, "rows": None, "wanted": False}
    return {
        "none": int((start_tokens == 0).sum()),
        "one": int((start_tokens == 1).sum()),
        "doubled": int((start_tokens > 1).sum()),
        "rows": _first_rows(start_tokens > 1, rows),
        "wanted": adds_start_token,
    }


def costs(
    prompt: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
    micro_batch_size: int,
    max_length: int | None,
    seed: int,
) -> dict[str, int]:
    """Tokens of an epoch after truncation, from arrays of lengths.

    `padded_tokens`: as TRL reads them, two rows a pair, each as long as the longest of its random micro-batch;
    `real_tokens`: without padding; `shared_tokens`: with a pair's prompt read once.
    """
    limit = max_length or NO_LIMIT
    chosen_row = np.minimum(prompt + chosen, limit)
    rejected_row = np.minimum(prompt + rejected, limit)
    real_tokens = int(chosen_row.sum() + rejected_row.sum())
    prompt_tokens = int(np.minimum(prompt, limit).sum())

    padded_tokens = 0
    if len(prompt):
        longer_row = np.random.default_rng(seed).permutation(np.maximum(chosen_row, rejected_row))
        batch_starts = np.arange(0, len(prompt), micro_batch_size)
        pairs_of_batch = np.diff(batch_starts, append=len(prompt))
        longest_of_batch = np.maximum.reduceat(longer_row, batch_starts)
        padded_tokens = int(2 * longest_of_batch @ pairs_of_batch)

    return {
        "padded_tokens": padded_tokens,
        "real_tokens": real_tokens,
        "shared_tokens": real_tokens - prompt_tokens,
    }

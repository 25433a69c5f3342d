"""How long pairs are, in tokens: what a batch of them needs is decided by that alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# TRL's options for how many pairs a pass without gradients takes at once.
BATCHES_OF_A_PASS = ("per_device_eval_batch_size", "precompute_ref_batch_size")


class PairLength(NamedTuple):
    """Tokens of a pair, as max_length cuts it."""

    prompt: int
    chosen: int  # without the prompt
    rejected: int

    @property
    def longer_row(self) -> int:
        return self.prompt + max(self.chosen, self.rejected)

    @property
    def read_once(self) -> int:
        return self.prompt + self.chosen + self.rejected

    def cut(self, max_length: int | None) -> PairLength:
        limit = max_length or self.longer_row
        prompt = min(self.prompt, limit)
        return PairLength(prompt, min(self.chosen, limit - prompt), min(self.rejected, limit - prompt))


def longest_pair(pairs: list[PairLength]) -> int:
    """Tokens of the longest side of any pair, with its prompt."""
    return max(pair.longer_row for pair in pairs)


def pairs_a_pass(options: Mapping[str, Any], micro_batch_size: int) -> int:
    """How many pairs go through the model at once at most; `options` are those of DPOConfig that are set."""
    return max(micro_batch_size, *(options.get(name) or 0 for name in BATCHES_OF_A_PASS))

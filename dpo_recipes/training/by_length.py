"""Pairs by their length, where a batch is padded to its longest: without a change of what is learned or measured.

Leans on TRL 1.16: a step of the Trainer takes the pairs of consecutive micro-batches, in the order of the sampler that
stands behind the loader's `batch_sampler`; `length_column_name` names the column of lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class ByLengthWithinSteps:
    """The order of another sampler, in which the pairs of each step come by length.

    So its micro-batches hold pairs of like lengths, and which pairs make a step is drawn as before, whatever their
    lengths. A last step of fewer pairs stays as it was drawn: its last micro-batch may be smaller than the others, and
    its pairs then weigh more in TRL's mean, which shall not depend on their length.
    """

    def __init__(self, drawn: Any, lengths: Sequence[int], pairs_a_step: int):
        self.drawn = drawn
        self.lengths = lengths
        self.pairs_a_step = pairs_a_step

    def __iter__(self) -> Iterator[int]:
        pairs_of_step: list[int] = []
        for pair in self.drawn:
            pairs_of_step.append(pair)
            if len(pairs_of_step) == self.pairs_a_step:
                yield from sorted(pairs_of_step, key=self.lengths.__getitem__)
                pairs_of_step = []
        yield from pairs_of_step

    def __len__(self) -> int:
        return len(self.drawn)

    def set_epoch(self, epoch: int) -> None:
        """Told by the loader: each epoch has an order of its own."""
        if hasattr(self.drawn, "set_epoch"):
            self.drawn.set_epoch(epoch)


def lengths(pairs: Any, args: Any) -> list[int]:
    """Tokens of the longer row of each tokenised pair, as max_length of a DPOConfig cuts it."""
    if args.length_column_name in pairs.column_names:
        whole = list(pairs[args.length_column_name])
    else:
        whole = [len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) for pair in pairs]
    if args.max_length is None:
        return whole
    return [min(length, args.max_length) for length in whole]


def longest_first(lengths: Sequence[int]) -> list[int]:
    """The places of pairs by their length, the longest first: what needs too much memory then shows at once."""
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])


def places_before(order: Sequence[int]) -> list[int]:
    """Where each pair stands in an `order`: what comes in that order, taken at these places, is as it was before."""
    places = [0] * len(order)
    for place, pair in enumerate(order):
        places[pair] = place
    return places

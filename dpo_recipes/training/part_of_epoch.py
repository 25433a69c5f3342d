"""The pairs that a run shorter than an epoch reads, known before it reads them.

Leans on TRL 1.16: its Trainer, which is Transformers', takes the batches of an epoch in the order of the loader's
`batch_sampler`, whose order is drawn from the seed alone, and as many of them as `max_steps` or `num_train_epochs` say.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from accelerate.utils import gather_object


def batches_read(loader: Any, args: Any) -> int | None:
    """How many batches of its first epoch a run reads; None where it reads all of them."""
    steps_an_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * steps_an_epoch)
    if steps >= steps_an_epoch:
        return None
    return steps * args.gradient_accumulation_steps


def rows_drawn(loader: Any, batches: int) -> set[int]:
    """The rows in the first batches of an epoch that a loader of this process would draw."""
    rows: set[int] = set()
    for batch in itertools.islice(loader.batch_sampler, batches):
        rows.update(batch)
    return rows


def rows_read(loader: Any, args: Any) -> list[int] | None:
    """The train pairs that a run shorter than an epoch reads; None where it reads all, or its order is not known.

    The order is drawn from the seed alone, so that a loader like the one that training will make can be asked
    beforehand.
    """
    batches = batches_read(loader, args)
    if batches is None:
        return None
    with torch.random.fork_rng():
        rows = rows_drawn(loader, batches)
        once_more = rows_drawn(loader, batches)
    if rows != once_more:  # drawn from the global generator, whose state by then nobody knows
        return None
    rows_of_processes = gather_object([sorted(rows)])
    return sorted(set().union(*rows_of_processes))

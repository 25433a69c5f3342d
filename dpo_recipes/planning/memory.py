"""What a recipe needs on a device, from shapes alone: one training step on fake tensors, its live bytes counted.

Two things come on top of tensors: what the process holds without a model, and what the allocator keeps for later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, Settings, resolve
from ..training.session import Session
from .allocator import CachingAllocator
from .live_bytes import Live
from .packed_weights import count_numbers
from .pair_lengths import PairLength, pairs_a_pass
from .paper_run import run_on_paper
from .process import resident
from .stored_lengths import pair_lengths

# What the parts of a sum are called, in the order in which they are shown.
PARTS = (
    "process",
    "weights",
    "gathered",
    "files",
    "adapter",
    "gradients",
    "buckets",
    "optimizer",
    "reference",
    "activations",
    "head",
    "allocator",
)


class Unplannable(RecipeError):
    """What cannot be known without the real thing."""


@dataclass(frozen=True)
class Plan:
    """What trains, and the bytes that are held at the worst moment."""

    trainable: int  # numbers
    total: int
    moment: str  # loading | reference | evaluation | step
    process: int  # on a CPU: the libraries and the pairs; a GPU's own context is left to what USABLE leaves free
    weights: int
    gathered: int  # with several processes: weights of other devices, while they are in use (engines.py)
    files: int  # of weights, mapped while they are read
    adapter: int
    gradients: int
    buckets: int  # with several processes: buffers in which gradients travel (engines.py)
    optimizer: int
    reference: int  # a frozen adapter or a second model; log-probabilities computed before training are nothing
    activations: int
    head: int  # TRL's: a tile of logits, and the gradients of what made them
    allocator: int  # on a GPU: what torch keeps reserved in the end, beyond what is in use at that moment
    peak: int  # their sum


def plan(
    skeleton: Any,
    recipe: Recipe,
    settings: Settings,
    *,
    pairs: list[PairLength],
    second: Any = None,
    process: int = 0,
    divided_by: Mapping[str, int] | None = None,
    reads_weights: bool = True,
) -> Plan:
    """The plan for the largest `pairs`, of which a batch takes as many as it has; of too few the last one is repeated.

    `second`: the skeleton of another reference; `process`: bytes that are held without a model. `divided_by`: the parts
    that are spread over several devices, which decide what is the worst moment; the plan has them whole.
    `reads_weights`: not where they are gathered when their modules are called. Unplannable where a model does not run
    on fake tensors.
    """
    live = Live(CachingAllocator() if settings.device == "cuda" else None, divided_by)
    live.now["process"] = process
    try:
        with live:
            run_on_paper(live, skeleton, second, recipe, settings, pairs, reads_weights)
    except Exception as error:  # of whichever operation has no shapes alone
        raise Unplannable(f"This model does not run on fake tensors: {type(error).__name__}: {error}") from error

    trainable, total = 0, 0
    for name, parameter in skeleton.named_parameters():
        if ".ref." in name:  # a frozen copy of an adapter
            continue
        numbers = count_numbers(parameter)
        total += numbers
        if parameter.requires_grad:
            trainable += numbers

    bytes_of_parts = {part: live.worst.parts[part] for part in PARTS}
    bytes_of_parts["allocator"] = live.kept_for_later()
    return Plan(
        trainable=trainable, total=total, moment=live.worst.name, peak=sum(bytes_of_parts.values()), **bytes_of_parts
    )


# ------------------------------------------------------------------------------------------------------- for a recipe


def largest_pairs(session: Session, report: dict[str, Any], most: int = 0) -> list[PairLength]:
    """The pairs of either split that need most, as many as a batch may take. Unplannable where nothing tells.

    `most`: pairs in the largest batch that is thought of, where that is more than the recipe takes.
    Where the pairs are not known, such as those of a stream, one that fills max_length and shares nothing.
    """
    recipe = session.recipe
    if "tokens" not in report.get("train", {}):
        if recipe.max_length is None:
            raise Unplannable("Neither the pairs nor max_length say how long a pair can be.")
        return [PairLength(prompt=1, chosen=recipe.max_length - 1, rejected=recipe.max_length - 1)]

    lengths = pair_lengths((session.train, session.eval), recipe.max_length)
    if not len(lengths.prompt):
        return [PairLength(1, 1, 1)]
    batch = max(most, pairs_a_pass(recipe.trl, session.settings.micro_batch_size))
    return [*lengths.most(lengths.longer_rows, batch), *lengths.most(lengths.read_once, batch)]


def plan_for(
    session: Session,
    device: Device,
    pairs: list[PairLength],
    recipe: Recipe,
    divided_by: Mapping[str, int] | None = None,
    models: tuple[Any, Any] | None = None,
    settings: Settings | None = None,
    reads_weights: bool = True,
) -> Plan:
    """The plan of a recipe, the session's own or a changed one, on a device, for the largest pairs.

    `models`: its `skeletons`, where they are at hand; `settings`: others than the device's own; `reads_weights`: as
    in `plan`.
    """
    settings = settings or resolve(recipe, device)
    policy, second = models or skeletons(session, recipe, settings)
    return plan(
        policy,
        recipe,
        settings,
        pairs=[pair.cut(recipe.max_length) for pair in pairs],
        second=second,
        process=0 if device.kind == "cuda" else resident(),
        divided_by=divided_by,
        reads_weights=reads_weights,
    )


def skeletons(session: Session, recipe: Recipe, settings: Settings) -> tuple[Any, Any]:
    """Policy and, where it is a model of its own, reference; their shapes alone."""
    from ..models.skeleton import skeleton

    policy = skeleton(recipe, settings, session.model_path)
    second = None
    if settings.loads_reference:
        second = skeleton(recipe, settings, session.reference_path or session.model_path, trainable=False)
    return policy, second

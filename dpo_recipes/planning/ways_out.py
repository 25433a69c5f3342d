"""What to change where a recipe does not fit on its device: what helps most first, and what leaves the maths alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..errors import RecipeError
from ..losses.trl_losses import COUPLED_LOSSES
from ..recipe.adapters import QLoRA
from ..recipe.overrides import apply
from ..recipe.recipe import Recipe

if TYPE_CHECKING:
    from .memory import Plan

SHORTER = (512, 256)  # tokens to cut pairs to
LEAST_SAVING = 0.01  # of the peak: what saves less is no way out

Replan = Callable[[Recipe], "Plan"]
Launches = Mapping[str, Callable[[], "Plan"]]  # options of the command line -> the plan with them


class WayOut(NamedTuple):
    """A change, and what it brings."""

    change: str  # as on the command line, of the recipe or of the launch; several have spaces between them
    same_maths: bool  # whether the result of the training stays the same
    saves: int  # bytes of the peak
    peak: int  # bytes that are left
    fits: bool


def ways_out(
    recipe: Recipe,
    peak: int,
    memory: int,
    replan: Replan,
    tokens: int = 10**9,
    on_cpu: bool = False,
    launches: Launches | None = None,
) -> list[WayOut]:
    """Changes that save something of a `peak` that does not fit into `memory` bytes, the best first.

    Single changes that fit come first, of those the ones that leave the maths alone; then those that are not enough,
    by what they save. Where none is enough, the first is the shortest sum of them that is. `tokens`: the longest pair,
    above which max_length changes nothing; `on_cpu`: where the weights have 32 bits, whatever the adapter; `launches`:
    other ways to spread the same steps over devices, which are in no sum.
    """

    def judged(change: str, same_maths: bool, changed: Callable[[], Plan]) -> WayOut | None:
        try:
            changed_peak = changed().peak
        except RecipeError:  # such as an option that goes with full fine-tuning alone
            return None
        saves = peak - changed_peak
        if saves < LEAST_SAVING * peak:
            return None
        return WayOut(change, same_maths, saves, changed_peak, changed_peak <= memory)

    def way_out(changes: list[str], same_maths: bool) -> WayOut | None:
        return judged(" ".join(changes), same_maths, lambda: replan(apply(recipe, changes)))

    single = [way_out([change], True) for change in _changes_of_the_same_maths(recipe)]
    single += [way_out([change], False) for change in _changes_of_other_maths(recipe, tokens, on_cpu)]
    of_recipe = sorted((way for way in single if way is not None), key=_usefulness)

    of_launch = [judged(options, True, planned) for options, planned in (launches or {}).items()]
    ways = sorted([*of_recipe, *(way for way in of_launch if way is not None)], key=_usefulness)
    if not ways or ways[0].fits:
        return ways

    together = [way for way in _together(of_recipe, way_out) if way.saves > ways[0].saves]
    return [*together, *ways]


def _usefulness(way: WayOut) -> tuple[bool, bool, int]:
    """Sorted by it, the most useful comes first. Among those that are not enough only the saving counts."""
    changes_what_is_learned = not way.same_maths
    return (not way.fits, way.fits and changes_what_is_learned, -way.saves)


def _together(ways: list[WayOut], way_out: Callable[[list[str], bool], WayOut | None]) -> list[WayOut]:
    """All that leaves the maths alone, and then one after the other of what does not, until it fits.

    Where not even all of it does, the sum of all. Nothing where there is nothing to add up.
    """
    changes = [way.change for way in ways if way.same_maths]
    sums = []  # changes, and whether they leave the maths alone
    if len(changes) > 1:
        sums.append((list(changes), True))
    for way in ways:
        if way.same_maths:
            continue
        field = way.change.partition("=")[0]
        if any(change.startswith(f"{field}=") for change in changes):  # one adapter, one length: that saves more
            continue
        changes.append(way.change)
        if len(changes) > 1:
            sums.append((list(changes), False))

    best = None
    for summands, same_maths in sums:
        attempt = way_out(summands, same_maths)
        if attempt is None:
            continue
        if best is None or attempt.saves > best.saves:
            best = attempt
        if attempt.fits:
            break
    return [] if best is None else [best]


def _changes_of_the_same_maths(recipe: Recipe) -> list[str]:
    """Smaller micro-batches, accumulated to the same step, and activations that are computed twice."""
    changes = []
    coupled = recipe.loss_names & COUPLED_LOSSES  # the micro-batch decides what such a loss is
    if recipe.micro_batch_size != 1 and not coupled:
        changes.append("micro_batch_size=1")
    if recipe.trl.get("gradient_checkpointing") is False:
        changes.append("trl.gradient_checkpointing=true")
    return changes


def _changes_of_other_maths(recipe: Recipe, tokens: int, on_cpu: bool) -> list[str]:
    """Frozen weights with an adapter, in 16 bits or in 4; shorter pairs."""
    changes = []
    if recipe.adapter is None:
        changes.append("adapter=lora")
    if not isinstance(recipe.adapter, QLoRA):
        changes.append("adapter=qlora")
        if on_cpu and recipe.adapter is not None and recipe.dtype == "auto":
            changes.append("dtype=bfloat16")
    longest = min(recipe.max_length or tokens, tokens)
    changes += [f"max_length={length}" for length in SHORTER if length < longest]
    return changes

"""Whether TRL's own trainer fits beside ours in one process, as `bench` has them: it holds more than ours does."""

from __future__ import annotations

import functools
from typing import Any

from ..errors import RecipeError
from ..progress import Stage
from ..recipe.choices import Choice
from ..recipe.recipe import Recipe
from ..training.session import Session
from .amounts import USABLE, device_memory, format_memory
from .chosen_settings import BELIEVED, MICRO_BATCH, largest_that_fits, take
from .memory import Unplannable, plan_for
from .pair_lengths import PairLength
from .stored_lengths import pair_lengths

BYTES_OF_KEPT = 4  # of each number of a gradient that waits to be compared, in float32


def fit_both(session: Session, of_trl: Recipe, pairs: Any, gradients_kept: int) -> Choice | None:
    """Let the session take fewer pairs at a time where TRL's trainer would not fit and nobody has said how many.

    `of_trl`: the recipe as TRL's trainer has it; `pairs`: tokenised, those of the comparison; `gradients_kept`: sets of
    gradients that are kept on the CPU while TRL's trainer is at work. Returns the new choice, None where it stays.
    RecipeError where what somebody has set does not fit, or where not even one pair does.
    """
    size = session.settings.micro_batch_size
    memory = device_memory(session.device.kind)
    lengths = pair_lengths([pairs], of_trl.max_length)
    longest = lengths.most(lengths.longer_rows, 1)  # to which a batch is padded, whatever else is in it
    peak = functools.cache(functools.partial(_peak, session, of_trl, longest, gradients_kept))
    smaller = [each for each in range(1, size) if size % each == 0]
    try:
        with Stage(session.console, "Planning TRL's step on fake tensors"):
            if peak(size) < BELIEVED * memory:
                return None
            fits = largest_that_fits(smaller, peak, BELIEVED * memory)
            needs = f"{format_memory(peak(size))} of {format_memory(memory)}"
    except Unplannable:
        return None

    is_set = session.recipe.micro_batch_size is not None and MICRO_BATCH not in session.recipe.reasons
    if fits and not is_set:
        reason = f"of {size}, a step of TRL's own trainer is planned to need {needs}"
        choice = Choice(MICRO_BATCH, fits, reason)
        take(session, [choice])
        session.say(f"{MICRO_BATCH}={fits} in place of {size}: {reason}.")
        return choice
    if peak(size) < USABLE * memory:
        session.say(f"A step of TRL's own trainer is planned to need {needs}, and may be ended by the system.")
        return None
    way_out = f"{MICRO_BATCH}={fits}" if fits else "trl.gradient_checkpointing=true, or shorter pairs"
    raise RecipeError(
        f"A step of TRL's own trainer is planned to need {needs}, with {size} pairs at a time and ours waiting beside "
        f"it, so that there is nothing to compare with. Try {way_out}."
    )


def _peak(session: Session, of_trl: Recipe, longest: list[PairLength], gradients_kept: int, size: int) -> int:
    """Bytes at the worst moment of TRL's trainer with so many pairs at a time, while ours waits for its turn."""
    plan = plan_for(session, session.device, longest, of_trl.evolve(micro_batch_size=size))
    waiting = plan.weights + plan.adapter + plan.optimizer + plan.reference
    if session.device.kind == "cpu":
        waiting += gradients_kept * plan.trainable * BYTES_OF_KEPT
    return plan.peak + waiting

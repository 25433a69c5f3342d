"""Settings that make a run fast and leave its maths alone, chosen where the recipe does not set them.

One function decides, for each verb: `choose`. What it needs is found out in the order of what that costs: the numbers
of config.json, the lengths of the pairs, and a plan on fake tensors, which is made only where a step could need more
memory than there is.

Leans on TRL 1.16: gradient checkpointing is on unless somebody switches it off, and the loss of a mixture of experts is
of all tokens of a micro-batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..losses.trl_losses import COUPLED_LOSSES
from ..progress import Stage
from ..recipe.adapters import QLoRA
from ..recipe.choices import ORDER, PRECISION, Choice, with_choices
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, multiplies_bf16, resolve
from ..runs.folder import Run
from ..runs.rebuilt import with_choices_of
from ..terminal import choices_table
from ..training.processes import from_main
from .amounts import USABLE, device_memory, format_memory
from .bound import at_most, shape_of
from .pair_lengths import PairLength

if TYPE_CHECKING:
    from ..training.session import Session
    from .memory import Plan

# Of a device's memory, what a plan may need to be believed: it may be a tenth off, and other programs run too.
BELIEVED = 0.7
# Pairs in a forward. Beyond it a GPU has enough to do, and each forward is a longer wait for the next line of the log.
MOST_PAIRS = 64

# The width of the hidden states from which a CPU with AMX is faster in bf16: 1.2 to 1.4 times, and twice from 512 on.
WIDE = 256

CHECKPOINTING = "trl.gradient_checkpointing"
MICRO_BATCH = "micro_batch_size"

# Options that say that somebody has thought about what is kept of a forward.
OF_ACTIVATIONS = (
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "activation_offloading",
)


OF_IMAGES = (
    "micro_batch_size and gradient checkpointing stay as they are: the memory of the part that reads images is not "
    "planned."
)


class Chosen(NamedTuple):
    """What was chosen, and why other settings stay as they are: empty where none is left open."""

    choices: list[Choice]
    left: str


class Situation(NamedTuple):
    """What a choice depends on beside the recipe. What is not known yet is None."""

    device: Device
    memory: int | None  # bytes of the device
    config: Mapping[str, Any] | None  # the numbers of config.json
    train_pairs: int | None  # how many there are; a stream does not say
    longest: Callable[[], list[PairLength]] | None  # the pairs that need most
    planned: Callable[[Recipe], Plan] | None  # the plan of a changed recipe
    why_padded: Callable[[], str | None] | None  # why the model cannot read pairs once; None where it can
    multiplies_bf16: bool = False  # whether its CPU has units for that
    has_images: bool = False  # whether the pairs have


def choose(recipe: Recipe, situation: Situation) -> Chosen:
    """What a recipe leaves open, decided, each with its reason."""
    choices = _of_the_precision(recipe, situation)
    of_memory = _of_memory(recipe, situation, choices)
    choices = [*choices, *of_memory.choices]
    choices += _of_the_order(with_choices(recipe, choices), situation)
    return Chosen(choices, of_memory.left)


# ---------------------------------------------------------------------------------------------------------- for a verb


def adopt(session: Session, *, tell: bool = True) -> Chosen:
    """Choose for the device of a session what its recipe leaves open; its recipe and settings are then so.

    `tell`: show what was chosen, and why.
    """
    with Stage(session.console, "Choosing settings for this device"):
        memory = device_memory(session.device.kind)
        situation = of_session(session, session.device, memory)
        chosen = from_main(lambda: choose(session.recipe, situation))  # other devices may have other amounts of memory
    take(session, chosen.choices)
    if tell and chosen.choices:
        session.console.print(choices_table(chosen.choices))
    if tell and chosen.left:
        session.say(chosen.left)
    return chosen


def adopt_of(session: Session, run: Run) -> None:
    """Let a run go on with what was chosen when it began: other settings would round otherwise from there on.

    Where it goes on in more processes, one of them may have fewer pairs a step than were chosen to be read at once.
    """
    recipe = with_choices_of(run, session.recipe)
    if MICRO_BATCH in recipe.reasons:
        assert recipe.micro_batch_size is not None
        pairs = recipe.global_batch_size // session.device.processes  # of each device and step
        at_once = math.gcd(recipe.micro_batch_size, pairs)
        recipe = with_choices(recipe, [Choice(MICRO_BATCH, at_once, recipe.reasons[MICRO_BATCH])])
    session.recipe = recipe
    session.settings = resolve(session.recipe, session.device)


def take(session: Session, choices: Sequence[Choice]) -> None:
    """Let a session's recipe and settings be as they were chosen."""
    session.recipe = with_choices(session.recipe, choices)
    session.settings = resolve(session.recipe, session.device)


def of_session(
    session: Session, device: Device, memory: int, planned: Callable[[Recipe], Plan] | None = None
) -> Situation:
    """What is known of a recipe on this machine, for a device that need not be the one that is here.

    `planned`: in place of the plan for one device.
    """
    has_pairs = hasattr(session, "eval")  # or else they could not be read

    @functools.cache
    def longest() -> list[PairLength]:
        from .memory import largest_pairs

        return largest_pairs(session, session.report if has_pairs else {}, most=MOST_PAIRS)

    def plan_here(recipe: Recipe) -> Plan:
        from .memory import plan_for

        return plan_for(session, device, longest(), recipe)

    def why_padded() -> str | None:
        from ..training.pair_reading import why_read_twice
        from .memory import skeletons

        policy, _ = skeletons(session, session.recipe, session.settings)
        return why_read_twice(policy, has_images=session.has_images)

    return Situation(
        device=device,
        memory=memory,
        config=session.config(session.model_path).to_dict(),
        train_pairs=len(session.train) if has_pairs and not session.recipe.data.streaming else None,
        longest=longest,
        planned=planned or plan_here,
        why_padded=why_padded,
        multiplies_bf16=multiplies_bf16(),
        has_images=session.has_images,
    )


# ----------------------------------------------------------------------------------------------------------- precision


def _of_the_precision(recipe: Recipe, situation: Situation) -> list[Choice]:
    """16 bits on a CPU that is faster with them; on a GPU that is the default of the mode, where it has bf16."""
    if recipe.dtype != "auto" or isinstance(recipe.adapter, QLoRA) or situation.device.kind != "cpu":
        return []
    shape = shape_of(situation.config or {})
    if not situation.multiplies_bf16 or shape is None or shape.width < WIDE:
        return []
    reason = f"this CPU multiplies matrices in bf16 (AMX), which is faster where a model is {WIDE} wide or wider"
    return [Choice(PRECISION, "bfloat16", reason)]


# --------------------------------------------------------------------------------------- activations and micro-batches


def _of_memory(recipe: Recipe, situation: Situation, decided: list[Choice]) -> Chosen:
    """Whether activations are kept, and how many pairs a forward takes, beside what is decided already."""
    open_settings = _open_settings(recipe, situation)
    if not open_settings:
        return Chosen([], "")
    if situation.has_images:
        return Chosen([], OF_IMAGES)
    sizes = [resolve(recipe, situation.device).micro_batch_size]
    if MICRO_BATCH in open_settings:
        sizes = _sizes(recipe, situation)

    if situation.memory is not None:
        believed = BELIEVED * situation.memory
        for pairs in _what_pairs_may_be(recipe, situation):
            most = _at_most(recipe, situation, pairs, sizes[-1])
            if most is not None and most < believed:
                reason = f"by a formula, a step needs far less than {format_memory(situation.memory)}"
                return Chosen(_choices(open_settings, False, sizes[-1], reason), "")

    names = " and ".join(sorted(open_settings))
    if situation.planned is None or situation.memory is None:
        return Chosen([], f"{names}: decided when the pairs are known, as `check` and `train` tell.")
    try:
        replan = functools.partial(_replan, situation.planned, decided)
        found = _that_fits(recipe, open_settings, sizes, situation.memory, replan)
    except _unplannable() as reason:
        return Chosen([], f"{names} stay as they are: what a step needs is not known. {reason}")
    if found is None:
        return Chosen([], f"{names} stay as they are: not even the smallest step fits.")
    return Chosen(found, "")


def _unplannable() -> type[Exception]:
    from .memory import Unplannable  # which brings torch

    return Unplannable


def _open_settings(recipe: Recipe, situation: Situation) -> set[str]:
    """The settings that memory decides and that the recipe leaves to be chosen."""
    open_settings = set()
    if not any(option in recipe.trl for option in OF_ACTIVATIONS):
        open_settings.add(CHECKPOINTING)
    if recipe.micro_batch_size is None and situation.device.kind == "cuda" and not _couples(recipe, situation):
        open_settings.add(MICRO_BATCH)
    return open_settings


def _couples(recipe: Recipe, situation: Situation) -> bool:
    """Whether which pairs share a forward changes more than the rounding."""
    if recipe.loss_names & COUPLED_LOSSES:
        return True
    if recipe.trl.get("disable_dropout") is False:  # other shapes draw other noise
        return True
    if recipe.trl.get("dataloader_drop_last"):  # which pairs that drops
        return True
    config = situation.config or {}
    balances_experts = "output_router_logits" in config and recipe.trl.get("router_aux_loss_coef") != 0.0
    return balances_experts


def _sizes(recipe: Recipe, situation: Situation) -> list[int]:
    """Pairs that a forward may take, the fewest first: what the recipe would take itself, and what changes no step.

    The last step of an epoch has the pairs that are left over. TRL takes the mean of each micro-batch and then the mean
    of these, so that pairs in a smaller micro-batch would weigh more.
    """
    inherited = resolve(recipe, situation.device).micro_batch_size
    pairs_a_step = recipe.global_batch_size // situation.device.processes
    sizes = []
    for size in range(1, min(pairs_a_step, MOST_PAIRS) + 1):
        if pairs_a_step % size == 0 and (size == inherited or _weighs_all_alike(size, recipe, situation)):
            sizes.append(size)
    return sizes


def _weighs_all_alike(size: int, recipe: Recipe, situation: Situation) -> bool:
    """Whether micro-batches of this size are all whole, or else one alone makes a step."""
    if situation.train_pairs is None:
        return size == recipe.global_batch_size // situation.device.processes
    left_over = situation.train_pairs % recipe.global_batch_size
    return left_over % (size * situation.device.processes) == 0 or left_over < size


def _what_pairs_may_be(recipe: Recipe, situation: Situation) -> Iterable[list[PairLength]]:
    """First the longest that max_length allows, which costs nothing to know, and then the longest that there are."""
    if recipe.max_length is not None:
        yield [PairLength(prompt=1, chosen=recipe.max_length - 1, rejected=recipe.max_length - 1)]
    if situation.longest is not None:
        try:
            yield situation.longest()
        except _unplannable():
            return


def _at_most(recipe: Recipe, situation: Situation, pairs: list[PairLength], size: int) -> int | None:
    shape = shape_of(situation.config or {})
    if shape is None or recipe.trust_remote_code:
        return None
    return at_most(shape, recipe, pairs, size, on_cpu=situation.device.kind != "cuda")


def _that_fits(
    recipe: Recipe,
    open_settings: set[str],
    sizes: list[int],
    memory: int,
    replan: Callable[[Recipe, list[Choice]], Plan],
) -> list[Choice] | None:
    """The choices by plan: with all activations kept where one pair fits so, and else computed twice.

    None where not even one pair fits, however little is left free then.
    """
    attempts: list[tuple[bool | None, float]] = [(False, BELIEVED), (True, BELIEVED), (True, USABLE)]
    if CHECKPOINTING not in open_settings:
        attempts = [(None, BELIEVED), (None, USABLE)]
    for checkpointing, share in attempts:
        peak = functools.cache(functools.partial(_peak, replan, recipe, open_settings, checkpointing))
        size = largest_that_fits(sizes, peak, share * memory)
        if size:
            reason = f"a step is planned to need {format_memory(peak(size))} of {format_memory(memory)}"
            return _choices(open_settings, checkpointing, size, reason)
    return None


def _replan(planned: Callable[[Recipe], Plan], decided: list[Choice], recipe: Recipe, tried: list[Choice]) -> Plan:
    return planned(with_choices(recipe, [*decided, *tried]))


def _peak(
    replan: Callable[[Recipe, list[Choice]], Plan],
    recipe: Recipe,
    open_settings: set[str],
    checkpointing: bool | None,
    size: int,
) -> int:
    """Bytes at the worst moment of a run with such settings."""
    return replan(recipe, _choices(open_settings, checkpointing, size, "tried")).peak


def largest_that_fits(sizes: list[int], peak: Callable[[int], int], most: float) -> int:
    """The largest of some sizes whose peak is below `most`, found by halves from the largest on; 0 where none is."""
    fits, low, high = 0, 0, len(sizes) - 1  # what fits lies below `low`, what does not above `high`
    middle = high
    while low <= high:
        if peak(sizes[middle]) < most:
            fits = sizes[middle]
            low = middle + 1
        else:
            high = middle - 1
        middle = (low + high) // 2
    return fits


def _choices(open_settings: set[str], checkpointing: bool | None, size: int, reason: str) -> list[Choice]:
    """The settings that are open, as they were decided; `checkpointing`: None where the recipe has decided that."""
    choices = []
    if CHECKPOINTING in open_settings:
        words = f"activations are kept, and not computed twice: {reason}"
        if checkpointing:
            words = f"activations are computed twice, as they do not fit; so {reason}"
        choices.append(Choice(CHECKPOINTING, bool(checkpointing), words))
    if MICRO_BATCH in open_settings:
        choices.append(Choice(MICRO_BATCH, size, f"the most pairs in a forward that fit: {reason}"))
    return choices


# ------------------------------------------------------------------------------------------------ the order of a step


def _of_the_order(recipe: Recipe, situation: Situation) -> list[Choice]:
    """Pairs of a step by length, where a step has several micro-batches and their pairs are padded to one length.

    Not with pair_sharing=off, which promises TRL's own numbers bit for bit.
    """
    settings = resolve(recipe, situation.device)
    if "train_sampling_strategy" in recipe.trl or recipe.data.streaming or recipe.pair_sharing != "auto":
        return []
    if settings.accumulation == 1 or situation.device.processes > 1:
        return []
    if _couples(recipe, situation) or situation.why_padded is None:
        return []
    reason = situation.why_padded()
    if reason is None:
        return []
    words = (
        f"as drawn, but the pairs of a step by length, so that fewer tokens are padding; pairs are padded, as {reason}"
    )
    return [Choice(ORDER, "random", words)]

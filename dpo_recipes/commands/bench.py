"""The same pairs, weights and settings through TRL's own trainer and through ours: seconds, memory, and agreement."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from ..benchmark.lengths import PROFILES, drawn_pairs
from ..benchmark.random_models import SIZES, make
from ..errors import RecipeError, UsageError, nearest
from ..formats.pair_weights import WEIGHT
from ..planning.chosen_settings import adopt
from ..progress import Stage
from ..recipe.choices import Choice
from ..recipe.data import Data
from ..recipe.recipe import Recipe
from ..runs import environment
from ..training.session import Session
from ..training.tqdm_bars import shown_as_ours
from ..training.with_images import refuse_images

# What says more of a recipe's model, and nothing of random weights in its place.
ABOUT_THE_MODEL = ("revision", "reference", "prepare")


def bench(
    recipe: Recipe,
    *,
    lengths: str | None = None,
    random_model: str | None = None,
    against_defaults: bool = False,
    compact_head: bool = False,
    batches: int = 8,
    console: Console | None = None,
) -> dict[str, Any]:
    """Time the steps of a recipe in TRL's own trainer and in ours, in turns, in this process.

    `lengths`: random words in the lengths of a kind of data (PROFILES) in place of the recipe's pairs, under the
    max_length of that kind. `random_model`: random weights of a size (SIZES) in place of the recipe's model, on drawn
    pairs too. `against_defaults`: TRL's side leaves to TRL what makes it fast or slow (precision, checkpointing, the
    reference computed beforehand) in place of the recipe's settings. `compact_head`: TRL's side scores answers alone,
    as it does on a GPU with Triton, so that a figure from a CPU says something of a GPU.

    Returns, among the settings: `ratio` (TRL's seconds over ours, the median over the batches) with its
    `ratio_quartiles`, `ratio_of_all_steps` (of the sums, where long batches weigh more, as in a run), `limit`
    (padded tokens over tokens that are read), `share_of_limit`, `memory_ratio` (bytes held for backward),
    `loss_difference` and `gradient_difference` (relative, the largest); and, each {"trl", "ours"}, `seconds_per_step`
    (the median), `seconds_of_all_steps`, `seconds_of_parts` (of a step: the model's layers, head and loss, the rest),
    `pairs_per_second` and `tokens_per_second`.

    Where nothing says how many pairs are read at a time, it is as many as TRL's trainer has room for beside ours.
    RecipeError where the recipe cannot train, or TRL's trainer would not fit.
    """
    console = console or Console()
    _refuse_unknown("lengths", lengths, PROFILES)
    _refuse_unknown("random models", random_model, SIZES)
    _refuse_typed_in_vain(recipe, lengths, random_model)
    if random_model is not None and lengths is None:
        lengths = "ultrafeedback"
    if lengths is not None:
        # What has been computed of the recipe's pairs is not of the drawn ones.
        data = recipe.data.evolve("reference")
        recipe = recipe.evolve(data=data, max_length=PROFILES[lengths].max_length)

    with tempfile.TemporaryDirectory() as folder:
        if random_model is not None:
            recipe = _on_random_weights(recipe, random_model, Path(folder) / "model", console)
        session = Session(recipe, console, with_pairs=lengths is None)
        if lengths is not None:
            _refuse_few_positions(session, lengths)
        session.check_model()
        session.try_options()
        if lengths is None:
            session.read_pairs()
            refuse_images(session, "bench", "what it measures, reading pairs once, is for token ids alone")
        chosen = adopt(session)
        micro_batch_size = session.settings.micro_batch_size
        pairs = _pairs(session, lengths, batches * micro_batch_size)
        batches = len(pairs) // micro_batch_size
        choices = {choice.key: choice for choice in chosen.choices}
        fewer = _fewer_at_once(session, pairs, against_defaults)
        if fewer is not None:
            choices[fewer.key] = fewer
            micro_batch_size = session.settings.micro_batch_size
            pairs = pairs.select(range(batches * micro_batch_size))
        few = session.on_pairs(pairs, pairs.select(range(1)))
        figures = _measure(few, Path(folder) / "run", batches, against_defaults, compact_head)

    return {
        "recipe": recipe.name,
        "model": f"{random_model} of random weights" if random_model else recipe.in_words(recipe.model),
        "lengths": lengths or recipe.in_words(recipe.data.name),
        "against": _against(against_defaults, compact_head),
        "batches": batches,
        "pairs_per_batch": micro_batch_size,
        "chosen": [choice._asdict() for choice in choices.values()],
        **figures,
        "versions": environment.installed(),
    }


def _fewer_at_once(session: Session, pairs: Any, against_defaults: bool) -> Choice | None:
    """What is chosen anew where TRL's trainer would not fit beside ours with the pairs that ours takes at a time."""
    from ..benchmark.bare import with_trl_defaults
    from ..benchmark.steps import COMPARED
    from ..planning.both_trainers import fit_both

    of_trl = session.recipe.evolve(pair_sharing="off")
    if against_defaults:
        of_trl = of_trl.evolve(trl=with_trl_defaults(of_trl.trl))
    return fit_both(session, of_trl, pairs, gradients_kept=COMPARED)


def _measure(
    session: Session, folder: Path, batches: int, against_defaults: bool, compact_head: bool
) -> dict[str, Any]:
    """What `bench` returns of what it measures; the session holds as many pairs as the batches take."""
    import torch

    from ..benchmark.sides import count_tokens, make_sides, run

    sides = make_sides(session, folder, against_defaults=against_defaults, compact_head=compact_head)
    with _one_thread_on_a_cpu(session.settings.device):
        threads = torch.get_num_threads()
        differences, parts = run(sides, batches, session.console)
    trl, ours = sides["trl"], sides["ours"]

    micro_batch_size = session.settings.micro_batch_size
    tokens, padded, read = count_tokens(ours.trainer, micro_batch_size, batches)
    limit = padded / read
    ratios = [a / b for a, b in zip(trl.seconds(), ours.seconds(), strict=True)]
    ratio = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    seconds = {name: statistics.median(side.seconds()) for name, side in sides.items()}
    of_all_steps = {name: sum(side.seconds()) for name, side in sides.items()}
    held = {name: max(side.held) for name, side in sides.items()}
    return {
        "device": str(ours.trainer.accelerator.device),
        "threads": threads,
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "ratio_of_all_steps": of_all_steps["trl"] / of_all_steps["ours"],
        "limit": limit,
        "share_of_limit": ratio / limit,
        "memory_ratio": held["trl"] / held["ours"],
        "held_bytes": held,
        "loss_difference": differences.loss,
        "gradient_difference": differences.gradient,
        "seconds_per_step": seconds,
        "seconds_of_all_steps": of_all_steps,
        "seconds_of_parts": {name: part._asdict() for name, part in parts.items()},
        "pairs_per_second": {name: micro_batch_size / value for name, value in seconds.items()},
        "tokens_per_second": {name: tokens / batches / value for name, value in seconds.items()},
    }


@contextlib.contextmanager
def _one_thread_on_a_cpu(device: str) -> Iterator[None]:
    """Threads that wait for each other burn the processor time that is measured; OMP_NUM_THREADS asks for more."""
    import torch

    threads = torch.get_num_threads()
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _refuse_unknown(what: str, name: str | None, names: Iterable[str]) -> None:
    if name is not None and name not in names:
        raise UsageError(f"There are no {what} named {name!r}, but {', '.join(names)}.{nearest(name, names)}")


def _refuse_typed_in_vain(recipe: Recipe, lengths: str | None, random_model: str | None) -> None:
    """What was typed of that which `bench` puts its own in place of; what stands in the recipe's file gives way."""
    in_place_of_model = in_place_of_pairs = None
    if random_model is not None:
        in_place_of_model = in_place_of_pairs = f"--random-model {random_model}"
    if lengths is not None:
        in_place_of_pairs = f"--lengths {lengths}"

    for key in sorted(recipe.cli_keys):
        option = None
        if key == "model" or key in ABOUT_THE_MODEL:
            option = in_place_of_model
        elif key == "max_length" or key.startswith("data."):
            option = in_place_of_pairs
        if option is not None:
            raise UsageError(f"{key} would do nothing beside {option}: delete one of the two.")


def _refuse_few_positions(session: Session, lengths: str) -> None:
    tokens = PROFILES[lengths].max_length
    positions = session.positions()
    if positions is not None and positions < tokens:
        raise RecipeError(
            f"--lengths {lengths} draws pairs of up to {tokens:,} tokens, and the recipe's model or its reference has "
            f"{positions:,} positions: take one that reaches so far, or random weights (--random-model 7M)."
        )


def _on_random_weights(recipe: Recipe, size: str, folder: Path, console: Console) -> Recipe:
    """The recipe on a model of random weights, which is made in `folder`, and on no pairs of its own."""
    if recipe.adapter is not None and recipe.adapter.continue_from:
        raise UsageError("adapter.continue_from is an adapter of another model than one of random weights.")
    with Stage(console, f"Making a model of {size} random weights"), shown_as_ours(console):
        make(SIZES[size], folder)
    return recipe.evolve(*ABOUT_THE_MODEL, model=str(folder), data=Data("drawn"))


def _against(against_defaults: bool, compact_head: bool) -> str:
    words = "TRL with its own defaults" if against_defaults else "TRL with the same settings"
    return f"{words}, scoring answers alone" if compact_head else words


def _pairs(session: Session, lengths: str | None, count: int) -> Any:
    """`count` tokenised pairs: drawn ones, or some of the recipe's, in an order of their own."""
    recipe = session.recipe
    if lengths is not None:
        return drawn_pairs(PROFILES[lengths], count, len(session.tokenizer.tokenizer), recipe.seed)
    if recipe.data.streaming:
        raise RecipeError(
            "The pairs of a stream are not all at hand: draw some with --lengths, or data.streaming=false."
        )
    at_least = 2 * session.settings.micro_batch_size
    if len(session.train) < at_least:
        raise RecipeError(
            f"{len(session.train):,} pairs are too few for two batches of {session.settings.micro_batch_size}. Lower "
            "micro_batch_size, or draw pairs with --lengths."
        )
    rows = list(range(len(session.train)))
    random.Random(recipe.seed).shuffle(rows)
    pairs = session.train.select(rows[:count])
    if WEIGHT in pairs.column_names:  # which TRL does not know: a step of both is one of pairs that weigh the same
        pairs = pairs.remove_columns(WEIGHT)
    return pairs

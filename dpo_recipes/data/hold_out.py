"""What is held out of the train pairs or excluded from them, and what is said of both sides together."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..recipe.recipe import Data
from .drop_reasons import EXCLUDED
from .excluded import read_excluded
from .usable_pairs import Pairs


def hold_out(train: Pairs, data: Data, name: str) -> tuple[Pairs, Pairs, str]:
    """(the pairs to train on, the pairs held out of them, how the report names these)."""
    share = float(data.eval)  # a split is not held out, but read
    is_held_out = _held_out(train.prompt_keys, share)
    if is_held_out.all():
        raise RecipeError(
            f"{name}: holding out {share:.3g} of {len(is_held_out)} pairs by prompt leaves none to train on: too few "
            "prompts. Name others with data.eval."
        )
    held_out = train.select(is_held_out)
    rest = train.select(~is_held_out)
    count = len(held_out.dataset)
    held_out.counts = {"rows": count, "kept": count, "dropped": {}}
    rest.counts = {**train.counts, "kept": len(rest.dataset), "held_out": count}
    return rest, held_out, f"{share:.3g} of {data.train}"


def _held_out(prompt_keys: np.ndarray, share: float) -> np.ndarray:
    """Which pairs to hold out, a flag for each: those with the smallest hashes of their prompt.

    A hash is as good as a draw, and the same for every seed, order and machine. The pairs of one prompt stay on one
    side, because a prompt that is trained on tells nothing when it is asked again.
    """
    wanted = max(1, round(share * len(prompt_keys)))
    largest_held_out = np.sort(prompt_keys)[wanted - 1]
    return prompt_keys <= largest_held_out


def without_excluded(train: Pairs, path: str, notes: list[str]) -> Pairs:
    """The train pairs that the file `path` does not name, those it names counted as dropped; `notes` grows."""
    keys = read_excluded(path)
    is_named = np.isin(train.pair_keys, keys)
    named = np.flatnonzero(is_named)
    if not len(named):
        raise RecipeError(f"data.exclude: of the {len(keys):,} pairs that {path} names none is among the train pairs.")
    if len(named) < len(keys):
        others = len(keys) - len(named)
        notes.append(f"{path} names {len(keys):,} pairs; {others:,} of them are not among the train pairs.")
    if len(named) == len(is_named):
        raise RecipeError(f"data.exclude: {path} names every train pair, so that none is left.")

    rest = train.select(~is_named)
    dropped = {EXCLUDED: {"count": len(named), "rows": train.dataset.select_columns("row")[named[:3]]["row"]}}
    rest.counts = {
        **train.counts,
        "kept": train.counts["kept"] - len(named),
        "dropped": train.counts["dropped"] | dropped,
    }
    return rest


def fingerprint(train: Pairs, held_out: Pairs) -> str:
    """SHA-256 of which pairs are on which side, in order."""
    keys = [side.pair_keys.astype("<i8").tobytes() for side in (train, held_out)]
    return hashlib.sha256(b"|".join(keys)).hexdigest()


def contradictions(train: Pairs) -> dict[str, Any]:
    """The train pairs that stand among them the other way round too: how many, and the first rows."""
    numbers = np.flatnonzero(np.isin(train.pair_keys, train.swapped_keys))
    return {"count": len(numbers), "rows": train.dataset.select_columns("row")[numbers[:3]]["row"]}


def near_duplicates(train: Pairs) -> dict[str, Any]:
    """The train pairs that differ from an earlier one in case, white space and punctuation alone."""
    _, first_of_each = np.unique(train.near["near_pair_key"], return_index=True)
    numbers = np.delete(np.arange(len(train.dataset)), first_of_each)
    return {"count": len(numbers), "rows": train.dataset.select_columns("row")[numbers[:3]]["row"]}


def near_prompts(train: Pairs, held_out: Pairs) -> dict[str, Any]:
    """The evaluation pairs whose prompt is trained on but for case, white space and punctuation."""
    is_trained_on = np.isin(held_out.near["near_prompt_key"], train.near["near_prompt_key"])
    numbers = np.flatnonzero(is_trained_on)
    return {"count": len(numbers), "rows": held_out.dataset.select_columns("row")[numbers[:3]]["row"]}

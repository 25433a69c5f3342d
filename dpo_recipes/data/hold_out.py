"""What is held out of the train pairs or excluded from them, and what is said of both sides together."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..recipe.data import Data
from .batches import counted
from .drop_reasons import EXCLUDED
from .excluded import read_excluded
from .keys import Keys, also_in, nth_smallest, repeated
from .usable_pairs import Pairs


def hold_out(train: Pairs, data: Data, name: str) -> tuple[Pairs, Pairs, str]:
    """(the pairs to train on, the pairs held out of them, how the report names these)."""
    share = float(data.eval)  # a split is not held out, but read
    is_held_out = _held_out(train.keys("prompt_key"), share)
    held_out = train.select(is_held_out)
    rest = train.select(~is_held_out)
    if not len(rest):
        raise RecipeError(
            f"{name}: holding out {share:.3g} of {len(train)} pairs by prompt leaves none to train on: too few "
            "prompts. Name others with data.eval."
        )
    count = len(held_out)
    held_out.counts = {"rows": count, "kept": count, "dropped": {}}
    rest.counts = {**train.counts, "kept": len(rest), "held_out": count}
    return rest, held_out, f"{share:.3g} of {data.train}"


def _held_out(prompt_keys: Keys, share: float) -> np.ndarray:
    """Which pairs to hold out, a flag for each row: those with the smallest hashes of their prompt.

    A hash is as good as a draw, and the same for every seed, order and machine. The pairs of one prompt stay on one
    side, because a prompt that is trained on tells nothing when it is asked again.
    """
    wanted = max(1, round(share * len(prompt_keys)))
    largest_held_out = nth_smallest(prompt_keys, wanted - 1)
    flags = np.zeros_like(prompt_keys.is_used)
    for numbers, keys in prompt_keys.batches():
        flags[numbers[keys <= largest_held_out]] = True
    return flags


def without_excluded(train: Pairs, path: str, notes: list[str]) -> Pairs:
    """The train pairs that the file `path` does not name, those it names counted as dropped; `notes` grows."""
    excluded = read_excluded(path)
    is_named = np.zeros_like(train.is_used)
    for numbers, keys in train.keys("pair_key").batches():
        is_named[numbers[np.isin(keys, excluded)]] = True
    named = counted(train.rows, is_named)
    if not named["count"]:
        raise RecipeError(
            f"data.exclude: of the {len(excluded):,} pairs that {path} names none is among the train pairs."
        )
    if named["count"] < len(excluded):
        others = len(excluded) - named["count"]
        notes.append(f"{path} names {len(excluded):,} pairs; {others:,} of them are not among the train pairs.")
    if named["count"] == len(train):
        raise RecipeError(f"data.exclude: {path} names every train pair, so that none is left.")

    rest = train.select(~is_named)
    rest.counts = {
        **train.counts,
        "kept": train.counts["kept"] - named["count"],
        "dropped": train.counts["dropped"] | {EXCLUDED: named},
    }
    return rest


def fingerprint(train: Pairs, held_out: Pairs) -> str:
    """SHA-256 of which pairs are on which side, in order."""
    both_sides = hashlib.sha256()
    for separator, side in ((b"", train), (b"|", held_out)):
        both_sides.update(separator)
        for _, keys in side.keys("pair_key").batches():
            both_sides.update(keys.astype("<i8").tobytes())
    return both_sides.hexdigest()


def contradictions(train: Pairs) -> dict[str, Any]:
    """The train pairs that stand among them the other way round too: how many, and the first rows."""
    return counted(train.rows, also_in(train.keys("pair_key"), train.keys("swapped_key")))


def near_duplicates(train: Pairs) -> dict[str, Any]:
    """The train pairs that differ from an earlier one in case, white space and punctuation alone."""
    return counted(train.rows, repeated(train.keys("near_pair_key")))


def near_prompts(train: Pairs, held_out: Pairs) -> dict[str, Any]:
    """The evaluation pairs whose prompt is trained on but for case, white space and punctuation."""
    return counted(held_out.rows, also_in(held_out.keys("near_prompt_key"), train.keys("near_prompt_key")))

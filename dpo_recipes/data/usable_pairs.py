"""The usable pairs of a side: each once, within the limits of the recipe; what was dropped, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..formats.oddities import ODDITIES
from ..formats.pair_weights import WEIGHT
from ..formats.readers import PASSED_ON
from ..formats.rendered import ADVICE, RENDERED_BEFORE
from ..recipe.recipe import Data
from .drop_reasons import DUPLICATE, HARMLESS, IN_EVALUATION, OUTSIDE_SHARE
from .explicit_rows import USED_UP, explicit_rows
from .parts import Part, refuse_idle_field
from .read_row import KEYS, NEAR, ODD, OF_ROW, SEVERAL_REPLIES, SEVERAL_TURNS

ENOUGH_PAIRS = 20  # of fewer, two may well have the same side
CONSTANT_ABOVE = 0.5  # share of pairs with the very same side


@dataclass
class _Rows:
    """The rows of several parts as pairs, each with the reason to drop it; the arrays have one entry a row."""

    pairs: Any  # datasets.Dataset: the pair, PASSED_ON, KEYS, the row's name, why it is dropped and what was found
    drop_reasons: np.ndarray  # of str, "" for a pair that stays
    prompt_keys: np.ndarray
    pair_keys: np.ndarray
    swapped_keys: np.ndarray
    near: dict[str, np.ndarray]  # NEAR
    odd: dict[str, np.ndarray]  # ODD
    of_row: dict[str, np.ndarray]  # OF_ROW
    weights: np.ndarray


@dataclass
class Pairs:
    """The usable pairs of one side; the arrays have one entry a pair."""

    dataset: Any  # datasets.Dataset
    prompt_keys: np.ndarray
    pair_keys: np.ndarray
    swapped_keys: np.ndarray
    near: dict[str, np.ndarray]  # NEAR
    counts: dict[str, Any]  # for the report: rows, kept, dropped

    def select(self, chosen: np.ndarray) -> Pairs:
        """Some of the pairs, by a flag for each; the counts stay those of all."""
        return Pairs(
            self.dataset.select(np.flatnonzero(chosen)),
            self.prompt_keys[chosen],
            self.pair_keys[chosen],
            self.swapped_keys[chosen],
            {name: keys[chosen] for name, keys in self.near.items()},
            self.counts,
        )


def usable_pairs(
    parts: list[Part], data: Data, num_proc: int | None, seed: int, *, barred: np.ndarray | None = None
) -> Pairs:
    """The usable pairs of the parts, each once and none with a prompt of `barred`, which are prompt keys.

    RecipeError when more than data.max_dropped of a part cannot be used, and when no pair is left.
    """
    rows, bounds = _rows_of_parts(parts, data, num_proc, seed)
    for part, (first, end) in zip(parts, bounds, strict=True):
        _refuse_too_many_drops(rows, first, end, part, data)
        _drop_outside_share(rows, first, end, part.share)
    _drop_duplicates(rows)
    if barred is not None:
        has_barred_prompt = np.isin(rows.prompt_keys, barred)
        rows.drop_reasons[has_barred_prompt & (rows.drop_reasons == "")] = IN_EVALUATION

    kept = np.flatnonzero(rows.drop_reasons == "")
    if not len(kept):
        raise RecipeError(f"{parts[0].where}: no pair is left: the evaluation pairs have all the prompts. Use others.")
    columns = [*USED_UP, *_empty_columns(rows, parts)]
    if (rows.weights[kept] == 1).all():
        columns.append(WEIGHT)
    counts = _counts(rows, 0, len(rows.drop_reasons))
    oddities = _oddities(rows, kept)
    if oddities:
        counts["oddities"] = oddities
    several = _several(rows)
    if several:
        counts["several"] = several
    return Pairs(
        rows.pairs.remove_columns(columns).select(kept),
        rows.prompt_keys[kept],
        rows.pair_keys[kept],
        rows.swapped_keys[kept],
        {name: keys[kept] for name, keys in rows.near.items()},
        counts,
    )


def _rows_of_parts(
    parts: list[Part], data: Data, num_proc: int | None, seed: int
) -> tuple[_Rows, list[tuple[int, int]]]:
    """The rows of all parts, and for each part its first row among them and the one behind its last."""
    import datasets

    explicit = [explicit_rows(part, data, num_proc, seed) for part in parts]
    bounds = []
    end = 0
    for pairs in explicit:
        bounds.append((end, end + len(pairs)))
        end += len(pairs)

    pairs = datasets.concatenate_datasets(explicit)
    table = pairs.select_columns(["dropped", *KEYS, *NEAR, *ODD, *OF_ROW, WEIGHT]).with_format("arrow")[:]
    reasons = table["dropped"].combine_chunks().dictionary_encode()  # few reasons of many rows
    drop_reasons = np.array(reasons.dictionary.to_pylist(), dtype=object)[reasons.indices.to_numpy()]
    rows = _Rows(
        pairs,
        drop_reasons,
        prompt_keys=table["prompt_key"].to_numpy(),
        pair_keys=table["pair_key"].to_numpy(),
        swapped_keys=table["swapped_key"].to_numpy(),
        near={name: table[name].to_numpy() for name in NEAR},
        odd={name: table[name].to_numpy() for name in ODD},
        of_row={name: table[name].to_numpy() for name in OF_ROW},
        weights=table[WEIGHT].to_numpy(),
    )
    return rows, bounds


def _refuse_too_many_drops(rows: _Rows, first: int, end: int, part: Part, data: Data) -> None:
    """An error when more than data.max_dropped of a part cannot be used, or all of it."""
    counts = _counts(rows, first, end)
    made = end - first
    unusable = made - counts["kept"]
    harmless = sum(drop["count"] for reason, drop in counts["dropped"].items() if reason in HARMLESS)
    share_lost = (unusable - harmless) / made
    if share_lost <= data.max_dropped and counts["kept"]:
        return

    details = []
    for reason, drop in counts["dropped"].items():
        number = first + int(np.flatnonzero(rows.drop_reasons[first:end] == reason)[0])
        found = rows.pairs.select_columns("found")[number]["found"]
        example = f": {found}" if found else ""
        details.append(f"{reason}: {drop['count']} (rows {', '.join(drop['rows'])} ...{example})")
    advice = "Correct data.reader" if data.reader else "Correct or remove them"
    if counts["kept"]:
        advice += f", or allow it: data.max_dropped={math.ceil(100 * share_lost) / 100:g}"
    if any(RENDERED_BEFORE in reason for reason in counts["dropped"]):
        advice += f". {ADVICE.removesuffix('.')}"
    noun = "pairs" if "pairs_made" in counts else "rows"
    raise RecipeError(
        f"{part.where}: {unusable} of {made} {noun} cannot be used, read as {part.form!r}. "
        f"{'; '.join(details)}. {advice}."
    )


def _counts(rows: _Rows, first: int, end: int) -> dict[str, Any]:
    """What became of some rows: how many there are, how many pairs they make where these are more, how many of them
    stay, and why the others are dropped.
    """
    drop_reasons = rows.drop_reasons[first:end]
    dropped = {}
    for reason in dict.fromkeys(drop_reasons):  # in the order in which they occur
        if reason:
            numbers = first + np.flatnonzero(drop_reasons == reason)
            names = rows.pairs.select_columns("row")[numbers[:3]]["row"]
            dropped[reason] = {"count": len(numbers), "rows": names}
    of_row = rows.of_row["number"][first:end]
    counts: dict[str, Any] = {"rows": int((np.diff(of_row, prepend=-1) != 0).sum())}
    if counts["rows"] < end - first:
        counts["pairs_made"] = end - first
    return {**counts, "kept": int((drop_reasons == "").sum()), "dropped": dropped}


def _drop_outside_share(rows: _Rows, first: int, end: int, share: float) -> None:
    """Of a part's pairs keep the share with the smallest hashes: as good as drawn by lot, and the same everywhere."""
    usable = first + np.flatnonzero(rows.drop_reasons[first:end] == "")
    by_key = usable[np.argsort(rows.pair_keys[usable], kind="stable")]
    wanted = max(1, round(share * len(usable)))
    rows.drop_reasons[by_key[wanted:]] = OUTSIDE_SHARE


def _drop_duplicates(rows: _Rows) -> None:
    """Of pairs that are equal in every part keep the first."""
    usable = np.flatnonzero(rows.drop_reasons == "")
    _, first_of_each = np.unique(rows.pair_keys[usable], return_index=True)
    rows.drop_reasons[np.delete(usable, first_of_each)] = DUPLICATE


def _empty_columns(rows: _Rows, parts: list[Part]) -> list[str]:
    """The columns of PASSED_ON in which no row has anything, and all of them for text, which no template reads."""
    if parts[0].form == "text":
        return list(PASSED_ON)
    table = rows.pairs.select_columns(list(PASSED_ON)).with_format("arrow")[:]
    empty = []
    for name in PASSED_ON:
        values: set[str | None] = set()
        for chunk in table[name].chunks:
            values.update(chunk.storage.unique().to_pylist())
        if values <= {None, "{}"}:
            empty.append(name)
    return empty


def _oddities(rows: _Rows, kept: np.ndarray) -> dict[str, Any]:
    """What is odd about some pairs, whether or not it is said: name -> {"share", "count", "rows"}."""
    having: dict[str, np.ndarray] = {}
    for place, name in enumerate(ODDITIES):
        has_it = (rows.odd["odd_bits"][kept] >> place) & 1 == 1
        if has_it.any():
            having[name] = has_it
    if len(kept) >= ENOUGH_PAIRS:
        for side in ("chosen", "rejected"):
            keys, counts = np.unique(rows.odd[f"{side}_key"][kept], return_counts=True)
            if counts.max() > CONSTANT_ABOVE * len(kept):
                having[f"constant {side}"] = rows.odd[f"{side}_key"][kept] == keys[counts.argmax()]

    oddities = {}
    for name, has_it in having.items():
        names = rows.pairs.select_columns("row")[kept[has_it][:3]]["row"]
        oddities[name] = {"share": float(has_it.mean()), "count": int(has_it.sum()), "rows": names}
    return oddities


def _several(rows: _Rows) -> dict[str, dict[str, int]]:
    """How many rows have several replies and several turns, where any has, and how many pairs were made of them."""
    is_new_row = np.diff(rows.of_row["number"], prepend=-1) != 0
    counts: dict[str, dict[str, int]] = {}
    for name, flag in (("replies", SEVERAL_REPLIES), ("turns", SEVERAL_TURNS)):
        has_several = rows.of_row["several"] & flag > 0
        is_pair = has_several & (rows.drop_reasons == "")
        if has_several.any():
            counts[name] = {"rows": int((has_several & is_new_row).sum()), "pairs": int(is_pair.sum())}
    return counts


def several_notes(counts: dict[str, Any], data: Data, name: str) -> list[str]:
    """What should be noted of rows that make several pairs; an error where a field that says how would do nothing."""
    several = counts.get("several", {})
    replies, turns = several.get("replies"), several.get("turns")
    if not replies and data.pairing != "all":
        refuse_idle_field(data, "pairing", f"no row of {name} has several replies")
    if not turns and data.turns != "last":
        refuse_idle_field(data, "turns", f"no row of {name} has several turns that differ")
    notes: list[str] = []
    if replies:
        notes.append(
            f"{replies['rows']:,} rows have several replies to a prompt; they make {replies['pairs']:,} pairs "
            f"(data.pairing={data.pairing})."
        )
    if turns and data.turns == "all":
        notes.append(f"{turns['rows']:,} rows have several turns that differ; they make {turns['pairs']:,} pairs.")
    return notes

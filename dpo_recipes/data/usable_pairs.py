"""The usable pairs of a side: each once, within the limits of the recipe; what was dropped, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..formats.image_marks import IMAGES
from ..formats.oddities import ODDITIES
from ..formats.pair_weights import WEIGHT
from ..formats.readers import PASSED_ON
from ..formats.rendered import ADVICE, RENDERED_BEFORE
from ..recipe.data import Data
from .batches import Tally, batches, counted, kept_pairs
from .drop_reasons import DUPLICATE, HARMLESS, IN_EVALUATION, OUTSIDE_SHARE
from .explicit_rows import USED_UP, explicit_rows
from .keys import Keys, also_in, nth_smallest, repeated
from .parts import Part, refuse_idle_field
from .read_row import SEVERAL_REPLIES, SEVERAL_TURNS

ENOUGH_PAIRS = 20  # of fewer, two may well have the same side
CONSTANT_ABOVE = 0.5  # share of pairs with the very same side; a smaller one has not to be in the middle of all


class _Rows:
    """The rows of several parts as pairs, each with the reason to drop it. All but that lies on the disk."""

    def __init__(self, pairs: Any):
        """`pairs`: a datasets.Dataset with the pair, PASSED_ON, KEYS, NEAR, ODD, OF_ROW, WEIGHT, the row's name, why it
        is dropped and what was found.
        """
        self.pairs = pairs
        self.reasons = [""]  # "" for a pair that stays
        self.reason_of = np.zeros(len(pairs), dtype=np.int32)  # of each row, the place in `reasons`
        for first, table in batches(pairs, ["dropped"]):
            reasons = table["dropped"].combine_chunks().dictionary_encode()  # few reasons of many rows
            places = np.array([self._place(reason) for reason in reasons.dictionary.to_pylist()], dtype=np.int32)
            self.reason_of[first : first + table.num_rows] = places[reasons.indices.to_numpy()]

    def _place(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def drop(self, flags: np.ndarray, reason: str) -> None:
        """Drop the rows with a flag that stay so far."""
        self.reason_of[flags & self.stays] = self._place(reason)

    @property
    def stays(self) -> np.ndarray:
        return self.reason_of == 0

    def keys(self, column: str) -> Keys:
        """A column of hashes, of the pairs that stay."""
        return Keys(self.pairs, column, self.stays)


@dataclass
class Pairs:
    """The usable pairs of one side."""

    rows: Any  # datasets.Dataset: every row that was read, with KEYS and NEAR
    is_used: np.ndarray  # of bool, one a row: whether the pair is one of these
    left_out: list[str]  # columns that nothing reads any more
    counts: dict[str, Any]  # for the report: rows, kept, dropped

    def __len__(self) -> int:
        return int(np.count_nonzero(self.is_used))

    def select(self, flags: np.ndarray) -> Pairs:
        """Those of the pairs whose row has a flag; the counts stay those of all."""
        return replace(self, is_used=self.is_used & flags)

    def keys(self, column: str) -> Keys:
        return Keys(self.rows, column, self.is_used)

    def dataset(self) -> Any:
        """The pairs alone, as a datasets.Dataset."""
        return kept_pairs(self.rows, self.is_used).remove_columns(self.left_out)


def usable_pairs(
    parts: list[Part], data: Data, num_proc: int | None, seed: int, *, barred: Keys | None = None
) -> Pairs:
    """The usable pairs of the parts, each once and none with a prompt of `barred`, which are prompt keys.

    RecipeError when more than data.max_dropped of a part cannot be used, and when no pair is left.
    """
    rows, bounds = _rows_of_parts(parts, data, num_proc, seed)
    for part, (first, end) in zip(parts, bounds, strict=True):
        _refuse_too_many_drops(rows, first, end, part, data)
        _drop_outside_share(rows, first, end, part.share)
    rows.drop(repeated(rows.keys("pair_key")), DUPLICATE)
    if barred is not None:
        rows.drop(also_in(rows.keys("prompt_key"), barred), IN_EVALUATION)

    stays = rows.stays
    if not stays.any():
        raise RecipeError(f"{parts[0].where}: no pair is left: the evaluation pairs have all the prompts. Use others.")
    columns = [*USED_UP, *_empty_columns(rows, parts)]
    if _all_weigh_one(rows, stays):
        columns.append(WEIGHT)
    counts = _counts(rows, 0, len(stays))
    oddities = _oddities(rows, stays)
    if oddities:
        counts["oddities"] = oddities
    several = _several(rows, stays)
    if several:
        counts["several"] = several
    return Pairs(rows.pairs, stays, columns, counts)


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
    return _Rows(datasets.concatenate_datasets(explicit)), bounds


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
        number = first + int((rows.reason_of[first:end] == rows.reasons.index(reason)).argmax())
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
    reason_of = rows.reason_of[first:end]
    pairs = rows.pairs.select(range(first, end))
    drops = {}
    for place in np.flatnonzero(np.bincount(reason_of)).tolist():
        if place:
            flags = reason_of == place
            drops[int(flags.argmax())] = (rows.reasons[place], counted(pairs, flags))
    dropped = dict(drops[number] for number in sorted(drops))  # in the order in which they occur

    counts: dict[str, Any] = {"rows": _raw_rows(pairs)}
    if counts["rows"] < end - first:
        counts["pairs_made"] = end - first
    return {**counts, "kept": int(np.count_nonzero(reason_of == 0)), "dropped": dropped}


def _raw_rows(pairs: Any) -> int:
    """Of how many raw rows the pairs are; those of one row stand together."""
    count = 0
    last = -1
    for _, table in batches(pairs, ["number"]):
        numbers = table["number"].to_numpy()
        count += int(np.count_nonzero(np.diff(numbers, prepend=last)))
        last = int(numbers[-1])
    return count


def _drop_outside_share(rows: _Rows, first: int, end: int, share: float) -> None:
    """Of a part's pairs keep the share with the smallest hashes: as good as drawn by lot, and the same everywhere."""
    of_part = rows.stays
    of_part[:first] = False
    of_part[end:] = False
    keys = Keys(rows.pairs, "pair_key", of_part)
    wanted = max(1, round(share * len(keys)))
    if wanted >= len(keys):
        return

    last_wanted = nth_smallest(keys, wanted - 1)
    is_outside = np.zeros_like(of_part)
    still_wanted = wanted - sum(int(np.count_nonzero(values < last_wanted)) for _, values in keys.batches())
    for numbers, values in keys.batches():
        is_outside[numbers[values > last_wanted]] = True
        last_ones = numbers[values == last_wanted]  # more than one where a pair stands there twice
        is_outside[last_ones[still_wanted:]] = True
        still_wanted = max(0, still_wanted - len(last_ones))
    rows.drop(is_outside, OUTSIDE_SHARE)


def _empty_columns(rows: _Rows, parts: list[Part]) -> list[str]:
    """Which of PASSED_ON and IMAGES no row has anything in, and all of them for text, which no template reads."""
    if parts[0].form == "text":
        return [*PASSED_ON, IMAGES]
    return [name for name in (*PASSED_ON, IMAGES) if _is_empty(rows.pairs, name)]


def _is_empty(pairs: Any, column: str) -> bool:
    """Whether a column of JSON has nothing in any row."""
    for _, table in batches(pairs, [column]):
        for chunk in table[column].chunks:
            if not {None, "{}"}.issuperset(chunk.storage.unique().to_pylist()):
                return False
    return True


def _all_weigh_one(rows: _Rows, stays: np.ndarray) -> bool:
    for first, table in batches(rows.pairs, [WEIGHT]):
        weights = table[WEIGHT].to_numpy()
        if (weights[stays[first : first + len(weights)]] != 1).any():
            return False
    return True


def _oddities(rows: _Rows, stays: np.ndarray) -> dict[str, Any]:
    """What is odd about some pairs, whether or not it is said: name -> {"share", "count", "rows"}."""
    tallies = {name: Tally() for name in ODDITIES}
    for first, table in batches(rows.pairs, ["odd_bits"]):
        numbers = first + np.flatnonzero(stays[first : first + table.num_rows])
        odd_bits = table["odd_bits"].to_numpy()[numbers - first]
        for place, name in enumerate(ODDITIES):
            tallies[name].add(numbers[(odd_bits >> place) & 1 == 1])

    pairs = int(np.count_nonzero(stays))
    if pairs >= ENOUGH_PAIRS:
        for side in ("chosen", "rejected"):
            tallies[f"constant {side}"] = _constant_side(rows.keys(f"{side}_key"))
    oddities = {}
    for name, tally in tallies.items():
        if tally.count:
            oddities[name] = {"share": tally.count / pairs, **tally.counted(rows.pairs)}
    return oddities


def _constant_side(keys: Keys) -> Tally:
    """The pairs that have the same side as most others, if most have one."""
    tally = Tally()
    most = nth_smallest(keys, len(keys) // 2)  # what more than half have stands in the middle, too
    for numbers, values in keys.batches():
        tally.add(numbers[values == most])
    return tally if tally.count > CONSTANT_ABOVE * len(keys) else Tally()


def _several(rows: _Rows, stays: np.ndarray) -> dict[str, dict[str, int]]:
    """How many rows have several replies and several turns, where any has, and how many pairs were made of them."""
    counts = {"replies": {"rows": 0, "pairs": 0}, "turns": {"rows": 0, "pairs": 0}}
    last = -1
    for first, table in batches(rows.pairs, ["number", "several"]):
        numbers = table["number"].to_numpy()
        is_new_row = np.diff(numbers, prepend=last) != 0
        last = int(numbers[-1])
        for name, flag in (("replies", SEVERAL_REPLIES), ("turns", SEVERAL_TURNS)):
            has_several = table["several"].to_numpy() & flag > 0
            counts[name]["rows"] += int(np.count_nonzero(has_several & is_new_row))
            counts[name]["pairs"] += int(np.count_nonzero(has_several & stays[first : first + len(numbers)]))
    return {name: count for name, count in counts.items() if count["rows"]}


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

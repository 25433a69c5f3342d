"""Raw preference rows -> explicit `prompt` / `chosen` / `rejected`; what is held out; what was dropped, and why."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..formats.messages import Row
from ..formats.oddities import ALL_SCORE_COLUMNS, ODDITIES
from ..formats.pair_weights import NOTHING, WEIGHT
from ..formats.readers import FORMATS, PAIR, PASSED_ON, Reading, may_hold_question
from ..formats.recognise import choose_format
from ..formats.rendered import ADVICE, RENDERED_BEFORE
from ..formats.several_replies import Pairing
from ..recipe.recipe import Data
from ..runs.source_hash import source_hash
from . import sources
from .excluded import read_excluded
from .read_row import BY_READER, KEYS, NEAR, ODD, OF_ROW, SEVERAL_REPLIES, SEVERAL_TURNS, read_rows, row_name
from .sources import Span

# Why a pair that can be read is not used.
OUTSIDE_SHARE = "outside its share of the mix"
DUPLICATE = "exact duplicate"
IN_EVALUATION = "prompt is in the evaluation pairs"
EXCLUDED = "named in data.exclude"

# Drops that say nothing against the data, and so do not count for data.max_dropped.
HARMLESS = ("tie", NOTHING, BY_READER, DUPLICATE, OUTSIDE_SHARE, IN_EVALUATION, EXCLUDED)

# Columns that nothing reads any more once the pairs are chosen. The key of a pair stays, by which it can be named.
USED_UP = ["dropped", "found", "prompt_key", "swapped_key", *NEAR, *ODD, *OF_ROW]

ENOUGH_PAIRS = 20  # of fewer, two may well have the same side
CONSTANT_ABOVE = 0.5  # share of pairs with the very same side
SAMPLE = 100  # rows of a part from which its form is recognised


@dataclass
class Read:
    """Pairs for TRL: columns prompt, chosen, rejected, row (its number), pair_key (a hash of the pair) and, where any
    has them, those of PASSED_ON.

    Where pairs weigh otherwise than 1, they have the column `weight`, too.
    """

    train: Any  # datasets.Dataset, or an IterableDataset where data.streaming is set
    eval: Any
    text: bool  # True: plain strings, to which no chat template is applied; False: lists of messages
    report: dict[str, Any]  # JSON-able: path, train, eval, format, text, contradictions, fingerprint, notes, sources


@dataclass
class _Part:
    """What one path gives to one side: the train or the evaluation pairs."""

    path: str
    where: str  # as a message names it
    raw: Any  # datasets.Dataset, as it is stored
    spans: list[Span]  # of the rows that were picked, in order
    share: float = 1.0  # of its pairs to use
    label: str = ""  # before its row numbers
    form: str = "reader"


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
class _Pairs:
    """The usable pairs of one side; the arrays have one entry a pair."""

    dataset: Any  # datasets.Dataset
    prompt_keys: np.ndarray
    pair_keys: np.ndarray
    swapped_keys: np.ndarray
    near: dict[str, np.ndarray]  # NEAR
    counts: dict[str, Any]  # for the report: rows, kept, dropped

    def select(self, chosen: np.ndarray) -> _Pairs:
        """Some of the pairs, by a flag for each; the counts stay those of all."""
        return _Pairs(
            self.dataset.select(np.flatnonzero(chosen)),
            self.prompt_keys[chosen],
            self.pair_keys[chosen],
            self.swapped_keys[chosen],
            {name: keys[chosen] for name, keys in self.near.items()},
            self.counts,
        )


def count_drop(dropped: dict[str, Row], reason: str, row: str) -> None:
    """Count a row in `dropped`, reason -> {"count", "rows"}, which names the first three of each reason."""
    drop = dropped.setdefault(reason, {"count": 0, "rows": []})
    drop["count"] += 1
    if len(drop["rows"]) < 3:
        drop["rows"].append(row)


def read(data: Data, paths: dict[str, float], *, num_proc: int | None = None, seed: int = 0) -> Read:
    """Load `paths` (data.paths with their placeholders resolved: path -> share) and make their pairs explicit.

    What is held out depends on the prompts alone: it is the same for every `seed`, by which data.pairing draws.
    RecipeError for anything missing, unreadable or ambiguous, and when more than data.max_dropped of a split cannot be
    used; the hub's OSError and ConnectionError pass through.
    """
    if data.streaming and (len(paths) > 1 or not isinstance(data.eval, str)):
        raise _nothing_to_hold_out_of_a_stream()
    name = " + ".join(paths)
    train_parts, eval_parts = _load_parts(data, paths, name)
    notes = _recognise_forms([*train_parts, *eval_parts], data)
    form, text = _one_kind_of_pairs(train_parts, eval_parts, name)
    _refuse_idle_fields(data, paths, text, name)
    report: dict[str, Any] = {"path": name, "format": form, "text": text, "notes": list(dict.fromkeys(notes))}

    # The evaluation pairs first: no prompt of theirs may be trained on.
    held_out = _usable_pairs(eval_parts, data, num_proc, seed) if eval_parts else None
    if data.streaming:
        if held_out is None:
            raise _nothing_to_hold_out_of_a_stream()
        dropped: dict[str, Row] = {}
        barred = set(held_out.prompt_keys.tolist())
        excluded = set() if data.exclude is None else set(read_excluded(data.exclude).tolist())
        stream = _streamed(train_parts[0], data, seed, barred, excluded, dropped)
        report["train"] = {"split": data.train, "dropped": dropped}
        report["eval"] = {"split": str(data.eval), **held_out.counts}
        return Read(stream, held_out.dataset, text, report)

    train = _usable_pairs(train_parts, data, num_proc, seed, barred=None if held_out is None else held_out.prompt_keys)
    if held_out is None:
        train, held_out, eval_split = _hold_out(train, data, name)
    else:
        eval_split = str(data.eval)
    if data.exclude is not None:
        train = _without_excluded(train, data.exclude, report["notes"])
    report["notes"] += _several_notes(train.counts, data, name)

    report["train"] = {"split": data.train, **train.counts}
    report["eval"] = {"split": eval_split, **held_out.counts}
    report["fingerprint"] = _fingerprint(train, held_out)
    report["contradictions"] = _contradictions(train)
    report["near_duplicates"] = _near_duplicates(train)
    report["near_prompts"] = _near_prompts(train, held_out)
    if len(paths) > 1:
        report["sources"] = {part.path: part.form for part in (*train_parts, *eval_parts)}
    return Read(train.dataset, held_out.dataset, text, report)


def _nothing_to_hold_out_of_a_stream() -> RecipeError:
    return RecipeError("data.streaming holds nothing out and mixes nothing: name one path, and a split as data.eval.")


# The parts of both sides


def _load_parts(data: Data, paths: dict[str, float], name: str) -> tuple[list[_Part], list[_Part]]:
    """The parts of the train and of the evaluation pairs; none of these where pairs are held out."""
    train_parts: list[_Part] = []
    eval_parts: list[_Part] = []
    without_eval: list[str] = []  # single files, which have no other split
    eval_split, bracket, end_of_slice = str(data.eval).partition("[")

    splits_of: dict[str, Any] = {}
    field = "data.mix" if data.mix else "data.path"
    for path in paths:
        splits_of[path] = sources.files_of(path, field) if _is_local(path) else sources.hub(data, path)
    if all(list(splits) == [""] for splits in splits_of.values()):
        _refuse_split_of_a_single_file(name, data)

    for path, share in paths.items():
        splits = splits_of[path]
        is_single_file = list(splits) == [""]
        if is_single_file:  # in a mix it serves as whatever split is trained on
            splits = {data.train.split("[")[0].strip(): splits[""]}
        label = f"{path}:" if len(paths) > 1 else ""

        load = sources.stream if data.streaming else sources.pick
        raw, spans = load(splits, data.train, path)
        train_parts.append(_Part(path, f"{path} ({data.train})", raw, spans, share, label))

        if not isinstance(data.eval, str) or sources.is_path(eval_split):
            continue
        if is_single_file and eval_split.strip() not in splits:
            without_eval.append(path)
            continue
        raw, spans = sources.pick(splits, data.eval, path)
        eval_parts.append(_Part(path, f"{path} ({data.eval})", raw, spans, share, label))

    if sources.is_path(eval_split) or (without_eval and os.path.exists(eval_split)):
        raw, spans = sources.pick(sources.files_of(eval_split, "data.eval"), bracket + end_of_slice, eval_split)
        return train_parts, [_Part(str(data.eval), str(data.eval), raw, spans)]
    if without_eval and eval_parts:
        raise RecipeError(
            f"{without_eval[0]} has no split {data.eval!r}, as others have. Set data.eval to a share, or to a file."
        )
    return train_parts, eval_parts


def _refuse_split_of_a_single_file(name: str, data: Data) -> None:
    """An error for a split that a single file cannot have: all of it is called train."""
    train_splits = {part.partition("[")[0].strip() for part in data.train.split("+")}
    if train_splits != {"train"}:
        raise RecipeError(
            f"data.train={data.train!r}: {name} is a single file, which has no splits. Leave data.train out, or take a "
            "slice: data.train=train[:90%]. A folder has splits: files named after them."
        )
    if not isinstance(data.eval, str):
        return
    eval_split = data.eval.partition("[")[0].strip()
    is_elsewhere = _is_local(eval_split)
    eval_splits = {part.partition("[")[0].strip() for part in data.eval.split("+")}
    if not is_elsewhere and eval_splits != {"train"}:
        raise RecipeError(
            f"data.eval={data.eval!r}: {name} is a single file, which has no splits. Give a share to hold out, "
            "data.eval=0.1, another file, or a slice: data.train=train[:90%] data.eval=train[90%:]."
        )


def _is_local(path: str) -> bool:
    return sources.is_path(path) or os.path.exists(path)


def _recognise_forms(parts: list[_Part], data: Data) -> list[str]:
    """Give each part its form, unless a reader of the user's own reads them all; what should be noted of them."""
    notes: list[str] = []
    if data.reader:
        return notes
    for part in parts:
        sample = [sources.row_of(row) for row in islice(part.raw, SAMPLE)]
        part.form = choose_format(
            sample,
            part.where,
            named=data.format,
            max_dropped=data.max_dropped,
            may_be_rendered=_may_be_rendered(data),
            row_names=[row_name(number, part.label, part.spans) for number in range(len(sample))],
        )
        if part.form == "preference" and any(_has_text_prompt(row) for row in sample):
            notes.append(
                "Each prompt of plain text is read as a user's message and both sides as an assistant's replies, which "
                "the chat template then writes out. To train on the text as it is: data.format=text."
            )
        if part.form == "text" and not any("prompt" in row for row in sample):
            notes.append("There is no prompt column: the words that the sides share at the start are the prompt.")
    return notes


def _may_be_rendered(data: Data) -> bool:
    """Whether the user accepts the marks of a chat template in the texts."""
    return "special_tokens" in data.allow


def _has_text_prompt(row: Row) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, str) and prompt != ""


def _one_kind_of_pairs(train_parts: list[_Part], eval_parts: list[_Part], name: str) -> tuple[str, bool]:
    """(the forms of the train pairs, as the report names them; whether all pairs are text).

    A chat template is applied to all pairs or to none: text beside messages is refused.
    """
    train_forms = " + ".join(dict.fromkeys(part.form for part in train_parts))
    eval_forms = " + ".join(dict.fromkeys(part.form for part in eval_parts or train_parts))
    if train_forms == eval_forms == "text":
        return train_forms, True
    if "text" in (part.form for part in (*train_parts, *eval_parts)):
        raise RecipeError(
            f"{name}: the train pairs were read as {train_forms!r}, the evaluation pairs as {eval_forms!r}: a template "
            "fits one only. Name the form of all with data.format."
        )
    return train_forms, False


def _refuse_idle_fields(data: Data, paths: dict[str, float], text: bool, name: str) -> None:
    """An error for fields of the recipe that would do nothing."""
    if all(_is_local(path) for path in paths):
        for field in ("subset", "data_dir", "revision"):
            _refuse_idle_field(data, field, f"{name} is local, not on the hub")
    if text:
        for field in ("chat_template", "chat_template_kwargs", "template_date"):
            _refuse_idle_field(data, field, f"{name} was read as text, without a template")
        if data.system != "keep":
            _refuse_idle_field(data, "system", f"{name} was read as text, without system messages")


def _refuse_idle_field(data: Data, field: str, why: str) -> None:
    value = getattr(data, field)
    if value:
        raise RecipeError(f"data.{field}={value!r:.40} does nothing: {why}. Delete it.")


# The usable pairs of a side


def _usable_pairs(
    parts: list[_Part], data: Data, num_proc: int | None, seed: int, *, barred: np.ndarray | None = None
) -> _Pairs:
    """The usable pairs of the parts, each once and none with a prompt of `barred`, which are prompt keys.

    RecipeError when more than data.max_dropped of a part cannot be used, and when no pair is left.
    """
    rows, bounds = _explicit_rows(parts, data, num_proc, seed)
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
    return _Pairs(
        rows.pairs.remove_columns(columns).select(kept),
        rows.prompt_keys[kept],
        rows.pair_keys[kept],
        rows.swapped_keys[kept],
        {name: keys[kept] for name, keys in rows.near.items()},
        counts,
    )


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


def _several_notes(counts: dict[str, Any], data: Data, name: str) -> list[str]:
    """What should be noted of rows that make several pairs; an error where a field that says how would do nothing."""
    several = counts.get("several", {})
    replies, turns = several.get("replies"), several.get("turns")
    if not replies and data.pairing != "all":
        _refuse_idle_field(data, "pairing", f"no row of {name} has several replies")
    if not turns and data.turns != "last":
        _refuse_idle_field(data, "turns", f"no row of {name} has several turns that differ")
    notes: list[str] = []
    if replies:
        notes.append(
            f"{replies['rows']:,} rows have several replies to a prompt; they make {replies['pairs']:,} pairs "
            f"(data.pairing={data.pairing})."
        )
    if turns and data.turns == "all":
        notes.append(f"{turns['rows']:,} rows have several turns that differ; they make {turns['pairs']:,} pairs.")
    return notes


def _explicit_rows(
    parts: list[_Part], data: Data, num_proc: int | None, seed: int
) -> tuple[_Rows, list[tuple[int, int]]]:
    """The rows of all parts, and for each part its first row among them and the one behind its last."""
    import datasets

    explicit = [_explicit(part, data, num_proc, seed) for part in parts]
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


def _refuse_too_many_drops(rows: _Rows, first: int, end: int, part: _Part, data: Data) -> None:
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


def _empty_columns(rows: _Rows, parts: list[_Part]) -> list[str]:
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


# What is held out, and what is said of both sides together


def _hold_out(train: _Pairs, data: Data, name: str) -> tuple[_Pairs, _Pairs, str]:
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


def _without_excluded(train: _Pairs, path: str, notes: list[str]) -> _Pairs:
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


def _held_out(prompt_keys: np.ndarray, share: float) -> np.ndarray:
    """Which pairs to hold out, a flag for each: those with the smallest hashes of their prompt.

    A hash is as good as a draw, and the same for every seed, order and machine. The pairs of one prompt stay on one
    side, because a prompt that is trained on tells nothing when it is asked again.
    """
    wanted = max(1, round(share * len(prompt_keys)))
    largest_held_out = np.sort(prompt_keys)[wanted - 1]
    return prompt_keys <= largest_held_out


def _fingerprint(train: _Pairs, held_out: _Pairs) -> str:
    """SHA-256 of which pairs are on which side, in order."""
    keys = [side.pair_keys.astype("<i8").tobytes() for side in (train, held_out)]
    return hashlib.sha256(b"|".join(keys)).hexdigest()


def _contradictions(train: _Pairs) -> dict[str, Any]:
    """The train pairs that stand among them the other way round too: how many, and the first rows."""
    numbers = np.flatnonzero(np.isin(train.pair_keys, train.swapped_keys))
    return {"count": len(numbers), "rows": train.dataset.select_columns("row")[numbers[:3]]["row"]}


def _near_duplicates(train: _Pairs) -> dict[str, Any]:
    """The train pairs that differ from an earlier one in case, white space and punctuation alone."""
    _, first_of_each = np.unique(train.near["near_pair_key"], return_index=True)
    numbers = np.delete(np.arange(len(train.dataset)), first_of_each)
    return {"count": len(numbers), "rows": train.dataset.select_columns("row")[numbers[:3]]["row"]}


def _near_prompts(train: _Pairs, held_out: _Pairs) -> dict[str, Any]:
    """The evaluation pairs whose prompt is trained on but for case, white space and punctuation."""
    is_trained_on = np.isin(held_out.near["near_prompt_key"], train.near["near_prompt_key"])
    numbers = np.flatnonzero(is_trained_on)
    return {"count": len(numbers), "rows": held_out.dataset.select_columns("row")[numbers[:3]]["row"]}


# A part, row by row


def _streamed(part: _Part, data: Data, seed: int, barred: set[int], excluded: set[int], dropped: dict[str, Row]) -> Any:
    """The pairs of a stream as they are read, none with a prompt of `barred` or a pair of `excluded`, which are keys.

    What is dropped is counted in `dropped`, in every epoch again, and not where a data loader reads in processes of
    its own.
    """
    lost = 0  # pairs that cannot be used, in this pass
    seen = 0
    last_number = -1

    def is_usable(row: Row) -> bool:
        nonlocal lost, seen, last_number
        if row["number"] < last_number:  # a pass begins
            lost = seen = 0
        last_number = row["number"]
        seen += 1
        reason = row["dropped"]
        if not reason and row["prompt_key"] in barred:
            reason = IN_EVALUATION
        if not reason and row["pair_key"] in excluded:
            reason = EXCLUDED
        if not reason:
            return True

        count_drop(dropped, reason, row["row"])
        if reason not in HARMLESS:
            lost += 1
        if seen >= 100 and lost / seen > data.max_dropped:
            raise RecipeError(
                f"{part.where}: {lost} of the first {seen} rows cannot be used. The last: {reason}: "
                f"{row['found']} Correct them, or allow it with data.max_dropped."
            )
        return False

    explicit = part.raw.map(
        read_rows,
        batched=True,
        batch_size=1,
        with_indices=True,
        fn_kwargs={**_reading(part, data, seed), "reader": data.reader, "where": part.where},
        remove_columns=part.raw.column_names,
    )
    return explicit.filter(is_usable).remove_columns(USED_UP)


def _explicit(part: _Part, data: Data, num_proc: int | None, seed: int) -> Any:
    """The rows of a part as pairs, or as None beside the reason to drop them, with KEYS; cached by datasets."""
    from datasets import Features, Json, Value

    raw = part.raw
    if not data.reader and sources.RAW not in raw.column_names:
        reads = FORMATS[part.form].reads
        raw = raw.select_columns([name for name in raw.column_names if name in reads or _is_looked_at(name)])
    kind = Value("string") if part.form == "text" else Json()
    features = {
        **dict.fromkeys(PAIR, kind),
        **dict.fromkeys(PASSED_ON, Json()),
        **dict.fromkeys((*KEYS, *NEAR, *ODD, *OF_ROW), Value("int64")),
        WEIGHT: Value("float64"),
        **dict.fromkeys(("row", "dropped", "found"), Value("string")),
    }
    return raw.map(
        read_rows,
        batched=True,
        with_indices=True,
        fn_kwargs={**_reading(part, data, seed), "reader": data.reader, "where": part.where},
        new_fingerprint=_cache_key(raw, part, data, seed),
        features=Features(features),
        remove_columns=raw.column_names,
        desc=f"Reading {part.where}",
        num_proc=_processes(num_proc, len(raw), data),
    )


def _is_looked_at(column: str) -> bool:
    """Whether a column says something of a pair, though the form does not read it."""
    return may_hold_question(column) or column in ALL_SCORE_COLUMNS or column == WEIGHT


def _cache_key(raw: Any, part: _Part, data: Data, seed: int) -> str:
    """The name under which datasets finds the pairs of a part again."""
    # All that decides what a row becomes
    code = source_hash("formats", "data.sources", "data.preference_dataset", "data.read_row")
    # What a user's function reads beside the row no cache can know: it is asked anew in every run.
    reader = secrets.token_hex() if data.reader else None
    return hashlib.sha256(repr([raw._fingerprint, _reading(part, data, seed), code, reader]).encode()).hexdigest()[:32]


def _processes(num_proc: int | None, rows: int, data: Data) -> int | None:
    """How many processes read; None for this one alone."""
    from multiprocess import get_start_method

    if get_start_method() != "fork" and (data.reader or num_proc is None):
        return None  # other ways of starting a process would run a user's script anew in each
    if num_proc is None and rows >= 2000:
        num_proc = len(os.sched_getaffinity(0))
    return num_proc if num_proc is not None and num_proc > 1 else None


def _reading(part: _Part, data: Data, seed: int) -> dict[str, Any]:
    """What `read_rows` needs beside the rows."""
    is_drawn = data.pairing == "best_random"
    reading = Reading(
        strict=not data.format,
        may_be_rendered=_may_be_rendered(data),
        pairing=Pairing(data.pairing, seed if is_drawn else 0),
        every_turn=data.turns == "all",
    )
    return {
        "form": part.form,
        "kwargs": data.chat_template_kwargs,
        "reading": reading,
        "label": part.label,
        "spans": part.spans,
    }

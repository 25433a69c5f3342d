"""Raw preference rows -> explicit `prompt` / `chosen` / `rejected` of both sides, and what became of them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from ..formats.image_marks import IMAGES
from ..formats.messages import Row
from ..recipe.data import Data
from .excluded import read_excluded
from .hold_out import contradictions, fingerprint, hold_out, near_duplicates, near_prompts, without_excluded
from .keys import NO_KEYS, distinct
from .parts import load_parts, one_kind_of_pairs, recognise_forms, refuse_idle_fields
from .stream import streamed_pairs
from .usable_pairs import several_notes, usable_pairs


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


def read(
    data: Data, paths: dict[str, float], *, num_proc: int | None = None, seed: int = 0, all_held_out: bool = False
) -> Read:
    """Load `paths` (data.paths with their placeholders resolved: path -> share) and make their pairs explicit.

    What is held out depends on the prompts alone: it is the same for every `seed`, by which data.pairing draws.
    `all_held_out`: nothing is trained on, so that all pairs of data.train are on both sides.
    RecipeError for anything missing, unreadable or ambiguous, and when more than data.max_dropped of a split cannot be
    used; the hub's OSError and ConnectionError pass through.
    """
    if data.streaming and (len(paths) > 1 or not isinstance(data.eval, str)):
        raise _nothing_to_hold_out_of_a_stream()
    name = " + ".join(paths)
    train_parts, eval_parts = load_parts(data, paths, name)
    notes = recognise_forms([*train_parts, *eval_parts], data)
    form, text = one_kind_of_pairs(train_parts, eval_parts, name)
    refuse_idle_fields(data, paths, text, name)
    report: dict[str, Any] = {"path": name, "format": form, "text": text, "notes": list(dict.fromkeys(notes))}

    # The evaluation pairs first: no prompt of theirs may be trained on.
    held_out = usable_pairs(eval_parts, data, num_proc, seed) if eval_parts else None
    if data.streaming:
        if held_out is None:
            raise _nothing_to_hold_out_of_a_stream()
        dropped: dict[str, Row] = {}
        asked = distinct(held_out.keys("prompt_key"))
        excluded = NO_KEYS if data.exclude is None else read_excluded(data.exclude)
        stream = streamed_pairs(train_parts[0], data, seed, asked, excluded, dropped)
        report["train"] = {"split": data.train, "dropped": dropped}
        report["eval"] = {"split": str(data.eval), **held_out.counts}
        return Read(stream, held_out.dataset(), text, report)

    barred = None if held_out is None else held_out.keys("prompt_key")
    train = usable_pairs(train_parts, data, num_proc, seed, barred=barred)
    if all_held_out:
        held_out, eval_split = train, data.train
    elif held_out is None:
        train, held_out, eval_split = hold_out(train, data, name)
    else:
        eval_split = str(data.eval)
    if IMAGES not in train.left_out or IMAGES not in held_out.left_out:  # on one side alone there may be no image
        for side in (train, held_out):
            side.left_out = [name for name in side.left_out if name != IMAGES]
    if data.exclude is not None:
        train = without_excluded(train, data.exclude, report["notes"])
    report["notes"] += several_notes(train.counts, data, name)

    report["train"] = {"split": data.train, **train.counts}
    report["eval"] = {"split": eval_split, **held_out.counts}
    report["fingerprint"] = fingerprint(train, held_out)
    report["contradictions"] = contradictions(train)
    report["near_duplicates"] = near_duplicates(train)
    report["near_prompts"] = near_prompts(train, held_out)
    if len(paths) > 1:
        report["sources"] = {part.path: part.form for part in (*train_parts, *eval_parts)}
    return Read(train.dataset(), held_out.dataset(), text, report)


def _nothing_to_hold_out_of_a_stream() -> RecipeError:
    return RecipeError("data.streaming holds nothing out and mixes nothing: name one path, and a split as data.eval.")

"""Reference log-probabilities as a folder beside a data set: written, matched with the pairs at hand, verified.

`reference.json` says whose they are, and `logps.parquet` has a row for each pair. Nothing in them is executed.

Leans on TRL 1.16: the columns of token ids, and that it keeps the start of what is longer than max_length.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from ..data.batches import batches
from ..data.tokenize import IDS
from ..errors import RecipeError
from ..guard.start import rounding_tolerance
from ..runs import files
from .reference_cache import row_keys

IDENTITY = "reference.json"
NUMBERS = "logps.parquet"
FORMAT = 1
VERIFIED = 8  # pairs of each split that are computed once more
NO_LIMIT = 2**30  # tokens
WAY_OUT = "Delete data.reference to compute the numbers here, or write them for this recipe: dpo-recipes reference"


def write(folder: Path, identity: dict[str, Any], splits: dict[str, Any], max_length: int | None) -> dict[str, Any]:
    """Write what a trainer has computed for its splits, whole or not at all; `identity` says whose it is.

    Returns what stands in reference.json. RecipeError where the folder cannot be written.

    A row is a pair: a hash of its token ids; the log-probabilities of both answers in nats, as TRL sums them; how many
    tokens of each were scored; and, for a reader, its split and the name of its row in the data set.
    """
    tables = [_table(split, pairs, max_length) for split, pairs in splits.items()]

    written = {"format": FORMAT, **identity}

    def fill(where: Path) -> None:
        pyarrow.parquet.write_table(pyarrow.concat_tables(tables), where / NUMBERS)
        written["sha256"] = hashlib.sha256((where / NUMBERS).read_bytes()).hexdigest()
        files.write_json(where / IDENTITY, written)

    try:
        files.write_folder(folder, fill)
    except OSError as error:
        raise RecipeError(f"{folder} cannot be written: {error.strerror}. Choose another place: --out FOLDER") from None
    return written


def _table(split: str, pairs: Any, max_length: int | None) -> pyarrow.Table:
    tokens = scored_tokens(pairs, max_length)
    numbers = pairs.with_format("numpy")
    return pyarrow.table(
        {
            "pair": pair_hashes(pairs),
            "chosen_logps": pyarrow.array(numbers["ref_chosen_logps"][:], pyarrow.float32()),
            "rejected_logps": pyarrow.array(numbers["ref_rejected_logps"][:], pyarrow.float32()),
            "chosen_tokens": pyarrow.array(tokens[:, 0], pyarrow.int32()),
            "rejected_tokens": pyarrow.array(tokens[:, 1], pyarrow.int32()),
            "split": [split] * len(pairs),
            "row": row_names(pairs),
        }
    )


def pair_hashes(pairs: Any) -> list[str]:
    """A hash of each pair's token ids, the same for pairs that are equal."""
    return [key[:16].hex() for key in row_keys(pairs)[0]]


def row_names(pairs: Any) -> list[str]:
    """What the pairs are called in their data set; their numbers where they have no names."""
    if "row" in pairs.column_names:
        return [str(name) for name in pairs["row"]]
    return [str(number) for number in range(len(pairs))]


def scored_tokens(pairs: Any, max_length: int | None) -> np.ndarray:
    """Shape (pairs, 2): the tokens of chosen and rejected answers that max_length leaves."""
    lengths: list[np.ndarray] = [np.zeros((len(IDS), 0), np.int64)]
    for _, table in batches(pairs, IDS):
        lengths.append(np.stack([pyarrow.compute.list_value_length(table[name]).to_numpy() for name in IDS]))
    prompt, chosen, rejected = np.concatenate(lengths, axis=1)
    room = np.maximum((max_length or NO_LIMIT) - prompt, 0)
    return np.stack([np.minimum(chosen, room), np.minimum(rejected, room)], axis=1)


class Published:
    """Log-probabilities that somebody has computed before, read from their folder.

    RecipeError where the folder does not hold them, or holds them damaged.
    """

    def __init__(self, folder: str):
        self.name = f"data.reference={folder}"
        self.folder = Path(os.path.expanduser(folder))
        self.identity = self._read_identity()

    def _read_identity(self) -> dict[str, Any]:
        try:
            identity = json.loads((self.folder / IDENTITY).read_text(encoding="utf-8"))
            data = (self.folder / NUMBERS).read_bytes()
        except OSError as error:
            raise RecipeError(
                f"{self.name}: {error.filename} cannot be read ({error.strerror}). It is to be a folder that "
                "`dpo-recipes reference RECIPE --out FOLDER` has written."
            ) from None
        except ValueError as error:
            raise RecipeError(f"{self.name}: {IDENTITY} is damaged: {error}.") from None

        if not isinstance(identity, dict) or identity.get("format") != FORMAT:
            raise RecipeError(f"{self.name}: {IDENTITY} has no format={FORMAT}, which is the one that is read here.")
        if hashlib.sha256(data).hexdigest() != identity.get("sha256"):
            raise RecipeError(f"{self.name}: {NUMBERS} is damaged: it is not the file that {IDENTITY} was written for.")
        return identity

    def find(self, pairs: Any, split: str, max_length: int | None, ld_alpha: float | None) -> np.ndarray:
        """Log-probabilities of these pairs in nats, shape (pairs, 2). RecipeError where they are of anything else."""
        theirs = self.identity.get("ld_alpha")
        if (theirs or 1) != (ld_alpha or 1):  # 1 is plain DPO, as is none
            raise RecipeError(
                f"{self.name} was computed with ld_alpha={theirs}, and here it is {ld_alpha}: the sums are others. "
                f"{WAY_OUT}"
            )

        table = pyarrow.parquet.read_table(self.folder / NUMBERS)
        place = {pair: number for number, pair in enumerate(table["pair"].to_pylist())}
        hashes = pair_hashes(pairs)
        missing = [number for number, pair in enumerate(hashes) if pair not in place]
        if missing:
            raise self._missing(pairs, split, missing, len(table))

        places = [place[pair] for pair in hashes]
        self._refuse_other_cuts(table, places, pairs, split, max_length)
        logps = np.stack([table[name].to_numpy()[places] for name in ("chosen_logps", "rejected_logps")], axis=1)
        if not np.isfinite(logps).all():
            raise RecipeError(f"{self.name} holds log-probabilities that are not finite. {WAY_OUT}")
        return logps

    def _missing(self, pairs: Any, split: str, missing: list[int], known: int) -> RecipeError:
        of_all = f"{len(missing):,} of {len(pairs):,} {split} pairs"
        if len(missing) == len(pairs):
            made_of = f"{self.identity.get('data')} and the tokenizer of {self.identity.get('model')}"
            return RecipeError(
                f"{self.name} has none of the {len(pairs):,} {split} pairs among its {known:,}: their token ids are "
                f"others. It was made of {made_of}. Other data, another tokenizer, or another chat template or date in "
                f"it, make other ids. {WAY_OUT}"
            )
        first = row_names(pairs)[missing[0]]
        return RecipeError(f"{self.name} lacks {of_all}, the first of them row {first}. {WAY_OUT}")

    def _refuse_other_cuts(
        self, table: pyarrow.Table, places: list[int], pairs: Any, split: str, max_length: int | None
    ) -> None:
        """RecipeError where an answer had other tokens scored; another max_length that cuts none of them is as good."""
        theirs = np.stack([table[name].to_numpy()[places] for name in ("chosen_tokens", "rejected_tokens")], axis=1)
        other = (theirs != scored_tokens(pairs, max_length)).any(axis=1)
        if other.any():
            raise RecipeError(
                f"{self.name} was computed with max_length={self.identity.get('max_length')}, and here it is "
                f"{max_length}: {int(other.sum()):,} of {len(pairs):,} {split} pairs are cut elsewhere. {WAY_OUT}"
            )

    def verify(
        self,
        pairs: Any,
        logps: np.ndarray,
        compute: Callable[[list[int]], np.ndarray],
        max_length: int | None,
        tolerance: float,
        share: Callable[[Any], Any],
    ) -> str:
        """How the numbers came about, in words. RecipeError where the model gives others for a few random pairs.

        `compute` gives what the reference says here of some of the pairs, in nats. `tolerance`: nats per token that are
        rounding in this run's precision; where the numbers were computed in 16 bits, it is that of 16 bits.
        """
        if self.identity.get("half"):
            tolerance = max(tolerance, rounding_tolerance(half=True))
        rows = share(sorted(random.Random().sample(range(len(pairs)), min(VERIFIED, len(pairs)))))
        differences = np.abs(compute(rows) - logps[rows])
        tokens = scored_tokens(pairs.select(rows), max_length)
        largest = float((differences / np.maximum(tokens, 1)).max(initial=0))
        if not largest <= tolerance:  # which not-a-number is not
            raise RecipeError(
                f"{self.name} is of another reference: of {len(rows)} random pairs, one differs by {largest:.2g} nats "
                f"per token from what the reference gives here, and {tolerance:g} is rounding. It was computed from "
                f"{self.identity.get('model')} ({self.identity.get('kind')}). {WAY_OUT}"
            )
        return (
            f"read from {self.folder}, where {len(rows)} random pairs differ by at most {largest:.1g} nats per token "
            f"from what the reference gives here ({tolerance:g} is rounding)"
        )

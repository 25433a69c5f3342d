"""The weights of a model as its files hold them, in one hash: whether a model is still the one that it was.

It is the same in every precision, on every device, under every version of the libraries, and in however many files the
weights are: unlike the fingerprint of a loaded model, which says whether log-probabilities are still right
(training/reference_cache.py).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RecipeError
from .model_folder import read_head, weight_files

AT_ONCE = 2**24  # bytes
# Beyond so many bytes of weights a start would wait for minutes, and of each tensor both ends alone are read. Training
# moves all of a matrix; what was changed in the midst of one only would not be seen.
LARGEST_WHOLE = 2**35
END = 2**20  # bytes


class Stretch(NamedTuple):
    """A part of a file, and what it is called."""

    name: str
    file: Path
    start: int
    stop: int


def hash_of_weights(folder: Path) -> str | None:
    """SHA-256 of the weights in a folder, None where it has none.

    Of safetensors, the name, type, shape and elements of each tensor count, of very large ones the first and last
    elements (LARGEST_WHOLE); of a file in another form, its bytes.
    """
    files = [folder / name for name in weight_files(sorted(os.listdir(folder)))]
    if not files:
        return None
    return _hash_of_files(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def refuse_changed_weights(
    field: str, model: str, revision: str | None, then: Mapping[str, Any] | None, run: Path
) -> None:
    """RecipeError where a model has other weights than when a run was trained. `field` of the recipe names it.

    `then`: what `known_by` gave at that time; None where it was not asked, as of a run of an earlier version.
    """
    now = known_by(model, revision)
    if then is None or now is None or now["sha256"] == then["sha256"]:
        return
    remedy = "Put back the model of then."
    if then["commit"] and now["commit"] != then["commit"]:
        remedy = f"It was commit {then['commit']} of the hub, and is {now['commit']} now."
    raise RecipeError(
        f"{field}={model!r} has other weights than when {run} was trained: policy or reference would not be those of "
        f'that run. {remedy} Where you know them to be the same in another form, remove "weights" from '
        f"{run / 'reference.json'}."
    )


def known_by(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """{"sha256", "commit"} of a model's weights, as reference.json keeps it; None where there are none to be found."""
    folder = _folder(model, revision)
    sha256 = None if folder is None else hash_of_weights(folder)
    if folder is None or sha256 is None:
        return None
    is_of_the_hub = not Path(model).expanduser().is_dir()
    return {"sha256": sha256, "commit": folder.name if is_of_the_hub else None}


def _folder(model: str, revision: str | None) -> Path | None:
    """A folder, or that of a hub's model in the cache as it was last loaded; None where it never was."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(model, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


@functools.cache
def _hash_of_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Made once of files with this size, which were written at this time."""
    stretches: list[Stretch] = []
    for file, size, _ in files:
        stretches += _tensors(file) if file.suffix == ".safetensors" else [Stretch(file.name, file, 0, size)]
    if sum(size for _, size, _ in files) > LARGEST_WHOLE:
        stretches = [end for stretch in stretches for end in _ends(stretch)]
    with ThreadPoolExecutor(8) as pool:  # hashing lets go of the GIL
        digests = list(pool.map(_digest, stretches))
    named = sorted(zip((stretch.name for stretch in stretches), digests, strict=True))
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _tensors(file: Path) -> list[Stretch]:
    """The tensors of a safetensors file; each is named with its type and shape."""
    tensors, start_of_numbers = read_head(file)
    stretches = []
    for name, tensor in tensors.items():
        start, stop = (start_of_numbers + offset for offset in tensor["data_offsets"])
        stretches.append(Stretch(f"{name} {tensor['dtype']} {tensor['shape']}", file, start, stop))
    return stretches


def _ends(stretch: Stretch) -> list[Stretch]:
    """The beginning and the end of a stretch; of a short one they overlap."""
    name, file, start, stop = stretch
    return [
        Stretch(f"{name} begins", file, start, min(start + END, stop)),
        Stretch(f"{name} ends", file, max(start, stop - END), stop),
    ]


def _digest(stretch: Stretch) -> str:
    digest = hashlib.sha256()
    with stretch.file.open("rb") as opened:
        opened.seek(stretch.start)
        left = stretch.stop - stretch.start
        while left > 0:
            part = opened.read(min(AT_ONCE, left))
            if not part:  # a file that was cut short meanwhile: loading says what is wrong with it
                break
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()

"""Reference log-probabilities that outlast a run: found again by all that they depend on, and by nothing else.

Leans on TRL 1.16: the columns of token ids, and all that `DPOTrainer.compute_ref_log_probs` makes numbers from.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from ..data.tokenize import IDS
from ..runs.files import write_bytes

# One row as it is stored: its key, and the log-probabilities of chosen and of rejected in nats.
ENTRY = np.dtype([("row", "V20"), ("logps", "<f4", 2)])
RECHECKED = 8  # known rows that are computed once more in each run
# Of a config, what does not change the numbers that come out. Nor do names with a leading underscore.
IRRELEVANT = {
    "architectures",
    "base_model_name_or_path",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "inference_mode",
    "label2id",
    "pad_token_id",
    "peft_version",
    "revision",
    "transformers_version",
    "use_cache",
}


def fingerprint(model: Any, trained: str | None = None) -> str:
    """SHA-256 of a model's config and tensors, wherever it was read from, without the adapter named `trained`.

    Of weights that FSDP2 or ZeRO-3 divide over processes it is the same; all of these must ask for it then.
    """
    adapters = dict(getattr(model, "peft_config", {}))
    if adapters.pop(trained, None) is None:
        trained = None  # without such an adapter the base may have a layer of that name

    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():  # ZeRO-3 knows parameters, and no views of them
        if isinstance(tensor, torch.Tensor) and trained not in name.split("."):
            tensors[_name_without_adapters(name)] = tensor
    if any(_is_divided(tensor) for tensor in tensors.values()):
        # In one order in all processes, as each waits for the others' parts
        digests = [_digest_of_whole(tensor) for tensor in tensors.values()]
    else:
        with ThreadPoolExecutor(8) as pool:  # hashing lets go of the GIL
            digests = list(pool.map(_digest, tensors.values()))

    configs = {"": _relevant(model.config)}
    for name, adapter in adapters.items():
        configs[name] = _relevant(adapter)
    return _hash(configs, sorted(zip(tensors, digests, strict=True)))


def _name_without_adapters(name: str) -> str:
    """A tensor's name as it is without adapters, so that the base is the same under any of them."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")


def _relevant(config: Any) -> dict[str, Any]:
    """The values of a config that may change the numbers."""
    values = config.to_dict()
    return {name: value for name, value in values.items() if name not in IRRELEVANT and not name.startswith("_")}


def _is_divided(tensor: torch.Tensor) -> bool:
    """Whether this process holds only a part of it: under FSDP2, or under ZeRO-3, which empties the tensor."""
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def _digest_of_whole(tensor: Any) -> str:
    """The digest of a tensor that is put together for it, where it is divided."""
    if isinstance(tensor, DTensor):
        return _digest(tensor.full_tensor())
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return _digest(tensor)
    return _digest(tensor)


def _digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's type, shape and elements; 4-bit weights come with their scales as tensors of their own."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    elements = tensor.detach().reshape(-1).view(torch.uint8)
    for part in elements.split(2**26):  # copies 64 MiB at a time from a GPU, else nothing
        digest.update(part.cpu().numpy())
    return digest.hexdigest()


def _hash(*values: Any) -> str:
    """SHA-256 of values as JSON; a set is sorted, and what JSON does not know is written as text."""

    def as_json(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else str(value)

    return hashlib.sha256(json.dumps(values, sort_keys=True, default=as_json).encode()).hexdigest()


def row_keys(dataset: Any) -> tuple[list[bytes], np.ndarray]:
    """(a key of each row's token ids, of 20 bytes; the tokens of its two completions, shape (rows, 2)).

    The first 16 bytes are a hash of the ids, the last 4 number the rows that are equal.
    """
    keys: list[bytes] = []
    lengths: list[list[int]] = []
    times_seen: Counter[bytes] = Counter()
    for batch in dataset.select_columns(list(IDS)).with_format("numpy").iter(1000):
        for parts in zip(*(batch[name] for name in IDS), strict=True):
            part_lengths = [len(ids) for ids in parts]
            # The lengths say where each part ends.
            numbers = np.concatenate([part_lengths, *parts]).astype("<i4")
            digest = hashlib.sha256(numbers.tobytes()).digest()[:16]

            keys.append(digest + times_seen[digest].to_bytes(4, "little"))
            times_seen[digest] += 1
            lengths.append(part_lengths)
    return keys, np.array(lengths)[:, 1:]


class Entries:
    """The rows that are known in one context, in files named by the hash of what they hold and never changed."""

    def __init__(self, folder: Path, context: dict[str, Any]):
        self.folder = folder / _hash(ENTRY.descr, context)[:32]
        self.notes = ""  # what went wrong, to be said after how the numbers came about

    def find(self, keys: list[bytes]) -> np.ndarray:
        """Shape (keys, 2), NaN for what is not known. A file that does not hold what its name says is removed."""
        known: dict[bytes, Any] = {}
        for path in sorted(self.folder.glob("*.bin")):
            entries = self._read(path)
            known.update(zip(entries["row"].tolist(), entries["logps"], strict=True))

        unknown = (np.nan, np.nan)
        return np.array([known.get(key, unknown) for key in keys], np.float32)

    def _read(self, path: Path) -> np.ndarray:
        """The entries of one file; none where it is damaged or gone."""
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == path.stem:
                return np.frombuffer(data, ENTRY)
            path.unlink()
            self.notes += f"; removed {path}, which was damaged"
        except OSError:
            pass  # such as: another process has just removed it
        return np.empty(0, ENTRY)

    def keep(self, keys: list[bytes], logps: np.ndarray, instead: bool = False) -> None:
        """Write a file whole or not at all, `instead` of all others; where that is impossible a note says so."""
        data = np.array([*zip(keys, logps, strict=True)], ENTRY).tobytes()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if instead:
                for other in self.folder.glob("*.bin"):
                    other.unlink(missing_ok=True)
            write_bytes(self.folder / f"{hashlib.sha256(data).hexdigest()}.bin", data)
        except OSError as error:
            self.notes += f"; not kept for later, as {self.folder} cannot be written ({error.strerror})"


def _unshared(value: Any) -> Any:
    """What the main process has found, where it is the only one."""
    return value


def complete(
    dataset: Any,
    entries: Entries,
    compute: Callable[[list[int]], np.ndarray],
    tolerance: float,
    share: Callable[[Any], Any] = _unshared,
    main: bool = True,
) -> tuple[np.ndarray, str]:
    """(log-probabilities in nats, shape (rows, 2); how they came about: a hit, computed or rebuilt).

    `compute` does the unknown rows and, to be sure, some known ones, which may differ by `tolerance` nats per token.
    What the `main` process finds is shared, as all of them must compute the same rows.
    """
    keys, tokens = row_keys(dataset)
    logps = share(entries.find(keys) if main else None)

    is_known = np.isfinite(logps).all(axis=1)  # what is not finite is computed each time
    known = np.flatnonzero(is_known).tolist()
    missing = np.flatnonzero(~is_known).tolist()
    # Drawn anew in each run, from a generator of its own: the global one is training's.
    rechecked = share(sorted(random.Random().sample(known, min(RECHECKED, len(known)))))

    computed = compute([*missing, *rechecked])
    computed_missing, computed_again = computed[: len(missing)], computed[len(missing) :]
    gaps = np.abs(computed_again - logps[rechecked]) / np.maximum(tokens[rechecked], 1)
    gap = gaps.max(initial=0)

    if not gap <= tolerance:  # and not `gap > tolerance`, which a NaN is not
        with torch.random.fork_rng():  # a data loader draws from the global generator, in all other cases once
            logps = compute(list(range(len(keys))))
        if main:
            entries.keep(keys, logps, instead=True)
        words = f"rebuilt, as known pairs came out up to {gap:.2g} nats per token away from what was kept"
        return logps, words + entries.notes

    logps[missing] = computed_missing
    if main and missing:
        entries.keep([keys[index] for index in missing], logps[missing])
    if not missing:
        words = "hit"
    elif known:
        words = f"computed {len(missing):,} of {len(keys):,}"
    else:
        words = "computed"
    return logps, words + entries.notes

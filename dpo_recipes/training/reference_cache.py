"""Reference log-probabilities that outlast a run: found again by all that they depend on, and by nothing else.

Leans on TRL 1.16: the columns of token ids, and all that `DPOTrainer.compute_ref_log_probs` makes numbers from.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

IDS = ["prompt_ids", "chosen_ids", "rejected_ids"]
ENTRY = np.dtype([("row", "V20"), ("logps", "<f4", 2)])  # a row's key; nats of chosen and of rejected
RECHECKED = 8  # known rows that are computed once more in each run
# Of a config, what does not change the numbers that come out; names with a leading underscore neither.
ASIDE = {
    "transformers_version", "architectures", "dtype", "use_cache", "id2label", "label2id", "pad_token_id",
    "bos_token_id", "eos_token_id", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
}  # fmt: skip


def fingerprint(model: Any, trained: str | None = None) -> str:
    """SHA-256 of a model's config and tensors, wherever it was read from, without the adapter named `trained`."""
    adapters = dict(getattr(model, "peft_config", {}))
    trained = trained if adapters.pop(trained, None) else None  # a base may have a layer of that name
    tensors = {  # named as without adapters, so that the base is the same under any; 4-bit weights with their scales
        name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", ""): tensor
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor) and trained not in name.split(".")
    }
    with ThreadPoolExecutor(8) as pool:  # hashing lets go of the GIL
        digests = sorted(zip(tensors, pool.map(_digest, tensors.values()), strict=True))
    configs = {name: config.to_dict() for name, config in {"": model.config, **adapters}.items()}
    kept = {n: {k: v for k, v in c.items() if k not in ASIDE and k[0] != "_"} for n, c in configs.items()}
    return _key(kept, digests)


def _digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    for part in tensor.detach().reshape(-1).view(torch.uint8).split(2**26):  # copies 64 MiB from a GPU, else nothing
        digest.update(part.cpu().numpy())
    return digest.hexdigest()


def _key(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    return hashlib.sha256(text.encode()).hexdigest()


def rows(dataset: Any) -> tuple[list[bytes], np.ndarray]:
    """(a key of each row's token ids, the tokens of its two completions). Equal rows are numbered."""
    keys, tokens, seen = list[bytes](), list[list[int]](), Counter[bytes]()
    for batch in dataset.select_columns(IDS).with_format("numpy").iter(1000):
        for row in zip(*(batch[name] for name in IDS), strict=True):
            tokens.append([len(ids) for ids in row])
            digest = hashlib.sha256(np.concatenate([tokens[-1], *row]).astype("<i4").tobytes()).digest()[:16]
            keys.append(digest + seen[digest].to_bytes(4, "little"))
            seen[digest] += 1
    return keys, np.array(tokens)[:, 1:]


class Entries:
    """The rows that are known in one context, in files named by the hash of what they hold and never changed."""

    def __init__(self, folder: Path, context: dict[str, Any]):
        self.folder, self.notes = folder / _key(ENTRY.descr, context)[:32], ""

    def find(self, keys: list[bytes]) -> np.ndarray:
        """Shape (keys, 2), NaN for what is not known. A file that does not hold what its name says is removed."""
        known: dict[bytes, Any] = {}
        for path in sorted(self.folder.glob("*.bin")):
            with suppress(OSError):  # such as: another process has just removed it
                if hashlib.sha256(data := path.read_bytes()).hexdigest() == path.stem:
                    entries = np.frombuffer(data, ENTRY)
                    known.update(zip(entries["row"].tolist(), entries["logps"], strict=True))
                else:
                    path.unlink()
                    self.notes += f"; removed {path}, which was damaged"
        return np.array([known.get(key, (np.nan, np.nan)) for key in keys], np.float32)

    def keep(self, keys: list[bytes], logps: np.ndarray, instead: bool = False) -> None:
        """Write a file whole or not at all, `instead` of all others; where that is impossible a note says so."""
        data = np.array([*zip(keys, logps, strict=True)], ENTRY).tobytes()
        path = self.folder / f"{hashlib.sha256(data).hexdigest()}.bin"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob("*.bin") if instead else ():
                old.unlink(missing_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            self.notes += f"; not kept for later, as {self.folder} cannot be written ({error.strerror})"
            with suppress(OSError):
                temporary.unlink()


def complete(
    dataset: Any, entries: Entries, compute: Callable[[list[int]], np.ndarray], tolerance: float,
    share: Callable[[Any], Any] = lambda value: value, main: bool = True,
) -> tuple[np.ndarray, str]:  # fmt: skip
    """(log-probabilities in nats, shape (rows, 2); how they came about: a hit, computed or rebuilt).

    `compute` does the unknown rows and, to be sure, some known ones, which may differ by `tolerance` nats per token.
    What the `main` process finds is shared, as all of them must compute the same rows.
    """
    keys, tokens = rows(dataset)
    logps = share(entries.find(keys) if main else None)
    usable = np.isfinite(logps).all(axis=1)
    missing, known = (np.flatnonzero(usable == value).tolist() for value in (False, True))
    again = share(sorted(random.Random().sample(known, min(RECHECKED, len(known)))))
    made = compute([*missing, *again])
    gap = (np.abs(made[len(missing) :] - logps[again]) / np.maximum(tokens[again], 1)).max(initial=0)
    logps[missing], wrong = made[: len(missing)], not gap <= tolerance
    how = "hit" if not missing else f"computed {len(missing):,} of {len(keys):,}" if known else "computed"
    if wrong:
        how = f"rebuilt, as known pairs came out up to {gap:.2g} nats per token away from what was kept"
        missing = [*range(len(keys))]
        with torch.random.fork_rng():  # a data loader draws from the global generator, in all other cases once
            logps = compute(missing)
    if main and missing:
        entries.keep([keys[at] for at in missing], logps[missing], instead=wrong)
    return logps, how + entries.notes

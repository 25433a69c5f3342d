"""The bars of the libraries, shown as everything else here is: one style in a terminal, lines in a log.

Leans on TRL 1.16: `DPOTrainer._precompute_ref_logps` shows no bar of its own where TQDM_DISABLE is set.
And on Transformers 5.23 (`set_tqdm_hook`), datasets 5.2 and huggingface_hub 2.4 (the names under which their modules
find their own class of bars), and on the words that they show; and on the warning of Transformers'
`compare_trainer_and_checkpoint_args`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from tqdm.std import tqdm

from ..progress import BYTES, Stage

# Module -> the name of its class of bars
CLASSES = {
    "datasets.arrow_dataset": "hf_tqdm",
    "datasets.builder": "hf_tqdm",
    "huggingface_hub.utils.tqdm": "tqdm",
    "huggingface_hub._snapshot_download": "hf_tqdm",
    "transformers.modeling_gguf_pytorch_utils": "tqdm",
}


class LibraryBar(tqdm):
    """What a library takes for tqdm, shown by a stage of ours; of downloads, those that count bytes."""

    console: Console
    disable: bool  # which tqdm declares nowhere

    def __init__(self, *arguments: Any, name: str | None = None, **options: Any):
        words, unit = _in_our_words(str(options.get("desc") or ""), str(options.get("unit") or "it"))
        hidden = not words
        # `gui` keeps tqdm from writing anything itself; it then calls display() alone.
        super().__init__(*arguments, **options | {"disable": hidden, "gui": not hidden, "mininterval": 0.1})
        self.stage: Stage | None = None
        if not hidden:
            total = None if self.total is None else int(self.total)
            self.stage = Stage(self.console, words, total, unit)
            self.stage.__enter__()

    def display(self, *_: Any, **__: Any) -> None:
        if self.stage is not None:
            self.stage.show(self.n, None if self.total is None else int(self.total))

    def close(self) -> None:
        if self.disable:
            return
        self.display()  # tqdm tells only now and then how far it is
        self.disable = True
        with self._lock:
            self._instances.discard(self)
        if self.stage is not None:
            self.stage.__exit__()
            self.stage = None

    def clear(self, *_: Any, **__: Any) -> None:
        """There is nothing on the screen that tqdm has written."""


def _in_our_words(words: str, unit: str) -> tuple[str, str]:
    """(what a library's bar is about, what it counts); the first is empty for a bar that says nothing to a user."""
    words = words.partition(" (num_proc=")[0]
    if unit == BYTES:
        if words == "Downloading bytes":  # beside the bar of what has come to the disk
            return "", unit
        if words.startswith("Reconstructing"):
            return "Downloading", unit
        return f"Downloading {words}", unit
    if words == "Loading weights":
        return words, "tensors"
    if words.startswith("Converting and de-quantizing GGUF"):
        return "Unpacking the weights", "tensors"
    if words.startswith("Generating "):
        return "Reading the rows", "rows"
    if words.startswith("Tokenizing "):
        return words, "pairs"
    if words.startswith("Reading "):
        return words, "rows"
    return "", unit


def quieten() -> None:
    """Switch off what the libraries would print unasked. They are imported here, which takes seconds."""
    # bitsandbytes announces an optional kernel that is not installed, at every import on a CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import datasets
    from transformers.utils.logging import disable_progress_bar

    # What of their bars is worth a look is shown as ours.
    disable_progress_bar()
    logging.getLogger("transformers.trainer_utils").addFilter(_is_not_told_already)
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # read by TRL for the reference pass


def _is_not_told_already(record: logging.LogRecord) -> bool:
    """Whether a warning says what our own lines do not: what has changed since a run began, they say or refuse."""
    return "do not match the ones in the `trainer_state.json`" not in record.getMessage()


@contextmanager
def shown_as_ours(console: Console) -> Iterator[None]:
    """Within it the libraries show on `console` how far they are in downloads, weights and pairs; as stages of ours."""
    from transformers.utils.logging import set_tqdm_hook

    bar = type("Bar", (LibraryBar,), {"console": console})

    def our_bar(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return bar(*arguments, **options)

    before = {name: getattr(importlib.import_module(name), attribute) for name, attribute in CLASSES.items()}
    hook_before = set_tqdm_hook(our_bar)
    for name, attribute in CLASSES.items():
        setattr(importlib.import_module(name), attribute, bar)
    try:
        yield
    finally:
        set_tqdm_hook(hook_before)
        for name, attribute in CLASSES.items():
            setattr(importlib.import_module(name), attribute, before[name])

"""The processes of one run: how they come together, what the main one alone does, and what all must know alike.

Leans on TRL 1.16: its Trainer, which is Transformers', trains in the process group that is there. And on accelerate
1.15: `PartialState` makes that group as the Trainer would, and `broadcast_object_list` gives what pickle can hold.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, process, processes

T = TypeVar("T")

# Of a run of several processes, how long one waits for the others: Transformers' own `ddp_timeout`, in seconds.
TIMEOUT = 1800


def is_main() -> bool:
    """Whether this is the process that prints, checks and writes: the only one, where there is no launcher."""
    return process() == 0


def console_here(console: Console) -> Console:
    """The console of the main process; in all others one that shows nothing."""
    return console if is_main() else Console(quiet=True)


def join(recipe: Recipe, device: Device) -> None:
    """Wait for the other processes of the run, and make one group of them. In a process alone nothing happens."""
    if processes() == 1:
        return
    from accelerate import PartialState

    # DeepSpeed's own calls of torch, of which each process would tell
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    timeout = timedelta(seconds=recipe.trl.get("ddp_timeout", TIMEOUT))
    if device.kind == "cpu":
        PartialState(cpu=True, backend=recipe.trl.get("ddp_backend"), timeout=timeout)
    else:
        PartialState(backend=recipe.trl.get("ddp_backend"), timeout=timeout)


def from_main(make: Callable[[], T]) -> T:
    """What the main process makes, in all processes; the others wait for it, and make nothing."""
    if processes() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([make() if is_main() else None])[0]


def from_all(value: T) -> list[T]:
    """What each process gives, in all of them, by rank."""
    if processes() == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def main_first(work: Callable[[], T]) -> T:
    """What each process makes of it: the first of a machine, then the others, which find in a cache what it read."""
    if processes() == 1:
        return work()
    from accelerate import PartialState

    # Of each machine the first: a cache need not be on a disk that all of them have.
    with PartialState().local_main_process_first():
        return work()


@contextlib.contextmanager
def place_to_write(run: Path) -> Iterator[Path]:
    """Where this process writes its files: the main one into the run's folder, others into one that goes with them."""
    if is_main():
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="dpo-recipes-") as folder:
        yield Path(folder)


def leave() -> None:
    """End the group, together with the others: from here on each process is alone."""
    if processes() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

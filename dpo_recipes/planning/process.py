"""The memory of this process as the operating system counts it.

Resident memory is what the system takes away from other programs: tensors, libraries, mapped files, and what was freed
and not given back. It is what ends a run that takes too much.
"""

from __future__ import annotations

import os

import torch

from ..models.device import peak_memory

RESET_PEAK = "/proc/self/clear_refs"  # proc(5): a 5 written to it sets the peak to what is resident now
STATM = "/proc/self/statm"  # in pages: all, resident, ...


def resident() -> int:
    """Bytes that are resident now; without /proc, the most that ever were."""
    try:
        with open(STATM, encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return peak()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """The most bytes that were resident at once since the last `reset_peak`; where that is False, since the start."""
    return peak_memory("cpu")


def reset_peak_on(kind: str) -> None:
    """Let the peak of a device count from now on, of a CPU that of this process, where the system can."""
    if kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()


def reset_peak() -> bool:
    """Let `peak` count from now on; False where the system cannot."""
    try:
        with open(RESET_PEAK, "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True

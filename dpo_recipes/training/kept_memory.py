"""Memory that one step frees, kept for the next one, on a CPU.

glibc gives a large block back to the system when it is freed, and whatever is free at the end of its heap. The next
step asks for it again, and the system has to find and to clear each page anew, up to a tenth of a step's time. A GPU's
memory is kept between steps by torch itself.

Leans on glibc: `mallopt` (mallopt(3), whose numbers are those of malloc.h), and the environment variables that it and
its tunables read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

MIB = 2**20

# What mallopt sets, by malloc.h's numbers
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
MMAP_MAX = -4


@contextlib.contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Keep what is freed meanwhile in this process, and give it back at the end.

    Elsewhere than on a CPU, without glibc, and where the environment says how memory is to be allocated, it does
    nothing. Behind it glibc has fixed thresholds, the highest that it moves them to by itself.
    """
    libc = _glibc() if device == "cpu" and not _is_chosen_elsewhere() else None
    if libc is None:
        yield
        return
    libc.mallopt(MMAP_MAX, 0)  # no block of its own for what is large
    libc.mallopt(TRIM_THRESHOLD, -1)  # nothing is given back
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, 65536)
        libc.mallopt(MMAP_THRESHOLD, 32 * MIB)
        libc.mallopt(TRIM_THRESHOLD, 64 * MIB)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library of this process, where that is glibc, and None elsewhere."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def _is_chosen_elsewhere() -> bool:
    """Whether whoever started this process has said how memory is to be allocated."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in os.environ)

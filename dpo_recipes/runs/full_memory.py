"""How torch says that memory does not suffice."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory, or this machine's, does not suffice; known without importing torch."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)

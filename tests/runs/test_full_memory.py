"""Which errors say that memory does not suffice."""

from __future__ import annotations

import pytest
import torch

from dpo_recipes.runs.full_memory import is_out_of_memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("size mismatch"), False),
        (ValueError("DefaultCPUAllocator"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_an_error_of_memory_is_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected

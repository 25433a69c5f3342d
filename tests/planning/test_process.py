"""The memory of this process, as the operating system counts it."""

from __future__ import annotations

import mmap
import sys

import pytest

from dpo_recipes.planning import process

BYTES = 200_000_000


def take(count: int) -> mmap.mmap:
    """So many bytes that the operating system has found, and gets back: an allocator may keep what it is given back."""
    memory = mmap.mmap(-1, count)
    for start in range(0, count, mmap.PAGESIZE):
        memory[start] = 1
    return memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset through /proc")
def test_the_peak_is_counted_from_the_reset_on_and_sees_what_is_gone():
    assert process.reset_peak()
    before = process.resident()
    take(BYTES).close()
    assert process.peak() - before == pytest.approx(BYTES, rel=0.05)
    assert process.resident() - before < BYTES / 2
    process.reset_peak()
    assert process.peak() - before < BYTES / 2


def test_without_proc_the_largest_that_ever_was_is_all_that_is_known(monkeypatch, tmp_path):
    known = process.resident()
    monkeypatch.setattr(process, "STATM", str(tmp_path / "none"))
    monkeypatch.setattr(process, "RESET_PEAK", str(tmp_path / "none" / "none"))
    assert not process.reset_peak()
    assert process.resident() == process.peak() >= known


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets the high water mark")
def test_a_peak_that_is_forgotten_is_that_of_what_comes_behind():
    held = take(400_000_000)
    while_held = process.peak()
    held.close()
    assert process.peak() > while_held - 10e6  # the kernel counts pages a little late
    process.reset_peak_on("cpu")
    assert process.peak() < while_held - 300e6

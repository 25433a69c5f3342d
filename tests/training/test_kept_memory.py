"""What a step frees stays with the process until training ends, on a CPU with glibc, unless somebody said otherwise."""

from __future__ import annotations

import contextlib
import io
import os
import platform
from pathlib import Path

import pytest
import torch
from making import make_pairs, write_jsonl
from rich.console import Console

from dpo_recipes import Data, LoRA, Recipe, train
from dpo_recipes.training import kept_memory, trainer
from dpo_recipes.training.kept_memory import MIB, MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD, freed_memory_kept
from dpo_recipes.training.trainer import RecipeTrainer

SIZE = 200 * MIB

CHOSEN_AT_START = [
    name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")
]
with_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or bool(CHOSEN_AT_START), reason="another allocator, or a glibc that was set"
)


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def use_and_free() -> None:
    """A large block, and many that are small for glibc."""
    blocks = [torch.ones(SIZE // 2, dtype=torch.uint8)]
    blocks += [torch.ones(2 * MIB, dtype=torch.uint8) for _ in range(SIZE // 2 // (2 * MIB))]
    del blocks


@pytest.fixture
def as_nobody_chose(monkeypatch):
    """An environment that says nothing of how memory is to be allocated."""
    for name in list(os.environ):
        if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
            monkeypatch.delenv(name)


@pytest.fixture
def calls(as_nobody_chose, monkeypatch):
    """What a C library is told."""
    told = []

    class Library:
        def mallopt(self, parameter, value):
            told.append((parameter, value))

        def malloc_trim(self, pad):
            told.append("trim")

    monkeypatch.setattr(kept_memory, "_glibc", Library)
    return told


@with_glibc
def test_it_is_kept_meanwhile_and_given_back_at_the_end(as_nobody_chose):
    with freed_memory_kept("cpu"):
        pass  # what was free before is given back
    before = resident()
    with freed_memory_kept("cpu"):
        use_and_free()
        assert resident() - before > 0.9 * SIZE
        kept = resident()
        use_and_free()
        assert resident() - kept < SIZE / 4  # in the same memory
    assert resident() - before < SIZE / 10


def test_what_was_set_is_set_back(calls):
    with pytest.raises(KeyboardInterrupt), freed_memory_kept("cpu"):
        assert calls == [(MMAP_MAX, 0), (TRIM_THRESHOLD, -1)]
        raise KeyboardInterrupt
    assert calls[2:] == [(MMAP_MAX, 65536), (MMAP_THRESHOLD, 32 * MIB), (TRIM_THRESHOLD, 64 * MIB), "trim"]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_on_a_gpu_torch_keeps_it_itself(calls, device):
    with freed_memory_kept(device):
        assert not calls
    assert not calls


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1000000"), ("MALLOC_ARENA_MAX", "1"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")],
)
def test_who_has_chosen_is_left_with_that(calls, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with freed_memory_kept("cpu"):
        assert not calls


def test_tunables_of_something_else_choose_nothing(calls, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_ibt=off")
    with freed_memory_kept("cpu"):
        assert calls


def test_without_glibc_nothing_is_kept(as_nobody_chose, monkeypatch):
    monkeypatch.setattr(kept_memory.sys, "platform", "darwin")
    assert kept_memory._glibc() is None
    with freed_memory_kept("cpu"):
        pass


def test_it_is_kept_while_a_run_trains(tiny, tmp_path, monkeypatch):
    kept = []  # while it is

    @contextlib.contextmanager
    def noted(device):
        kept.append(device)
        yield
        kept.remove(device)

    of_steps = []
    step = RecipeTrainer.training_step

    def noted_step(*args, **given):
        of_steps.append(list(kept))
        return step(*args, **given)

    monkeypatch.setattr(trainer, "freed_memory_kept", noted)
    monkeypatch.setattr(RecipeTrainer, "training_step", noted_step)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(12))
    recipe = Recipe(
        model=str(tiny()),
        data=Data(str(pairs), eval=0.25),
        adapter=LoRA(r=4),
        learning_rate=1e-3,
        global_batch_size=2,
        micro_batch_size=2,
        max_length=112,
        trl={"max_steps": 2},
    )
    train(recipe, runs=tmp_path / "runs", console=Console(file=io.StringIO()))
    assert of_steps == [["cpu"], ["cpu"]]
    assert not kept

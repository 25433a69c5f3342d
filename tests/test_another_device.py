"""What a user does, on another device than the CPU, which stands in for a GPU: the CPU's numbers, and no crash."""

from __future__ import annotations

import json
from pathlib import Path

import forking
import pytest
from another_device import commands, needs_compiler, program

from dpo_recipes import Run

pytestmark = [pytest.mark.slow, needs_compiler]

OF_HELD_OUT_PAIRS = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
OF_A_STEP = (*OF_HELD_OUT_PAIRS, "grad_norm", "entropy")


def words_of(folder: Path, pairs: Path, *more: str) -> list[str]:
    """A recipe of three steps, each of two micro-batches that are checkpointed."""
    return [
        "smollm3_ultrafeedback",
        f"model={folder}",
        f"data.path={pairs}",
        "data.eval=0.25",
        "learning_rate=1e-3",
        "max_length=112",
        "global_batch_size=6",
        "micro_batch_size=3",
        "pair_sharing=require",
        "trl.max_steps=3",
        "trl.gradient_checkpointing=true",
        *more,
    ]


def elsewhere(library: str, *lines: list[str], cwd: Path, bf16: bool = False) -> str:
    """What commands print that are typed one after the other on the other device."""
    return program(commands, library, str(bf16), *map(json.dumps, lines), cwd=cwd)


def only_run(folder: Path) -> Run:
    (path,) = folder.iterdir()
    return Run(path)


def steps_of(run: Run) -> list[dict]:
    return [metrics for metrics in run.metrics if "loss" in metrics]


def assert_same_numbers(found: dict, expected: dict, names: tuple[str, ...]) -> None:
    for name in names:
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_run_has_the_numbers_of_the_cpu(tiny, pairs_file, tmp_path, another_device, adapter):
    """Its reference, its steps with accumulation and checkpointing, and its held-out pairs."""
    train = ["train", *words_of(tiny(), pairs_file, f"adapter={adapter}", "dtype=float32")]
    program(forking.command_line, "dpo-recipes", *train, "--runs", "on_cpu", cwd=tmp_path)
    said = elsewhere(another_device, [*train, "--runs", "elsewhere"], cwd=tmp_path)
    assert "float32 on elsewhere" in said and "Each pair is read once" in said

    found, expected = only_run(tmp_path / "elsewhere"), only_run(tmp_path / "on_cpu")
    assert len(steps_of(found)) == len(steps_of(expected)) == 3
    for mine, theirs in zip(steps_of(found), steps_of(expected), strict=True):
        assert_same_numbers(mine, theirs, OF_A_STEP)
    for when in ("before", "after"):
        assert_same_numbers(found.evaluation[when], expected.evaluation[when], OF_HELD_OUT_PAIRS)


def test_a_run_in_16_bits_is_near_to_that_in_32(tiny, pairs_file, tmp_path, another_device):
    """Under autocast, which every device has lists of its own for. Losses are ln 2 at first, whatever the precision."""
    train = ["train", *words_of(tiny(), pairs_file, "adapter=none")]
    in_16, in_32 = [*train, "--runs", "in_16"], [*train, "dtype=float32", "--runs", "in_32"]
    said = elsewhere(another_device, in_16, in_32, cwd=tmp_path, bf16=True)
    assert "float32 with bf16 autocast on elsewhere" in said and said.count("Each pair is read once") == 2
    steps = [steps_of(only_run(tmp_path / runs)) for runs in ("in_16", "in_32")]
    for rounded, precise in zip(*steps, strict=True):
        assert rounded["loss"] == pytest.approx(precise["loss"], abs=0.02)
        assert rounded["grad_norm"] == pytest.approx(precise["grad_norm"], rel=0.02)
        assert rounded["grad_norm"] != precise["grad_norm"]


def test_what_a_run_is_used_for(tiny, pairs_file, tmp_path, another_device):
    """The commands around a run, each of which puts a model on the device."""
    words = words_of(tiny(), pairs_file, "dtype=float32", "adapter.r=4")
    train, reference = ["train", *words, "--runs", "runs"], ["reference", *words, "--out", "reference"]
    elsewhere(another_device, train, reference, cwd=tmp_path)
    run = str(only_run(tmp_path / "runs").path)
    said = elsewhere(
        another_device,
        ["train", *words, "data.reference=reference", "--runs", "again"],
        ["evaluate", run],
        ["export", run, "--merged", "--out", "merged"],
        ["export", run, "--dial", "0.5", "--out", "dialled"],
        ["check", *words, "--run"],
        ["bench", *words, "--batches", "2"],
        cwd=tmp_path,
    )
    for telling in (
        "Of eval pairs: read from reference",
        f"{run} holds the numbers",
        "merged holds the merged model",
        "dialled holds a LoRA adapter",
        "on elsewhere, in a step",
        "with the same settings, on elsewhere",
    ):
        assert telling in said

"""Pairs that are read once in two processes: the numbers of one process that reads them as TRL does."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from in_processes import OVER_4_BITS, WITH_ADAPTER, train

HERE = Path(__file__).parent
MINUTES = 5


def in_two_processes(engine: str, folder: Path, output: Path) -> list[dict]:
    """What each of two processes saw."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *sys.path]),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
    }
    output.mkdir()
    processes = []
    for rank in ("0", "1"):
        with (output / f"{rank}.log").open("w") as log:
            command = [sys.executable, str(HERE / "in_processes.py"), engine, str(folder), str(output)]
            environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        for rank, process in enumerate(processes):
            assert process.wait(60 * MINUTES) == 0, (output / f"{rank}.log").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((output / f"{rank}.json").read_text()) for rank in (0, 1)]


def assert_same_numbers(result: dict, expected: dict) -> None:
    for name in ("steps", "held_out", "margins"):
        for ours, theirs in zip(result[name], expected[name], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4), name


def assert_same_in_16_bits(result: dict, expected: dict) -> None:
    """The first step to the same bound, then to the rounding of bf16: a mean of gradients has an order."""
    first, *others = zip(result["steps"], expected["steps"], strict=True)
    assert first[0] == pytest.approx(first[1], rel=1e-4, abs=1e-4)
    for ours, theirs in others:
        assert ours == pytest.approx(theirs, rel=2**-8, abs=2e-3)
    # Differences of sums over the tokens of an answer, each rounded by itself
    assert result["margins"] == pytest.approx(expected["margins"], abs=5e-2)


def assert_read_once(result: dict, alone: dict) -> None:
    first = result["first"]
    assert first["processes"] == 2 and len(first["steps"]) == 3
    assert "Each pair is read once" in first["said"][0] and len(first["said"]) == 1
    # The main process has written what all of them have computed; with another beta, all of them find it.
    assert first["cache"] == {"train": "computed", "eval": "computed"}
    assert result["again"]["cache"] == {"train": "hit", "eval": "hit"}
    assert first["reference"] == result["again"]["reference"] == alone["reference"]


@pytest.mark.slow
def test_ddp_and_fsdp2(tiny, tmp_path):
    results = in_two_processes("ddp", tiny(), tmp_path / "two")
    alone = train(tiny(), tmp_path / "one", "ddp", pair_sharing="off")
    assert alone["processes"] == 1 and "read once" not in "".join(alone["said"])
    with_adapter = train(tiny(), tmp_path / "one", "ddp", pair_sharing="off", **WITH_ADAPTER)
    over_4_bits = train(tiny(), tmp_path / "one", "ddp", pair_sharing="off", **OVER_4_BITS)
    for result in results:
        assert_same_numbers(result["adapter"], with_adapter)
        assert_same_in_16_bits(result["qlora"], over_4_bits)
        assert_same_numbers(result["first"], alone)
        assert_read_once(result, alone)
        for logps, gradient in result["fsdp2"]["differences"]:
            assert logps <= 5e-6 and gradient <= 5e-6
        assert "read once" in result["fsdp2"]["said"][0]
    written = list((tmp_path / "two" / "cache").rglob("*.bin"))
    assert len(written) == 4  # of the training pairs and of those held out, by the whole weights and by those of 4 bits


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="not installed: pip install deepspeed")
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_zero(tiny, tmp_path, engine):
    """The numbers of one process, of all weights and of an adapter. The recipe does not clip, as DeepSpeed would."""
    results = in_two_processes(engine, tiny(), tmp_path / "two")
    alone = train(tiny(), tmp_path / "one", "ddp", pair_sharing="off")
    with_adapter = train(tiny(), tmp_path / "one", "ddp", pair_sharing="off", **WITH_ADAPTER)
    for result in results:
        assert_same_numbers(result["first"], alone)
        assert_same_numbers(result["off"], alone)
        assert_same_numbers(result["adapter"], with_adapter)
        assert_read_once(result, alone)
        assert result["first"]["sharded"] and result["off"]["said"] == []

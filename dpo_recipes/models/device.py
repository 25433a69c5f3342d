"""The device that a run uses, made safe to train on."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from packaging.version import Version

from ..errors import RecipeError
from ..recipe.resolve import Device


def device(
    say: Callable[[str], None] = lambda _: None, use_cpu: bool = False, with_others: bool = False, name: str = "RECIPE"
) -> Device:
    """Where this process trains: CUDA, Apple's GPU or the CPU; `use_cpu` chooses the CPU whatever else is there.

    On CUDA, switches off an attention kernel whose gradients can be NaN, and says so. `with_others`: it is one of the
    processes of a run, as only those that train are. RecipeError for a command that a launcher has started several
    times, and where one process sees several GPUs; then the recipe's `name` is in what to type.
    """
    processes = Device().processes
    if processes > 1 and not with_others:
        raise RecipeError(f"Only `train` works in several processes, and a launcher has started {processes} of this.")
    if use_cpu:
        return Device()
    if torch.cuda.is_available():
        if processes == 1:
            _refuse_several_gpus(name)
        _switch_off_cudnn_attention(say)
        return Device("cuda", bf16=torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.mps.is_available():
        return Device("mps")
    return Device()


def peak_memory(kind: str) -> int:
    """The most bytes that this process has held so far, or since they were forgotten.

    Those allocated on a CUDA device, those resident elsewhere.
    """
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # And not ru_maxrss, which on Linux counts what the process was before it became this program.
        high_water_mark = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if high_water_mark:
            return int(high_water_mark[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset

    import resource

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # others count in KiB


def _refuse_several_gpus(name: str) -> None:
    """The Trainer would wrap the model in DataParallel over all GPUs that it sees."""
    count = torch.cuda.device_count()
    if count > 1:
        raise RecipeError(
            f"{count} GPUs are visible, and one process uses one. To train on all of them: dpo-recipes train {name} "
            "--launch ddp. To use one: CUDA_VISIBLE_DEVICES=0 before the command."
        )


def _switch_off_cudnn_attention(say: Callable[[str], None]) -> None:
    """Keep torch's SDPA from choosing cuDNN's kernel where that can be wrong.

    pytorch#196678, trl#7181: NaN in grad_q under a mask at lengths of 64 mod 128 on H100 and H200, since 2.11, seen on
    2.13. To be bounded above by the first release that carries the fix.
    """
    if Version(torch.__version__) < Version("2.11"):
        return
    if torch.backends.cuda.cudnn_sdp_enabled():
        torch.backends.cuda.enable_cudnn_sdp(False)
        say(f"cuDNN attention is off: with torch {torch.__version__} its gradients can be NaN under a mask.")


def wall_seconds() -> float:
    """The clock, when the device has done what it was told: a GPU is still at work when a step is said to end."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()

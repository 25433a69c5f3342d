"""Programs on a device that is not the CPU, where no GPU is: its memory is the CPU's, and yet the two do not mix.

Each is a program of its own, as a process can have one such device, and has it from then on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import filelock
import forking
import pytest

NAME = "elsewhere"
SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = shutil.which("c++")
TIMEOUT = 480  # seconds, of a program

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler, which the device is built by")


def build(folder: Path) -> Path:
    """The device as a library in a folder, unless it is there already, or another process is at it."""
    from torch.utils.cpp_extension import include_paths, library_paths

    library = folder / "another_device.so"
    with filelock.FileLock(folder / "another_device.lock"):
        if not library.exists():
            headers = [f"-isystem{path}" for path in include_paths()]
            libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
            flags = ["-std=c++20", "-O0", "-shared", "-fPIC", *headers]
            unfinished = library.with_suffix(".tmp")
            command = [COMPILER, *flags, str(SOURCE), "-o", str(unfinished), *libraries]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            unfinished.replace(library)
    return library


def register(library: str) -> None:
    """Give this process the device."""
    import torch

    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(library)

    device = types.ModuleType(f"torch.{NAME}")
    device.is_available = device.is_initialized = lambda: True
    device._is_in_bad_fork = lambda: False
    device.device_count = lambda: 1
    device.current_device = lambda: 0
    device.device = lambda _: contextlib.nullcontext()
    device.get_amp_supported_dtype = lambda: [torch.bfloat16]
    device.manual_seed_all = lambda _: None
    # What is drawn is drawn by the CPU's kernels, from its generator.
    device.get_rng_state = lambda *_: torch.zeros(1, dtype=torch.uint8)
    device.set_rng_state = lambda *_: None
    torch._register_device_module(NAME, device)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    _let_storages_be_saved()


def _let_storages_be_saved() -> None:
    """`torch.save` asks a storage for its copy on the CPU, which torch makes by a view across devices."""
    import torch

    of_torch = torch.UntypedStorage.cpu

    def cpu(storage):
        if storage.device.type != NAME:
            return of_torch(storage)
        as_bytes = torch.empty(0, dtype=torch.uint8, device=NAME).set_(storage, 0, (storage.size(),), (1,))
        return as_bytes.cpu().untyped_storage()

    torch.UntypedStorage.cpu = cpu


def commands(library: str, bf16: str, *lines: str) -> None:
    """Commands of dpo-recipes, each as JSON, on the other device; `bf16` says "True" where it is native there."""
    register(library)
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME
    import transformers.training_args

    import dpo_recipes.models.device
    from dpo_recipes.__main__ import main
    from dpo_recipes.recipe.resolve import Device

    device = Device(NAME, bf16=bf16 == "True")
    transformers.training_args.is_torch_bf16_gpu_available = lambda: device.bf16
    dpo_recipes.models.device.device = lambda *_, **__: device
    for line in lines:
        sys.argv = ["dpo-recipes", *json.loads(line)]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise


def program(function: Callable[..., None], *words: str, cwd: Path) -> str:
    """What a program prints that ends well."""
    done = forking.run(function, *words, cwd=cwd, environment=dict(os.environ), timeout=TIMEOUT)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout

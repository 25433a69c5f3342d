"""What this machine has, and what is known to go wrong on it: versions, devices, kernels, the hub, caches."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

from ..errors import Finding
from ..recipe.resolve import here
from ..runs import environment


def doctor() -> Iterator[Finding]:
    """One finding for each thing looked at; `fail` where training cannot work."""
    import torch
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub import constants

    yield environment.versions()
    cuda, build, python = torch.cuda.is_available(), torch.__version__, sys.version.split()[0]
    yield Finding("pass", "machine", f"Python {python}, {sys.platform}, {os.cpu_count()} cores, torch {build}")
    for n in range(count := torch.cuda.device_count() * cuda):  # it counts what the driver cannot serve, too
        name, (free, total) = torch.cuda.get_device_name(n), torch.cuda.mem_get_info(n)
        native = torch.cuda.get_device_capability(n) >= (8, 0)
        dtypes = "bf16, fp16, fp32" if native else "fp16 and fp32, bf16 is not native"
        yield Finding("pass", f"GPU {n}", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free; {dtypes}")
    if here().kind == "cuda" and not cuda:
        why = f"The driver does not serve CUDA {own}, torch's own: update it." if (own := torch.version.cuda) else ""
        yield Finding("fail", "GPU", why or f"torch {build} is built without CUDA: install one that has it.")
    elif not cuda:
        apple = torch.backends.mps.is_available()
        yield Finding("pass", "GPU", "an Apple GPU: fp32" if apple else "none: training runs on the CPU, in fp32")
    kinds, others = ("flash", "mem_efficient", "cudnn", "math"), ("flash_attn", "kernels", "liger_kernel", "xformers")
    enabled = ", ".join(kind for kind in kinds if getattr(torch.backends.cuda, f"{kind}_sdp_enabled")())
    beside = ", ".join(name for name in others if find_spec(name)) or "none"
    yield Finding("pass", "attention", f"torch's {enabled}; installed beside it: {beside}")

    try:
        if not constants.HF_HUB_OFFLINE:
            urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    except (OSError, ValueError, HTTPException) as error:
        offline = f"{constants.ENDPOINT} does not answer ({error})"
    only = "only local and cached models and data sets can be used."
    yield Finding("warn", "hub", f"{offline}: {only}") if offline else Finding("pass", "hub", constants.ENDPOINT)
    caches = {"models": constants.HF_HUB_CACHE, "data sets": HF_DATASETS_CACHE, "prepared": environment.cache()}
    for name, path in caches.items():
        there = next(folder for folder in (Path(path), *Path(path).parents) if folder.is_dir())
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        words = f"{path}: {free / 1e9:.0f} GB free{'' if writable else ', and it cannot be written'}"
        yield Finding("pass" if writable and free > 5e9 else "warn", f"cache of {name}", words)

    cudnn = cuda and tuple(map(int, build.split(".")[:2])) >= (2, 11)
    repacks = not cuda and torch.backends.cpu.get_cpu_capability() == "AVX512"
    for known, true in {
        "cuDNN attention's gradients can be NaN under a mask (pytorch#196678): `train` switches it off.": cudnn,
        "Several GPUs are visible, and one process uses one: set CUDA_VISIBLE_DEVICES=0.": count > 1,
        "bitsandbytes repacks 4-bit weights on this CPU and spoils gradients: `train` prevents it.": repacks,
    }.items():
        if true:
            yield Finding("warn", "known problem", known)

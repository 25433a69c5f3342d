"""What this machine has, and what is known to go wrong on it: versions, devices, kernels, the hub, caches."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..errors import Finding
from ..recipe.resolve import here
from ..runs import environment

# torch's own kernels of scaled_dot_product_attention, and packages that bring others.
ATTENTION_KERNELS = ("flash", "mem_efficient", "cudnn", "math")
ATTENTION_PACKAGES = ("flash_attn", "kernels", "liger_kernel", "xformers")

# Packages whose own requirements are compared with what is installed: ours, and those that are often added later.
CLASHING = (*environment.PACKAGES, "vllm", "trackio", "deepspeed", "liger-kernel", "flash-attn", "unsloth")

HUB_TIMEOUT = 5  # seconds
FULL = 5e9  # bytes free: a disk with no more than that is nearly full


def doctor() -> Iterator[Finding]:
    """One finding for each thing looked at; `fail` where training cannot work."""
    yield environment.versions()
    yield from _clashes()
    yield _machine()
    yield from _gpus()
    yield from _device_without_cuda()
    yield _attention()
    yield _hub()
    yield from _caches()
    yield from _known_problems()


def _clashes() -> Iterator[Finding]:
    """Installed packages that another one does not take, by what that one itself declares."""
    for package in CLASHING:
        try:
            declared = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, declared):
            problem = _clash(package, requirement)
            if problem:
                yield Finding("warn", "clash", problem)


def _clash(package: str, requirement: Requirement) -> str | None:
    """What is wrong with the installed version of a requirement; what is not installed is of no concern.

    An extra counts that is named after the package it needs, as trl's vllm: others, such as dev, are for its authors.
    """
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None
    if requirement.marker is not None:
        extras = ("", canonicalize_name(requirement.name))
        if not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            return None
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return (
        f"{requirement.name} {version} is installed, and {package} {metadata.version(package)} takes "
        f"{requirement.name}{requirement.specifier} only. One that fits: pip install "
        f'"{requirement.name}{requirement.specifier}"'
    )


def _machine() -> Finding:
    import torch

    python = sys.version.split()[0]
    text = f"Python {python}, {sys.platform}, {os.cpu_count()} cores, torch {torch.__version__}"
    return Finding("pass", "machine", text)


def _gpu_count() -> int:
    """The GPUs that can be used: torch counts those that the driver cannot serve, too."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpus() -> Iterator[Finding]:
    """Each GPU with its memory, and the dtypes that it computes in."""
    import torch

    for number in range(_gpu_count()):
        name = torch.cuda.get_device_name(number)
        free, total = torch.cuda.mem_get_info(number)  # bytes
        memory = f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if _computes_in_bf16(number):
            yield Finding("pass", f"GPU {number}", f"{memory}; bf16, fp16, fp32")
        else:
            text = (
                f"{memory}; fp16 and fp32, bf16 is only emulated: full fine-tuning and LoRA train in fp32 unless dtype "
                "says otherwise, QLoRA computes in fp16."
            )
            yield Finding("warn", f"GPU {number}", text)


def _computes_in_bf16(number: int) -> bool:
    """Natively: torch says yes to an older GPU, too, which would take many times as long."""
    import torch

    with torch.cuda.device(number):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _device_without_cuda() -> Iterator[Finding]:
    """What a run would train on where CUDA is not there; a GPU that is there and cannot be used is a fail."""
    import torch

    if torch.cuda.is_available():
        return
    if here().kind == "cuda":
        if torch.version.cuda:
            reason = f"The driver does not serve CUDA {torch.version.cuda}, torch's own: update it."
        else:
            reason = f"torch {torch.__version__} is built without CUDA: install one that has it."
        yield Finding("fail", "GPU", reason)
    elif torch.backends.mps.is_available():
        yield Finding("pass", "GPU", "an Apple GPU: fp32")
    else:
        yield Finding("pass", "GPU", "none: training runs on the CPU, in fp32")


def _attention() -> Finding:
    """The attention kernels that are switched on, and what is installed beside them."""
    import torch

    enabled = [kernel for kernel in ATTENTION_KERNELS if getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")()]
    installed = [package for package in ATTENTION_PACKAGES if find_spec(package)]
    text = f"torch's {', '.join(enabled)}; installed beside it: {', '.join(installed) or 'none'}"
    return Finding("pass", "attention", text)


def _hub() -> Finding:
    """Whether models and data sets can be fetched; offline mode asks nothing."""
    from huggingface_hub import constants

    only_local = "only local and cached models and data sets can be used."
    if constants.HF_HUB_OFFLINE:
        return Finding("warn", "hub", f"HF_HUB_OFFLINE is set: {only_local}")
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT).close()
    except (OSError, ValueError, HTTPException) as error:
        return Finding("warn", "hub", f"{constants.ENDPOINT} does not answer ({error}): {only_local}")
    return Finding("pass", "hub", constants.ENDPOINT)


def _caches() -> Iterator[Finding]:
    """Each cache folder, its free space, and whether it can be written."""
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub import constants

    caches = {"models": constants.HF_HUB_CACHE, "data sets": HF_DATASETS_CACHE, "prepared": environment.cache()}
    for name, path in caches.items():
        existing = _nearest_existing_folder(Path(path))  # a cache is made when it is first written to
        free = shutil.disk_usage(existing).free
        writable = os.access(existing, os.W_OK)
        text = f"{path}: {free / 1e9:.0f} GB free"
        if not writable:
            text += ", and it cannot be written"
        usable = writable and free > FULL
        yield Finding("pass" if usable else "warn", f"cache of {name}", text)


def _nearest_existing_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _known_problems() -> Iterator[Finding]:
    """What is known to go wrong on a machine such as this one, and what is done about it."""
    import torch

    cuda = torch.cuda.is_available()
    torch_version = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if cuda and torch_version >= (2, 11):
        text = "cuDNN attention's gradients can be NaN under a mask (pytorch#196678): `train` switches it off."
        yield Finding("warn", "known problem", text)
    if _gpu_count() > 1:
        text = "Several GPUs are visible, and one process uses one: `train RECIPE --launch ddp` uses all of them."
        yield Finding("warn", "known problem", text)
    if not cuda and torch.backends.cpu.get_cpu_capability() == "AVX512":
        text = "bitsandbytes repacks 4-bit weights on this CPU and spoils gradients: `train` prevents it."
        yield Finding("warn", "known problem", text)

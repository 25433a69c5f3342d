"""Amounts of memory: as people write them, and what a device has."""

from __future__ import annotations

import re

from ..errors import UsageError

USABLE = 0.95  # of a device's memory: the rest is the driver's, the kernels' and that of other programs


def parse_memory(text: str) -> int:
    """Bytes of '24GB' (10^9 each) or '80GiB' (2^30). UsageError for anything else, a bare number too."""
    text_without_spaces = text.strip()
    match = re.fullmatch(r"(\d*\.?\d+)\s*(?:([KMGT])(i?))?B?", text_without_spaces, re.IGNORECASE)
    if match is None or text_without_spaces[-1].isdigit() or float(match[1]) == 0:
        raise UsageError(f"--gpu {text!r} is no amount of memory. Examples: 24GB, 80GiB, 512MB.")

    number, prefix, binary = match.groups()
    thousand = 1024 if binary else 1000
    power = " KMGT".index((prefix or " ").upper())
    return int(float(number) * thousand**power)


def device_memory(kind: str) -> int:
    """Bytes of the device that is there."""
    if kind != "cuda":
        import psutil

        return psutil.virtual_memory().total
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def format_memory(size: float) -> str:
    """Bytes as people write them: '1.50 GB' or '24.0 MB'."""
    if size >= 1e8:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB"

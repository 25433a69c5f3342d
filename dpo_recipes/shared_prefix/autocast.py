"""In which type torch multiplies a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(tensor: Tensor) -> torch.dtype:
    """That of autocast on a CPU where it is on, which leaves 64 bits alone, and else the tensor's own."""
    if torch.is_autocast_enabled("cpu") and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return tensor.dtype

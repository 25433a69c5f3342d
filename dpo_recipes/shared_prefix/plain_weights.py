"""Whether a weight may be read where it lies, without its module being called."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is all of its numbers, and not a part of what is divided over processes, as under FSDP and ZeRO.

    What bitsandbytes has packed is one too: its layers are of classes of their own.
    """
    is_whole = isinstance(weight, nn.Parameter) and not is_traceable_wrapper_subclass(weight)
    return is_whole and not hasattr(weight, "ds_id")  # which DeepSpeed gives to what it divides

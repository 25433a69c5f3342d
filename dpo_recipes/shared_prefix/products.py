"""How torch multiplies matrices: in which type, and on a CPU with how many rows at little cost.

In 16 bits torch has oneDNN write a program for each shape, which takes 2 to 6 ms where the product itself takes half of
one, and keeps the last 1,024 of them. The pairs of every batch have another number of tokens. So they are given more,
up to a round number: a few hundredths more to multiply, by programs that are there already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe.resolve import Settings

# Of which a run meets some 30, so that their programs are kept.
STEP = 32
LARGE_STEP = 64  # beyond LARGE rows
LARGE = 1024


def product_dtype(tensor: Tensor) -> torch.dtype:
    """That of autocast where it is on for the tensor's device, which leaves 64 bits alone, and else its own."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def common_product_dtype(*tensors: Tensor) -> torch.dtype | None:
    """That in which all of them are multiplied; None where it is not the same."""
    dtypes = {product_dtype(tensor) for tensor in tensors}
    return dtypes.pop() if len(dtypes) == 1 else None


def as_multiplied(*tensors: Tensor) -> list[Tensor]:
    """Each in the type that it is multiplied in, for a kernel that autocast does not know.

    Behind rotary embeddings queries and keys have 32 bits under autocast too.
    """
    return [tensor.to(product_dtype(tensor)) for tensor in tensors]


def wants_round_numbers(settings: Settings) -> bool:
    """Whether the rows of a run are to have a round number of tokens: on a CPU, in 16 bits."""
    return settings.device == "cpu" and settings.in_16_bits


def rows_to_multiply(rows: int, dtype: torch.dtype) -> int:
    """As many as there are, or, where a CPU multiplies them in the 16 bits of `dtype`, a round number of them."""
    return round_number(rows) if dtype.itemsize < 4 else rows


def round_number(rows: int) -> int:
    """The first number from `rows` on that is round."""
    step = STEP if rows <= LARGE else LARGE_STEP
    return -(-rows // step) * step

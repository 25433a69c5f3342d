"""TRL's head on paper: what it allocates between hidden states and log-probabilities, and nothing computed.

Leans on TRL 1.16: the tiles in which its head makes logits, and the size of every buffer on the way, forward and
backward.
"""

from __future__ import annotations

from typing import Any

import torch

from .bound import TILE_POSITIONS
from .live_bytes import Live


class Head(torch.autograd.Function):
    """What TRL's head allocates on the way from hidden states (positions, width) to log-probabilities, and back.

    TRL makes the logits tile by tile and keeps none of them, so that its need is that of one tile, forward or backward,
    and backward of the gradients in float32. Nothing is computed here.
    """

    @staticmethod
    def forward(
        ctx: Any, live: Live, triton: bool, tile_words: int, hidden: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        """`weights`: (words, width), and in some models a bias; `tile_words`: the width of a tile."""
        compute_dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        ctx.save_for_backward(hidden, *weights)
        ctx.live = live
        ctx.triton = triton
        ctx.tile_words = tile_words
        ctx.compute_dtype = compute_dtype

        _tile(live, triton, tile_words, compute_dtype, hidden, weights[0], backward=False)
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        hidden, weight, *_others = ctx.saved_tensors
        gradients: list[torch.Tensor | None] = []
        for tensor, needs_gradient in zip(ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True):
            if needs_gradient:  # TRL adds them up in float32, whatever the tensor has
                gradients.append(ctx.live.add(torch.zeros_like(tensor, dtype=torch.float32), "head"))
            else:
                gradients.append(None)

        # Alive until the end
        _buffer = _tile(ctx.live, ctx.triton, ctx.tile_words, ctx.compute_dtype, hidden, weight, backward=True)
        returned = []
        for tensor, gradient in zip(ctx.saved_tensors, gradients, strict=True):
            returned.append(None if gradient is None else gradient.to(tensor.dtype))
        return None, None, None, *returned


def _tile(
    live: Live,
    triton: bool,
    tile_words: int,
    compute_dtype: torch.dtype,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *,
    backward: bool,
) -> torch.Tensor:
    """Allocate what one tile of logits needs, and let go of what is temporary. -> what lives as long as the tile."""
    width = hidden.size(1)
    positions = min(len(hidden), TILE_POSITIONS)
    words = min(len(weight), tile_words)
    several_tiles = len(weight) > words

    # Hidden states and weights in the dtype of the product, where that is not their own. Backward holds two tiles of
    # the weights where there are several: the new one is made before the old one is let go.
    cast_rows = 0
    if hidden.dtype != compute_dtype:
        cast_rows += positions
    if weight.dtype != compute_dtype:
        cast_rows += 2 * words if backward and several_tiles else words

    # The buffer of logits is `tile_words` wide, however few words there are.
    lasting = live.add(hidden.new_empty(positions * tile_words + cast_rows * width, dtype=compute_dtype), "head")

    # Triton folds a tile in place and adds its products to the gradients in place. Torch makes copies in float32 (and
    # masks, of a quarter of their size): three and a quarter forward, seven and a quarter backward; and, to add a
    # product of 16 bits in float32, copies of both of its factors.
    if not triton:
        quarters = 29 if backward else 13
        numbers = positions * words * quarters // 4
        if backward and compute_dtype != torch.float32:
            numbers = max(numbers, words * (positions + width))
        live.add(hidden.new_empty(numbers, dtype=torch.float32), "head")
    return lasting

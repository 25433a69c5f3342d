"""The head on paper, TRL's and ours on a CPU: what it allocates on the way to log-probabilities; nothing is computed.

Leans on TRL 1.16: the tiles in which its head makes logits, and the size of every buffer on the way, forward and
backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..shared_prefix.products import product_dtype, rows_to_multiply
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
        compute_dtype = product_dtype(hidden)
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


class CPUHeadOnPaper(torch.autograd.Function):
    """What `shared_prefix.cpu_head.CPUHead` allocates, for hidden states (positions, width) of pairs read once.

    It keeps, beside the hidden states, the gradient that they would have, in float32, and what it has exponentiated,
    where the head is trained and that is little. Nothing is computed here.
    """

    @staticmethod
    def forward(
        ctx: Any, live: Live, tile_positions: int, tile_words: int, hidden: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """`weight`: (words, width)."""
        # Imported here: it brings bitsandbytes, which announces at import what the session has silenced by now.
        from ..shared_prefix.cpu_head import keeps_weights

        compute_dtype = product_dtype(hidden)
        room = _Room(live, compute_dtype, tile_positions, tile_words, hidden, weight)
        tile = room.tile(compute_dtype)
        ctx.kept = None
        if all(ctx.needs_input_grad[3:]) and keeps_weights(len(hidden), hidden.size(1), compute_dtype):
            ctx.kept = live.add(hidden.new_empty((len(hidden), len(weight)), dtype=torch.float32), "head")
            weights = ctx.kept
        else:
            weights = room.tile(torch.float32)
        cast = room.cast_of_hidden()
        if ctx.needs_input_grad[3]:
            ctx.pull = live.add(hidden.new_empty((room.rows, hidden.size(1)), dtype=torch.float32), "head")
        room.fold_forward(folds_words=ctx.needs_input_grad[3])
        del tile, weights, cast

        ctx.save_for_backward(hidden, weight)
        ctx.room = room
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        hidden, weight = ctx.saved_tensors
        room = ctx.room
        live = room.live
        of_hidden = of_weight = None
        if ctx.needs_input_grad[3]:
            of_hidden = live.add(hidden.new_empty(hidden.shape, dtype=torch.float32), "head").to(hidden.dtype)
        if ctx.needs_input_grad[4]:
            numbers = hidden.numel() + room.filled_copy()  # the one of hidden states, weighed
            weighed = live.add(hidden.new_empty(numbers, dtype=torch.float32), "head")
            gradient = live.add(torch.zeros_like(weight, dtype=torch.float32), "head")
            if ctx.kept is None:
                tile = room.tile(room.compute_dtype)
                cast = room.cast_of_hidden()
                room.fold_backward()
                del tile, cast
            else:
                live.add(torch.empty_like(weighed), "head")  # weighed anew for each tile
            del weighed
            of_weight = gradient.to(weight.dtype)
        return None, None, None, of_hidden, of_weight


class _Room(NamedTuple):
    """What tiles take: of some hidden states, and of some words of the head."""

    live: Live
    compute_dtype: torch.dtype
    tile_positions: int
    tile_words: int
    hidden: torch.Tensor
    weight: torch.Tensor

    @property
    def rows(self) -> int:
        """Of hidden states, with filler up to a round number where the product has 16 bits."""
        return rows_to_multiply(len(self.hidden), self.compute_dtype)

    def filled_copy(self) -> int:
        """Numbers in a copy of what has a row for each hidden state, with filler; 0 where none is needed."""
        return self.rows * self.hidden.size(1) if self.rows > len(self.hidden) else 0

    def tile(self, dtype: torch.dtype) -> torch.Tensor:
        """A buffer that is used again and again."""
        shape = (min(self.tile_positions, self.rows), self.tile_words)
        return self.live.add(self.hidden.new_empty(shape, dtype=dtype), "head")

    def cast_of_hidden(self) -> torch.Tensor:
        """All hidden states in the type of the product, with filler; empty where they are that already."""
        numbers = self.filled_copy()
        if not numbers and self.hidden.dtype != self.compute_dtype:
            numbers = self.hidden.numel()
        return self.live.add(self.hidden.new_empty(numbers, dtype=self.compute_dtype), "head")

    def fold_forward(self, *, folds_words: bool) -> None:
        """Allocate what is temporary while a tile is folded in, and let go of it.

        It is the logits of those positions whose target is in the tile, and two masks of theirs. `folds_words`: the
        rows of the head are summed up too, in float32.
        """
        words = min(self.tile_words, len(self.weight))
        positions = min(self.tile_positions, self.rows)
        share_of_targets = words / len(self.weight)
        numbers = int(words * positions * 1.5 * share_of_targets)
        if self.compute_dtype != torch.float32:  # the product in float32
            numbers += words * positions
        if folds_words and self.weight.dtype != torch.float32:
            numbers += words * self.weight.size(1)
        self._allocate_beside_words(words, numbers)

    def fold_backward(self) -> None:
        """Allocate what is temporary while a tile is folded into the gradient of the head, and let go of it."""
        words = min(self.tile_words, len(self.weight))
        positions = min(self.tile_positions, self.rows)
        numbers = 0
        if self.compute_dtype != torch.float32:  # the product in float32
            numbers = words * positions
        self._allocate_beside_words(words, numbers)

    def _allocate_beside_words(self, words: int, numbers: int) -> None:
        """So many numbers in float32; and the words in another type than their own, if need be."""
        cast = 0
        if self.weight.dtype != self.compute_dtype:
            cast = words * self.weight.size(1)
        _cast = self.live.add(self.hidden.new_empty(cast, dtype=self.compute_dtype), "head")
        self.live.add(self.hidden.new_empty(numbers, dtype=torch.float32), "head")

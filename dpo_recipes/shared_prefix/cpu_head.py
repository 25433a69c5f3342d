"""TRL's head on a CPU: the same numbers of each token and the same gradients, in fewer passes over the logits.

Leans on TRL 1.16: `trl.kernels.ChunkedLogProbFunction`, what its head gives to it and expects back, and what its
backward reads of the context; that `trl.trainer.utils` looks it up by name at each call.

TRL's function is made for a GPU, where one kernel folds a tile of logits into what is known of its rows. Without Triton
each line of that kernel is a pass over the tile, some twenty of them forward and backward, and a tile as wide as a
GPU's leaves the caches of a processor every time. Here a tile fits a cache, and

  * the logits are exponentiated once in forward, and in backward only where the head itself is trained, of so many
    positions that keeping what came of them would take too much room, or in 16 bits;
  * the gradient of a hidden state whose target is t is g (W_t - sum_j p_j W_j), with g from the loss. All but g is
    known in forward, which keeps it: a head that is frozen, as LoRA leaves it, makes no logits a second time;
  * matrices that TRL rounds to bf16 and multiplies in float32 are multiplied as what they are, where a CPU can.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import trl.trainer.utils
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .products import product_dtype, rows_to_multiply

# A tile of 2 MB in float32: of 64 to 512 positions and 512 to 2,048 words the best, with 8,192 words and with 49,152.
TILE_POSITIONS = 512
TILE_WORDS = 1024

# A head that is trained has four matrices of its size: itself, its gradient, and two of Adam's.
MATRICES_OF_A_TRAINED_HEAD = 4

# As which `trl.trainer.utils` knows its function.
NAME_OF_THE_FUNCTION = "_ChunkedLogProbFunction"


@contextlib.contextmanager
def cpu_head(device: torch.device) -> Iterator[None]:
    """On a CPU, let TRL's head compute by `CPUHead`; elsewhere, and where it is not TRL's any more, it stays."""
    names = vars(trl.trainer.utils)
    of_trl = names[NAME_OF_THE_FUNCTION]
    if device.type != "cpu" or of_trl is not ChunkedLogProbFunction:
        yield
        return
    names[NAME_OF_THE_FUNCTION] = CPUHead
    try:
        yield
    finally:
        names[NAME_OF_THE_FUNCTION] = of_trl


def keeps_weights(positions: int, width: int, dtype: torch.dtype) -> bool:
    """Whether what forward has exponentiated, (positions, words), stays for the gradient of a head that is trained.

    It does where it takes no more room than such a head, (words, width), has with what is trained of it. In 16 bits a
    product takes too little time for that.
    """
    return dtype == torch.float32 and positions <= MATRICES_OF_A_TRAINED_HEAD * width


class CPUHead(ChunkedLogProbFunction):
    """What TRL's head wants to know of S targets, from hidden states (S, width) and the head's weight (words, width).

    A bias, a cap on the logits and 64 bits are left to TRL's own function.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> Any:
        """The log-probability, the entropy, log(sum of p^2), the mean logit, whether the target is the first maximum.

        Each (S,), and all but the first None unless `outputs` names it.
        """
        ctx.is_left_to_trl = bias is not None or final_logit_softcapping is not None or hidden.dtype == torch.float64
        if ctx.is_left_to_trl:
            return ChunkedLogProbFunction.forward(
                ctx,
                hidden,
                weight,
                bias,
                targets,
                temperature,
                TILE_WORDS,
                final_logit_softcapping,
                logit_scale,
                outputs,
            )

        factor = logit_scale / temperature
        dtype = product_dtype(hidden)
        filled_hidden, filled_targets = _filled(hidden.to(dtype), dtype), _filled(targets, dtype)
        tile = torch.empty(min(TILE_POSITIONS, len(filled_hidden)), TILE_WORDS, dtype=dtype)
        pull = torch.zeros(filled_hidden.shape, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        # A head that is trained seems to need a gradient under `no_grad` too; a hidden state does not.
        keeps = all(ctx.needs_input_grad[:2]) and keeps_weights(len(hidden), hidden.size(1), dtype)
        weights = torch.empty(len(hidden), len(weight)) if keeps else torch.empty(tile.shape)
        all_rows = []
        for start in range(0, max(1, len(filled_hidden)), TILE_POSITIONS):  # once where nothing is scored, too
            positions = slice(start, start + TILE_POSITIONS)
            some_pull = None if pull is None else pull[positions]
            room = weights[positions] if keeps else weights
            rows = _Rows(filled_hidden[positions], filled_targets[positions], outputs, some_pull, room, keeps)
            all_rows.append(rows)
        for first in range(0, len(weight), TILE_WORDS):
            words = weight[first : first + TILE_WORDS]
            words_to_multiply = words.to(dtype)
            words_to_sum = None if pull is None else words.float()
            for rows in all_rows:
                logits = _logits(rows.hidden, words_to_multiply, factor, tile)
                rows.fold(logits, words_to_sum, first)
                del logits  # before the next tile is made
        found = [rows.numbers(weight) for rows in all_rows]
        numbers = {name: torch.cat([of_rows[name] for of_rows in found])[: len(hidden)] for name in found[0]}
        kept = largest_by_tile = None
        if keeps:
            kept = weights
            largest_by_tile = torch.cat([torch.stack(rows.largest_by_tile) for rows in all_rows], dim=1)

        log_z = numbers["log_z"]
        entropy = numbers.get("entropy")
        not_differentiable = [numbers.get(name) for name in ("log_sum_sq_probs", "mean_logits", "is_top1")]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(number for number in not_differentiable if number is not None))
        ctx.save_for_backward(hidden, weight, targets, log_z, entropy, pull, kept, largest_by_tile)
        ctx.compute_dtype = dtype
        ctx.chunk_size = chunk_size
        ctx.factor = factor
        return numbers["target_logit"] - log_z, entropy, *not_differentiable

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, *others: Any) -> Any:
        if ctx.is_left_to_trl:
            return ChunkedLogProbFunction.backward(ctx, grad_logprobs, grad_entropy, *others)
        if grad_entropy is not None:
            return ChunkedLogProbFunction.backward(_context_of_trl(ctx), grad_logprobs, grad_entropy, *others)
        if grad_logprobs is None:
            return (None,) * 9

        hidden, weight, targets, log_z, _, pull, kept, largest_by_tile = ctx.saved_tensors
        needs_hidden_gradient, needs_weight_gradient = ctx.needs_input_grad[:2]
        of_hidden = of_weight = None
        of_logits = (grad_logprobs.float() * ctx.factor)[:, None]  # (S, 1)
        if needs_hidden_gradient:
            of_hidden = (pull[: len(hidden)] * of_logits).to(hidden.dtype)
        if needs_weight_gradient:
            with maybe_gather_lm_head_ctx(weight):
                weighed = hidden.float() * of_logits  # (S, width)
                if kept is None:
                    gradient = _weight_gradient(ctx, hidden, weight, log_z, weighed)
                else:
                    gradient = _weight_gradient_of_kept(kept, largest_by_tile, log_z, weighed)
                of_weight = gradient.index_add_(0, targets, weighed).to(weight.dtype)
        return of_hidden, of_weight, None, None, None, None, None, None, None


def _logits(rows: Tensor, columns: Tensor, factor: float, tile: Tensor) -> Tensor:
    """(rows, columns) in float32, of hidden states (rows, width) and words (columns, width), or the other way round.

    All have the dtype of the product. `tile` is room for it, which is used again and again. What is returned may be
    written into.
    """
    room = tile[: len(rows), : len(columns)]
    logits = torch.mm(rows, columns.t(), out=room).float()
    if factor != 1.0:
        logits.mul_(factor)
    return logits


class _Rows:
    """What is known of the next word at some positions, from the tiles of the vocabulary that were folded in so far.

    The sums are relative to the largest logit so far, and scaled anew when a tile has a larger one (1805.02867).
    """

    def __init__(
        self,
        hidden: Tensor,
        targets: Tensor,
        outputs: tuple[str, ...],
        pull: Tensor | None,
        weights: Tensor,
        keeps: bool,
    ):
        """`pull`: room for the gradients of log p(target) for the hidden states, zeros (positions, width) in float32.

        `numbers` fills it, but for what logits are multiplied by. `weights`: room for those of all words if it `keeps`
        them, (positions, words), and else for those of a tile.
        """
        positions = len(hidden)
        self.hidden = hidden  # (positions, width), in the dtype of the product
        self.targets = targets
        self.outputs = outputs
        self.largest = torch.full((positions,), -math.inf)
        self.largest_before_target = torch.full((positions,), -math.inf)
        self.target_logit = torch.zeros(positions)
        self.sum_of_logits = torch.zeros(positions)
        # Of weights, exp(logit - largest): alone, times the logit, squared, and times the word's row of the head.
        self.sum = torch.zeros(positions)
        self.sum_with_logit = torch.zeros(positions)
        self.sum_of_squares = torch.zeros(positions)
        self.sum_of_words = pull
        self.weights = weights
        self.keeps = keeps
        self.largest_by_tile: list[Tensor] = []  # what the weights that are kept are relative to

    def fold(self, logits: Tensor, words: Tensor | None, first: int) -> None:
        """Take in a tile of the vocabulary.

        `logits`: (positions, words), which are written over. `words`: (words, width) in float32, rows of the head from
        `first` on, for the pull.
        """
        positions, words_of_tile = logits.shape
        start = first if self.keeps else 0
        room = self.weights[:positions, start : start + words_of_tile]
        largest_of_tile = logits.amax(-1)
        self._note_targets(logits, largest_of_tile, first)
        if "mean_logits" in self.outputs:
            self.sum_of_logits += logits.sum(-1)

        largest = torch.maximum(self.largest, largest_of_tile)
        shrink = torch.exp(self.largest - largest)
        logits.sub_(largest[:, None])
        weights = torch.exp(logits, out=room)
        total = weights.sum(-1)
        self.sum.mul_(shrink).add_(total)
        if "entropy" in self.outputs:
            with_logit = logits.mul_(weights).sum(-1).addcmul_(largest, total)
            self.sum_with_logit.mul_(shrink).add_(with_logit)
        if "log_sum_sq_probs" in self.outputs:
            squares = torch.linalg.vector_norm(weights, dim=-1).square()
            self.sum_of_squares.mul_(shrink.square()).add_(squares)
        if self.sum_of_words is not None and words is not None:
            self.sum_of_words.mul_(shrink[:, None])
            with _products_rounded_to(self.hidden.dtype):
                self.sum_of_words.addmm_(weights, words)
        self.largest = largest
        if self.keeps:
            self.largest_by_tile.append(largest)

    def _note_targets(self, logits: Tensor, largest_of_tile: Tensor, first: int) -> None:
        """The logits of the targets in this tile, and the largest of those words that stand before a target."""
        place = self.targets - first
        words = logits.size(1)
        is_here = (place >= 0) & (place < words)
        here = is_here.nonzero().squeeze(-1)
        before_target = torch.where(place >= words, largest_of_tile, -math.inf)
        if len(here) > 0:
            of_these = logits[here]
            places = place[here, None]
            self.target_logit[here] = of_these.gather(-1, places).squeeze(-1)
            is_before = torch.arange(words) < places
            before_target[here] = of_these.masked_fill_(~is_before, -math.inf).amax(-1)
        self.largest_before_target = torch.maximum(self.largest_before_target, before_target)

    def numbers(self, weight: Tensor) -> dict[str, Tensor]:
        """What the whole vocabulary has shown, (positions,) each."""
        log_z = self.largest + self.sum.log()
        numbers = {"log_z": log_z, "target_logit": self.target_logit}
        if "entropy" in self.outputs:
            numbers["entropy"] = log_z - self.sum_with_logit / self.sum
        if "log_sum_sq_probs" in self.outputs:
            numbers["log_sum_sq_probs"] = self.sum_of_squares.log() - 2 * self.sum.log()
        if "mean_logits" in self.outputs:
            numbers["mean_logits"] = self.sum_of_logits / len(weight)
        if "is_top1" in self.outputs:
            # As `argmax` has it, the first of several maxima counts.
            numbers["is_top1"] = (self.target_logit >= self.largest) & (self.target_logit > self.largest_before_target)
        if self.sum_of_words is not None:
            shrink = torch.exp(self.largest - log_z)  # with the rounding of log_z, as TRL has it in each probability
            self.sum_of_words.mul_(-shrink[:, None]).add_(weight[self.targets])
        return numbers


@contextlib.contextmanager
def _products_rounded_to(dtype: torch.dtype) -> Iterator[None]:
    """Meanwhile matrices in float32 are multiplied as in TRL: rounded to the head's `dtype`, and summed in float32.

    A CPU that multiplies bf16 takes a third of the time for it; others go on in float32, and so does torch before 2.9.
    """
    matmul = torch.backends.mkldnn.matmul if hasattr(torch.backends.mkldnn, "matmul") else None
    if matmul is None or dtype != torch.bfloat16:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _weight_gradient(ctx: Any, hidden: Tensor, weight: Tensor, log_z: Tensor, weighed: Tensor) -> Tensor:
    """(words, width) in float32: over all positions, -p times `weighed`, (S, width).

    That is each hidden state times the gradient of its log-probability, times what logits are multiplied by.
    """
    dtype = ctx.compute_dtype
    gradient = torch.empty(weight.shape, dtype=torch.float32)
    if len(hidden) == 0:
        gradient.zero_()
    # Filler is weighed by nothing.
    filled_hidden, filled_weighed = _filled(hidden.to(dtype), dtype), _filled(weighed, dtype)
    log_z = _filled(log_z, dtype)
    tile = torch.empty(TILE_WORDS, min(TILE_POSITIONS, len(filled_hidden)), dtype=dtype)
    for first in range(0, len(weight), TILE_WORDS):
        words = slice(first, first + TILE_WORDS)
        factors = weight[words].to(dtype)
        for start in range(0, len(filled_hidden), TILE_POSITIONS):
            positions = slice(start, start + TILE_POSITIONS)
            # With a row for each word, as the gradient has it: a product is slower where it has to turn a factor round.
            logits = _logits(factors, filled_hidden[positions], ctx.factor, tile)  # (words, positions)
            probabilities = logits.sub_(log_z[positions]).exp_()
            kept = 0.0 if start == 0 else 1.0  # there is nothing yet
            with _products_rounded_to(dtype):
                gradient[words].addmm_(probabilities, filled_weighed[positions], beta=kept, alpha=-1)
            del logits, probabilities  # before the next tile is made
    return gradient


def _weight_gradient_of_kept(kept: Tensor, largest_by_tile: Tensor, log_z: Tensor, weighed: Tensor) -> Tensor:
    """The same, of exp(logit - largest) of each tile, (S, words), and what was the largest then, (tiles, S)."""
    gradient = kept.new_empty(kept.size(1), weighed.size(1))
    for first, largest in zip(range(0, len(gradient), TILE_WORDS), largest_by_tile, strict=True):
        words = slice(first, first + TILE_WORDS)
        scaled = weighed * torch.exp(largest - log_z)[:, None]
        gradient[words].addmm_(kept[:, words].t(), scaled, beta=0, alpha=-1)
        del scaled  # before the next one is made
    return gradient


def _filled(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows (S, ...), and zeros behind them up to a round number where the `dtype` of products has 16 bits."""
    missing = rows_to_multiply(len(rows), dtype) - len(rows)
    if missing == 0:
        return rows
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _context_of_trl(ctx: Any) -> SimpleNamespace:
    """What TRL's backward reads of its context: no loss of its trainer has a gradient for the entropy, but one may."""
    hidden, weight, targets, log_z, entropy, *_ = ctx.saved_tensors
    return SimpleNamespace(
        saved_tensors=(hidden, weight, None, targets, log_z, entropy),
        needs_input_grad=ctx.needs_input_grad,
        compute_dtype=ctx.compute_dtype,
        chunk_size=ctx.chunk_size,
        kernel_args={"logit_scale": ctx.factor, "softcap": 1.0, "inv_t": 1.0, "HAS_SOFTCAP": False},
    )

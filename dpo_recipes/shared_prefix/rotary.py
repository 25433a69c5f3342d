"""Rotary positions of queries and keys as one step of autograd each, in half the passes over them.

Leans on Transformers 5.23: `apply_rotary_pos_emb` and `rotate_half` of Llama. Some 110 of its models have a copy of
both, and the forward of their attention finds the first by its name, among what its file defines.

With x = (x1, x2), the halves of a head, what is computed is x cos + (-x2, x1) sin (2104.09864, equation 34, its pairs
of numbers taken from both halves). As operations of torch that turns x round, and passes over it for each product and
their sum. Here the halves are read where they lie, and in backward, where the angle is the opposite one, what they lend
each other is added while it is multiplied (`addcmul`). Forward rounds where Llama does: in 16 bits the policy would
otherwise be up to 0.05 nats a token off a reference that was computed by the library, before its first step.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, rotate_half

from .same_code import is_copy

APPLY = "apply_rotary_pos_emb"


def computing(module: nn.Module) -> Callable[..., Any] | None:
    """The forward of an attention with rotary positions as Llama has them, which turns queries and keys at once.

    It is the library's own, with another function by the name of Llama's. For this module alone: its file keeps its
    own, which other models in this process have.
    """
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType) or APPLY not in forward.__code__.co_names:
        return None
    names = forward.__globals__
    if not _are_llamas(names.get(APPLY)):
        return None
    ours = types.FunctionType(
        forward.__code__,
        {**names, APPLY: _apply},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    ours.__kwdefaults__ = forward.__kwdefaults__
    return ours


def _are_llamas(apply: Any) -> bool:
    """Whether a function, and the one that it calls, are copies of Llama's."""
    if not is_copy(apply, apply_rotary_pos_emb):
        return False
    return is_copy(apply.__globals__["rotate_half"], rotate_half)


def _apply(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Llama's: query and key (batch, heads, tokens, size), cos and sin (batch, tokens, size).

    `unsqueeze_dim`: where query and key have their heads.
    """
    fits = _fits(query, cos, unsqueeze_dim) and _fits(key, cos, unsqueeze_dim)
    if not fits or cos.requires_grad:
        turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim)
        return turned
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotary.apply(query, cos, sin), _Rotary.apply(key, cos, sin)


def _fits(x: Tensor, cos: Tensor, unsqueeze_dim: int) -> bool:
    """Whether x has the shape of what comes of it, and two halves."""
    shape = list(cos.shape)
    shape.insert(unsqueeze_dim, 1)
    return x.size(-1) % 2 == 0 and shape[-1] == x.size(-1) and torch.broadcast_shapes(x.shape, shape) == x.shape


class _Rotary(torch.autograd.Function):
    """Its output is Llama's bit for bit. Keeps cos and sin, which all layers share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (..., size); cos and sin of shapes that are spread over it."""
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        half = x.size(-1) // 2
        turned = x * cos  # with 16 bits of x and 32 of cos, as under autocast, in 32
        turned[..., :half].sub_(x[..., half:] * sin[..., :half])
        turned[..., half:].add_(x[..., :half] * sin[..., half:])
        return turned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        of_turned = gradients[0]
        half = of_turned.size(-1) // 2
        of_x = of_turned * cos
        of_x[..., :half].addcmul_(of_turned[..., half:], sin[..., half:])
        of_x[..., half:].addcmul_(of_turned[..., :half], sin[..., :half], value=-1)
        return of_x.to(ctx.dtype), None, None

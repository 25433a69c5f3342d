"""Rotary positions of queries and keys as one step of autograd each, in half the passes over them.

Leans on Transformers 5.23: `apply_rotary_pos_emb` and `rotate_half` of Llama. Some 110 of its models have a copy of
both, and the forward of their attention finds the first by its name, among what its file defines.

With x = (x1, x2), the halves of a head, what is computed is x cos + (-x2, x1) sin (2104.09864, equation 34, its pairs
of numbers taken from both halves). As operations of torch that turns x round, and passes over it for each product and
their sum. Here the halves are read where they lie, and in backward, where the angle is the opposite one, what they lend
each other is added while it is multiplied (`addcmul`). Forward rounds where Llama does: in 16 bits the policy would
otherwise be up to 0.05 nats a token off a reference that was computed by the library, before its first step.

Where the package `kernels` is installed, Transformers makes something else of these functions, and all is left to it.
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
    """What turns queries and keys at once, if a module is an attention with rotary positions as Llama has them."""
    return _compute if _turns_as_llama(type(module).forward) else None


def _turns_as_llama(forward: Any) -> bool:
    """Whether what a forward finds by the name of Llama's function, and by that which it calls, are copies of both."""
    if not isinstance(forward, types.FunctionType) or APPLY not in forward.__code__.co_names:
        return False
    found: Any = forward.__globals__.get(APPLY)
    return is_copy(found, apply_rotary_pos_emb) and is_copy(found.__globals__["rotate_half"], rotate_half)


def _compute(attention: nn.Module, *args: Any, **given: Any) -> Any:
    """The library's own forward with another function by the name of Llama's; None where that has been replaced since.

    Its file keeps its own function, as other models in this process have that too. What else the file defines is read
    at each call: what `split_attention_of` puts there is among it.
    """
    forward = type(attention).forward
    if not _turns_as_llama(forward):
        return None
    turning_at_once = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, APPLY: _apply},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    turning_at_once.__kwdefaults__ = forward.__kwdefaults__
    return turning_at_once(attention, *args, **given)


def _apply(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Llama's: query and key (batch, heads, tokens, size), cos and sin (batch, tokens, size).

    `unsqueeze_dim`: where query and key have their heads.
    """
    over_heads = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    is_trained = cos.requires_grad or sin.requires_grad
    if is_trained or not all(_fits(x, positions) for x in (query, key) for positions in over_heads):
        turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim)
        return turned
    return _Rotary.apply(query, *over_heads), _Rotary.apply(key, *over_heads)


def _fits(x: Tensor, positions: Tensor) -> bool:
    """Whether x has two halves, each with positions of its own, and the shape of what comes of it."""
    if x.size(-1) % 2 or x.size(-1) != positions.size(-1) or x.dim() != positions.dim():
        return False
    return all(of_positions in (1, of_x) for of_x, of_positions in zip(x.shape, positions.shape, strict=True))


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

"""A root-mean-square norm as one step of autograd, which holds its input and one number a token.

Leans on Transformers 5.23: `LlamaRMSNorm`, of whose forward some 140 of its models have a copy.

The norm is y = w x / sqrt(mean(x^2) + eps) (1910.07467, equation 4). As operations of torch it holds x in 32 bits,
whatever x has, and x over the root in the bits of x. Both can be made again from x and the root, in fewer passes over
x than the backward of those operations takes, and rounding once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .plain_weights import is_plain
from .same_code import is_copy


def computing(module: nn.Module) -> Callable[..., Tensor | None] | None:
    """What computes at once what a module does, if that is Llama's norm."""
    return _compute if is_copy(type(module).forward, LlamaRMSNorm.forward) else None


def _compute(norm: Any, x: Tensor) -> Tensor | None:
    """x (..., width) -> (..., width); None in 64 bits, which are for comparisons alone."""
    if x.dtype == torch.float64 or not is_plain(norm.weight):
        return None
    output: Tensor = _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)
    return output


class _RMSNorm(torch.autograd.Function):
    """Its output is Llama's bit for bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        precise = x.float()
        inverse_root = torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + epsilon)  # (..., 1)
        normed = (precise * inverse_root).to(x.dtype)
        ctx.save_for_backward(x, weight, inverse_root)
        return normed.mul_(weight) if weight.dtype == x.dtype else weight * normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, inverse_root = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        of_weighed = gradients[0] * inverse_root  # of w x, the root apart
        by_token = of_weighed * x  # of w

        of_x = of_weight = None
        if needs_weight:
            of_weight = by_token.flatten(0, -2).sum(0).to(weight.dtype)
        if needs_x:
            # And through the root r, of which d r / d x is -r^3 x / width.
            weight = weight.to(by_token.dtype)
            along_x = torch.mv(by_token.flatten(0, -2), weight).view(inverse_root.shape)
            along_x.mul_(inverse_root.square()).div_(x.size(-1))
            of_x = of_weighed.mul_(weight).addcmul_(x.to(by_token.dtype), along_x, value=-1).to(x.dtype)
        return of_x, of_weight, None

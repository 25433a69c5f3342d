"""A linear layer with LoRA as one step of autograd: the same products, and nothing to pass over between them.

Leans on PEFT 0.21: `peft.tuners.lora.Linear`, and those of its attributes that say what its forward computes.

The layer is y = x W^T + s (x A^T) B^T (2106.09685, equation 3, and section 4.1 for s). PEFT writes it in operations of
torch, each of which passes over all of x or of y, and once more in backward: x to the 32 bits of the adapter and back
to the 16 of autocast, the product with B times s, the sum of both products, and of both gradients for x. Here s meets
the r numbers of a token between A and B, and a product is added to another while it is made (`addmm`). In 16 bits this
rounds less often, and layers that read the same x in 16 bits hold it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .plain_weights import is_plain
from .products import common_product_dtype, product_dtype


class _Operands(NamedTuple):
    """What the formula is computed with, beside x."""

    weight: Tensor  # W (outputs, inputs)
    bias: Tensor | None  # (outputs,), which is added
    lora_a: Tensor  # A (r, inputs)
    lora_b: Tensor  # B (outputs, r)
    scaling: float  # s


def computing(module: nn.Module) -> Callable[..., Tensor | None] | None:
    """What computes at once what a module does, if that is PEFT's linear layer with LoRA."""
    return _compute if type(module) is Linear else None


def _compute(layer: Any, x: Tensor, *args: Any, **given: Any) -> Tensor | None:
    """x (..., inputs) -> (..., outputs); None where more is to be done than the formula, or in several precisions."""
    operands = None if args or given else _operands(layer)
    if operands is None or operands.weight.device != x.device:
        return None
    if common_product_dtype(x, operands.weight, operands.lora_a, operands.lora_b) is None:
        return None  # as 32 bits of an adapter over 16 are without autocast
    output: Tensor = _LoRALinear.apply(x, *operands)
    return output


def _operands(layer: Any) -> _Operands | None:
    """Those of a layer with one adapter, if nothing is to be done but the formula."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:  # such as DoRA
        return None

    name = active[0]
    if not _drops_nothing(layer.lora_dropout[name]):
        return None
    base, lora_a, lora_b = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    if not all(_is_a_product_alone(linear) for linear in (base, lora_a, lora_b)):
        return None
    is_trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    if is_trained or lora_a.bias is not None or lora_b.bias is not None:
        return None
    return _Operands(base.weight, base.bias, lora_a.weight, lora_b.weight, layer.scaling[name])


def _drops_nothing(dropout: nn.Module) -> bool:
    if isinstance(dropout, nn.Dropout):
        return dropout.p == 0 or not dropout.training
    return isinstance(dropout, nn.Identity)


def _is_a_product_alone(linear: nn.Module) -> bool:
    """Whether a call of a module would multiply by its weight, as it lies there, and do nothing else.

    A quantised layer is of a class of its own, and so is one that has an adapter of another kind already. accelerate's
    offloading brings a weight when its module is called.
    """
    if type(linear) is not nn.Linear or "forward" in vars(linear):
        return False
    if linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks or linear._backward_pre_hooks:
        return False
    return is_plain(linear.weight)


class _LoRALinear(torch.autograd.Function):
    """Keeps x, the weights and x A^T, where a gradient needs them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        """x (..., inputs), W (outputs, inputs), A (r, inputs), B (outputs, r) -> (..., outputs)."""
        dtype = product_dtype(x)
        tokens = x.reshape(-1, x.size(-1)).to(dtype)
        weight = weight.to(dtype)
        inner = torch.mm(tokens, lora_a.to(dtype).t())  # (tokens, r)
        output = torch.mm(tokens, weight.t()) if bias is None else torch.addmm(bias.to(dtype), tokens, weight.t())
        output.addmm_(inner, lora_b.to(dtype).t(), alpha=scaling)

        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            tokens if needs_a else None,
            weight if needs_x else None,
            lora_a if needs_x else None,
            lora_b if needs_x or needs_a else None,
            inner if needs_b else None,
        )
        ctx.product_dtype = dtype
        ctx.dtypes = x.dtype, lora_a.dtype, lora_b.dtype
        ctx.scaling = scaling
        ctx.shape = x.shape
        return output.view(*x.shape[:-1], output.size(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        tokens, weight, lora_a, lora_b, inner = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        dtype = ctx.product_dtype
        dtype_of_x, dtype_of_a, dtype_of_b = ctx.dtypes
        of_output = gradients[0].reshape(-1, gradients[0].size(-1)).to(dtype)

        of_x = of_a = of_b = None
        if needs_x or needs_a:
            of_inner = torch.mm(of_output, lora_b.to(dtype)).mul_(ctx.scaling)
            if needs_x:
                of_x = torch.mm(of_output, weight).addmm_(of_inner, lora_a.to(dtype)).view(ctx.shape).to(dtype_of_x)
            if needs_a:
                of_a = torch.mm(of_inner.t(), tokens).to(dtype_of_a)
        if needs_b:
            of_b = torch.mm(of_output.t(), inner).mul_(ctx.scaling).to(dtype_of_b)
        return of_x, None, None, of_a, of_b, None

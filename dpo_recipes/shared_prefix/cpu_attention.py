"""Attention over the flat row on a CPU: torch's flash kernels on views of it, with nothing copied and no mask made.

Leans on torch 2.13: `aten::_scaled_dot_product_flash_attention_for_cpu` and its backward, which recompute the
probabilities from a log-sum-exp that they are given.

Through autograd each stretch would cost a copy of its prefix's keys and values, a mask, and in backward a tensor of
zeros in the size of the row for each slice. Here a stretch behind a prefix is attended to in two parts, the prefix
whole and itself causally, which are joined by their log-sum-exps as FlashAttention joins its blocks (2205.14135,
section 3.1). Given the joined output and log-sum-exp, the kernel's backward of either part is exact (its algorithm 4).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from .layout import Queries, Stretch
from .products import as_multiplied, common_product_dtype

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

KERNEL_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
# In 16 bits the kernel's backward takes longer than in 32 where it is not causal, or fewer tokens than these ask: three
# times as long of 100 tokens. Of 1,500 and more it takes a fifth to a quarter less.
LONG_IN_16_BITS = 1024


class Part(NamedTuple):
    """Neighbours among the keys that the queries of a stretch see: all of them, or each those up to itself."""

    start: int
    stop: int
    causal: bool


def can_attend(queries: Queries, query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]) -> bool:
    """Whether the kernels do what SDPA would do here. `given`: what a layer hands to its attention function."""
    if query.device.type != "cpu" or value.size(-1) != query.size(-1):
        return False
    if common_product_dtype(query, key, value) not in KERNEL_DTYPES:
        return False
    if given.get("s_aux") is not None:  # attention sinks
        return False
    window = given.get("sliding_window")
    return not window or window >= max(stretch.keys for stretch in queries.stretches)


def attend(queries: Queries, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Every stretch on its own: query (1, heads, M, size), key and value (1, groups, N, size) -> (1, M, heads, size).

    M: the queries of all stretches; N: the row. Several heads may have one group of keys and values.
    """
    output: Tensor = _RowAttention.apply(query, key, value, queries.stretches, scale)
    return output.transpose(1, 2)


class _RowAttention(torch.autograd.Function):
    """Keeps query, key, value, output and one number a query and head: nothing of the size of a stretch squared."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, stretches: list[Stretch], scale: float | None
    ) -> Tensor:
        ctx.dtypes = query.dtype, key.dtype, value.dtype
        query, key, value = as_multiplied(query, key, value)
        keys, values = _of_all_heads(key, query), _of_all_heads(value, query)
        output = query.new_empty(query.size(0), query.size(2), query.size(1), query.size(3)).transpose(1, 2)
        log_sums = []
        end = 0
        for stretch in stretches:
            start, end = end, end + stretch.queries
            asking = query[:, :, start:end]
            answer, log_sum = _join([_attend_part(asking, keys, values, part, scale) for part in _parts(stretch)])
            output[:, :, start:end] = answer
            log_sums.append(log_sum)

        ctx.save_for_backward(query, key, value, output, *log_sums)
        ctx.stretches = stretches
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, output, *log_sums = ctx.saved_tensors
        precise = torch.promote_types(query.dtype, torch.float32)

        @functools.cache
        def operands(dtype: torch.dtype) -> tuple[Tensor, ...]:
            """What the kernel is given: gradient, query, keys, values, output."""
            keys, values = _of_all_heads(key.to(dtype), query), _of_all_heads(value.to(dtype), query)
            return gradients[0].to(dtype), query.to(dtype), keys, values, output.to(dtype)

        keys_of_all_heads = operands(precise)[2]
        of_query = torch.empty_like(query, dtype=precise)  # which the stretches fill
        of_keys = torch.zeros_like(keys_of_all_heads)
        of_values = torch.zeros_like(keys_of_all_heads)
        end = 0
        for stretch, log_sum in zip(ctx.stretches, log_sums, strict=True):
            start, end = end, end + stretch.queries
            asking = slice(start, end)
            for number, part in enumerate(_parts(stretch)):
                seen = slice(part.start, part.stop)
                is_long = part.causal and stretch.queries >= LONG_IN_16_BITS
                gradient, queries, keys, values, answers = operands(query.dtype if is_long else precise)
                to_query, to_keys, to_values = _flash_backward(
                    gradient[:, :, asking],
                    queries[:, :, asking],
                    keys[:, :, seen],
                    values[:, :, seen],
                    answers[:, :, asking],
                    log_sum,
                    0.0,
                    part.causal,
                    scale=ctx.scale,
                )
                if number == 0:
                    of_query[:, :, asking] = to_query
                else:
                    of_query[:, :, asking] += to_query
                of_keys[:, :, seen] += to_keys
                of_values[:, :, seen] += to_values
        found = (of_query, _of_groups(of_keys, key), _of_groups(of_values, value))
        return *(each.to(dtype) for each, dtype in zip(found, ctx.dtypes, strict=True)), None, None


def _parts(stretch: Stretch) -> list[Part]:
    itself = Part(stretch.start, stretch.stop, causal=True)
    if stretch.shared == 0:
        return [itself]
    return [Part(stretch.prefix, stretch.prefix + stretch.shared, causal=False), itself]


def _attend_part(
    asking: Tensor, keys: Tensor, values: Tensor, part: Part, scale: float | None
) -> tuple[Tensor, Tensor]:
    """What a part answers (1, heads, queries, size), and the log of the sum of its weights (1, heads, queries)."""
    seen = slice(part.start, part.stop)
    answer, log_sum = _flash(asking, keys[:, :, seen], values[:, :, seen], 0.0, part.causal, scale=scale)
    return answer, log_sum


def _join(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The answer over all keys, of answers over some of them: each weighs as the sum of its weights does."""
    if len(parts) == 1:
        return parts[0]
    (answer, log_sum), (other, other_log_sum) = parts
    joined = torch.logaddexp(log_sum, other_log_sum)
    weight = torch.exp(log_sum - joined)[..., None]
    other_weight = torch.exp(other_log_sum - joined)[..., None]
    return (answer * weight + other * other_weight).to(answer.dtype), joined


def _of_all_heads(tensor: Tensor, query: Tensor) -> Tensor:
    """Keys or values (1, groups, N, size) -> (1, heads, N, size): neighbouring heads have one group."""
    return repeat_kv(tensor, query.size(1) // tensor.size(1))


def _of_groups(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient (1, heads, N, size) of `_of_all_heads` -> (1, groups, N, size)."""
    if gradient.size(1) == like.size(1):
        return gradient
    return gradient.unflatten(1, (like.size(1), -1)).sum(2)

"""Attention over the flat row: a registered attention function that reads every stretch on its own.

It is split rather than masked, because a dense mask costs the square of the row: chosen is plain causal attention, and
the queries of rejected see [prefix, rejected], causal from the bottom right. A varlen kernel does all of it in one
call, SDPA and what a model computes itself ("eager": caps on scores, sinks) in a short loop.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from .cpu_attention import attend, can_attend
from .layout import Queries, Row, Stretch
from .products import as_multiplied, common_product_dtype

# New in torch 2.10; windows came with 2.11, and groups of heads with 2.12. What asks for them is to go when the oldest
# torch that is allowed has them.
varlen: Any = None
with contextlib.suppress(ImportError):
    from torch.nn.attention.varlen import varlen_attn as varlen

VARLEN_DTYPES = {torch.float16, torch.bfloat16}

# How a kernel is told what a query sees: borders of stretches, a mask that is true there, a mask to add to the scores.
Kind = Literal["flash", "sdpa", "eager"]


def split_attention(kernel: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    """An attention function that takes a `pair_row`, and without one is what it was.

    As an argument, the row is there again when a checkpointed layer is computed a second time.
    """

    @functools.wraps(kernel)
    def attention(*args: Any, pair_row: Row | None = None, **given: Any) -> Any:
        if pair_row is None:
            return kernel(*args, **given)
        return _attend(kernel, kind, pair_row, *args, **given)

    splitting: Any = attention
    splitting.reads_pairs = True
    return splitting


def _attend(
    kernel: Callable[..., Any],
    kind: Kind,
    row: Row,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Every stretch on its own: query, key, value (1, heads, N, size) -> (1, N, heads, size)."""
    # The row's own mask has one element and says nothing: see `forward._read`.
    has_own_mask = attention_mask is not None and attention_mask.numel() > 1
    if has_own_mask or given.get("position_bias") is not None:
        raise ValueError("a layer has a mask or a bias of its own")
    if given.get("dropout"):
        raise ValueError("attention dropout is on")

    row.windows[id(module)] = given.get("sliding_window")
    # Seen from inside, as accelerate puts autocast between `share` and the model when it prepared that before.
    if value.dtype.itemsize < 4 or torch.is_autocast_enabled(value.device.type):
        row.half = True

    is_last = module is not None and module is row.last_attention
    if is_last:
        query = row.pick(query, dim=2)
    queries = row.ending if is_last else row.whole
    if kind == "flash":
        output, _ = _flash(kernel, queries, module, query, key, value, given)
    elif kind == "sdpa" and _varlen_can(query, key, value, given):
        output, _ = _torch_varlen(queries, query, key, value, given)
    elif kind == "sdpa" and can_attend(queries, query, key, value, given):
        output = attend(queries, query, key, value, given.get("scaling"))
    else:
        output, _ = _loop(kernel, kind, row, queries, module, query, key, value, given)
    if is_last:
        row.is_behind_last_attention = True
        output = row.spread(output, dim=1)
    return output, None


def _flash(
    kernel: Callable[..., Any],
    queries: Queries,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: dict[str, Any],
) -> tuple[Tensor, None]:
    """One call of a FlashAttention kernel with the arguments that Transformers has for packed rows."""
    ragged = queries.ragged(query.device)
    borders = {
        "cu_seq_lens_q": ragged.query_borders,
        "cu_seq_lens_k": ragged.key_borders,
        "max_length_q": ragged.most_queries,
        "max_length_k": ragged.most_keys,
    }
    keys = key.index_select(2, ragged.key_places)
    values = value.index_select(2, ragged.key_places)
    return kernel(module, query, keys, values, None, **(given | borders))


def _torch_varlen(
    queries: Queries, query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]
) -> tuple[Tensor, None]:
    """One call of torch's own varlen kernel, which takes (tokens, heads, size) and counts a window from its query."""
    query, key, value = as_multiplied(query, key, value)
    ragged = queries.ragged(query.device)
    keys = key.index_select(2, ragged.key_places)
    values = value.index_select(2, ragged.key_places)
    heads_of_a_group = query.size(1) // key.size(1)
    of_groups = {}
    if "enable_gqa" in _parameters(varlen):
        of_groups = {"enable_gqa": heads_of_a_group > 1}
    else:
        keys, values = repeat_kv(keys, heads_of_a_group), repeat_kv(values, heads_of_a_group)

    window = given.get("sliding_window")
    tokens_before = window - 1 if window else -1  # -1: all of them
    output = varlen(
        query[0].transpose(0, 1),
        keys[0].transpose(0, 1),
        values[0].transpose(0, 1),
        ragged.query_borders,
        ragged.key_borders,
        ragged.most_queries,
        ragged.most_keys,
        scale=given.get("scaling"),
        window_size=(tokens_before, 0),
        **of_groups,
    )
    return output[None], None


def _loop(
    kernel: Callable[..., Any],
    kind: Kind,
    row: Row,
    queries: Queries,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: dict[str, Any],
) -> tuple[Tensor, None]:
    """A call of the kernel for each stretch."""
    outputs = []
    end = 0
    mask: Tensor | None
    for stretch in queries.stretches:
        if kind == "eager":
            mask = row.added_mask(stretch, given.get("sliding_window"), query)
        else:
            mask = row.mask(stretch, given.get("sliding_window"), query)
        start, end = end, end + stretch.queries
        output = kernel(module, query[:, :, start:end], _seen(key, stretch), _seen(value, stretch), mask, **given)
        outputs.append(output[0])  # without attention weights
    return torch.cat(outputs, 1), None


def _seen(tensor: Tensor, stretch: Stretch) -> Tensor:
    """Of keys or values (1, heads, N, size), those that a stretch sees: its prefix and itself."""
    if stretch.shared == 0 or stretch.prefix + stretch.shared == stretch.start:  # it has no prefix, or follows it
        return tensor[:, :, stretch.start - stretch.shared : stretch.stop]
    itself = tensor[:, :, stretch.start : stretch.stop]
    prefix = tensor[:, :, stretch.prefix : stretch.prefix + stretch.shared]
    return torch.cat([prefix, itself], 2)


def _varlen_can(query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]) -> bool:
    """Whether torch's own varlen kernel, FlashAttention 2, can stand in for SDPA's loop."""
    if varlen is None or "window_size" not in _parameters(varlen):
        return False
    if not _has_flash_kernels(query.device):
        return False
    if given.get("s_aux") is not None:  # attention sinks
        return False

    if common_product_dtype(query, key, value) not in VARLEN_DTYPES:
        return False
    head_sizes = {tensor.size(-1) for tensor in (query, key, value)}
    head_size = query.size(-1)
    return len(head_sizes) == 1 and head_size % 8 == 0 and 8 <= head_size <= 256


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of what a function takes."""
    return frozenset(inspect.signature(function).parameters)


def _has_flash_kernels(device: torch.device) -> bool:
    """Whether it is a GPU of NVIDIA's, from Ampere on; those of AMD go by the name of CUDA too."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)

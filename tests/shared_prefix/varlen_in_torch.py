"""What a varlen kernel computes, in operations of torch that every device has."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def bottom_right(query, key, value, query_borders, key_borders, window, scaling):
    """What a varlen kernel computes: query, key, value (1, heads, N, size) -> (1, N, heads, size)."""
    group = query.size(1) // key.size(1)  # query heads for each head of keys
    outputs = []
    for stretch in range(len(query_borders) - 1):
        first_query, end_query = query_borders[stretch : stretch + 2].tolist()
        first_key, end_key = key_borders[stretch : stretch + 2].tolist()
        queries, keys = end_query - first_query, end_key - first_key
        ahead = torch.arange(keys) - torch.arange(keys - queries, keys)[:, None]
        mask = ((ahead <= 0) & (ahead > -(window or keys))).to(query.device)
        k = key[:, :, first_key:end_key].repeat_interleave(group, 1)
        v = value[:, :, first_key:end_key].repeat_interleave(group, 1)
        q = query[:, :, first_query:end_query]
        outputs.append(F.scaled_dot_product_attention(q, k, v, mask, scale=scaling))
    return torch.cat(outputs, 2).transpose(1, 2)


class Varlen:
    """torch's varlen kernel, of (tokens, heads, size), in what it takes since torch 2.12; counts its calls."""

    def __init__(self):
        self.calls = 0
        self.dtypes = set()

    def compute(self, q, k, v, query_borders, key_borders, most_queries, most_keys, scale, window_size):
        assert window_size[1] == 0 and most_keys == key_borders.diff().max()
        assert most_queries == query_borders.diff().max()
        self.calls += 1
        self.dtypes |= {q.dtype, k.dtype, v.dtype}
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return bottom_right(q, k, v, query_borders, key_borders, window_size[0] + 1, scale)[0]

    def of_torch_2_12(self, q, k, v, *borders, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert enable_gqa == (q.size(1) != k.size(1))
        return self.compute(q, k, v, *borders, scale, window_size)

    def of_torch_2_11(self, q, k, v, *borders, scale=None, window_size=(-1, -1)):
        assert q.size(1) == k.size(1)
        return self.compute(q, k, v, *borders, scale, window_size)

    def of_torch_2_10(self, q, k, v, *borders, is_causal=False):
        raise AssertionError("it knows no windows")

"""Attention over the row in torch's kernels for a CPU, beside SDPA on copies with a mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dpo_recipes.shared_prefix import cpu_attention
from dpo_recipes.shared_prefix.cpu_attention import attend, can_attend
from dpo_recipes.shared_prefix.layout import Queries, Stretch

HEADS, SIZE = 4, 8
# Three pairs: with a prefix, with none, and with a rejected answer of one token behind all of chosen but its last.
STRETCHES = [
    Stretch(0, 20, prefix=0, shared=0),
    Stretch(20, 26, prefix=0, shared=15),
    Stretch(26, 40, prefix=26, shared=0),
    Stretch(40, 49, prefix=26, shared=0),
    Stretch(49, 60, prefix=49, shared=0),
    Stretch(60, 61, prefix=49, shared=10),
]
# The last layer: of the first chosen answer and the second the first tokens are not read.
ENDINGS = [
    Stretch(12, 20, prefix=0, shared=12),
    Stretch(20, 26, prefix=0, shared=15),
    Stretch(33, 40, prefix=26, shared=7),
    Stretch(40, 49, prefix=26, shared=0),
    Stretch(60, 60, prefix=49, shared=11),
    Stretch(60, 61, prefix=49, shared=10),
]
TOKENS = 61


def tensors(queries, groups, dtype):
    generator = torch.Generator().manual_seed(0)

    def draw(heads, tokens):
        return torch.randn(1, heads, tokens, SIZE, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    asking = sum(stretch.queries for stretch in queries.stretches)
    return draw(HEADS, asking), draw(groups, TOKENS), draw(groups, TOKENS)


def with_a_mask(queries, query, key, value, scale):
    """The same by SDPA, stretch by stretch."""
    key = key.repeat_interleave(HEADS // key.size(1), 1)
    value = value.repeat_interleave(HEADS // value.size(1), 1)
    outputs = []
    end = 0
    for stretch in queries.stretches:
        start, end = end, end + stretch.queries
        seen = [*range(stretch.prefix, stretch.prefix + stretch.shared), *range(stretch.start, stretch.stop)]
        mask = torch.ones(stretch.queries, stretch.keys, dtype=torch.bool).tril(stretch.shared)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end], key[:, :, seen], value[:, :, seen], mask, scale=scale
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2)


@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize("stretches", [STRETCHES, ENDINGS], ids=["whole", "ending"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_answers_and_gradients_are_those_of_sdpa_with_a_mask(dtype, bound, stretches, groups):
    queries = Queries(stretches)
    inputs = tensors(queries, groups, dtype)
    theirs = with_a_mask(queries, *inputs, scale=0.3)
    ours = attend(queries, *inputs, scale=0.3)
    assert ours.shape == theirs.shape and ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)

    weights = torch.linspace(-1, 1, ours.numel(), dtype=dtype).view(ours.shape)
    for a, b in zip(
        torch.autograd.grad((theirs * weights).sum(), inputs),
        torch.autograd.grad((ours * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(b, a, rtol=bound, atol=4 * bound)


@pytest.mark.parametrize("stretches", [STRETCHES, ENDINGS], ids=["whole", "ending"])
def test_under_autocast_all_three_are_taken_in_its_dtype_as_sdpa_does(stretches):
    """Behind rotary embeddings queries and keys have 32 bits there, and values have 16."""
    queries = Queries(stretches)
    query, key, value = tensors(queries, 2, torch.float32)
    halved = value.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert can_attend(queries, query, key, halved, {})
        theirs = with_a_mask(queries, query, key, halved, scale=0.3)
        ours = attend(queries, query, key, halved, scale=0.3)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)

    weights = torch.linspace(-1, 1, ours.numel()).view(ours.shape)
    found = torch.autograd.grad((ours * weights).sum(), (query, key, value))
    exact = tensors(queries, 2, torch.float32)
    truth = torch.autograd.grad((with_a_mask(queries, *exact, scale=0.3) * weights).sum(), exact)
    rounded = torch.autograd.grad((theirs * weights).sum(), (query, key, value))
    for a, b, c in zip(truth, found, rounded, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() <= 1.2 * (a - c).norm() <= 0.02 * a.norm()


def test_of_16_bits_only_what_is_long_and_causal_goes_backward_in_16(monkeypatch):
    """The others are faster in 32. Either way the gradients are as near to the exact ones as SDPA's."""
    queries = Queries(STRETCHES)
    inputs = tensors(queries, 2, torch.bfloat16)
    called = []
    kernel = cpu_attention._flash_backward

    def noting(gradient, query, keys, *given, **options):
        called.append((query.size(2), keys.size(2), query.dtype))
        return kernel(gradient, query, keys, *given, **options)

    monkeypatch.setattr(cpu_attention, "_flash_backward", noting)
    monkeypatch.setattr(cpu_attention, "LONG_IN_16_BITS", 11)
    ours = attend(queries, *inputs, scale=0.3)
    weights = torch.linspace(-1, 1, ours.numel()).view(ours.shape)
    found = torch.autograd.grad((ours * weights).sum(), inputs)
    in_16_bits = [(asking, seen) for asking, seen, dtype in called if dtype == torch.bfloat16]
    in_32_bits = [(asking, seen) for asking, seen, dtype in called if dtype == torch.float32]
    assert in_16_bits == [(20, 20), (14, 14), (11, 11)]
    assert in_32_bits == [(6, 15), (6, 6), (9, 9), (1, 10), (1, 1)]

    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    truth = torch.autograd.grad((with_a_mask(queries, *exact, scale=0.3) * weights).sum(), exact)
    rounded = torch.autograd.grad((with_a_mask(queries, *inputs, scale=0.3) * weights).sum(), inputs)
    for a, b, c in zip(truth, found, rounded, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b).norm() <= 1.2 * (a - c).norm() <= 0.02 * a.norm()


def test_under_autocast_64_bits_stay():
    queries = Queries(STRETCHES)
    inputs = tensors(queries, 2, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert can_attend(queries, *inputs, {})
        assert attend(queries, *inputs, scale=0.3).dtype == torch.float64


def test_nothing_is_held_for_backward_but_what_came_and_what_went():
    queries = Queries(STRETCHES)
    query, key, value = tensors(queries, 2, torch.float32)
    numbers = 0

    def hold(tensor):
        nonlocal numbers
        numbers += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        attend(queries, query, key, value, None)
    output = query.numel()
    log_sums = HEADS * query.size(2)
    assert numbers == query.numel() + key.numel() + value.numel() + output + log_sums


def test_what_the_kernels_cannot_do_is_left_to_others():
    queries = Queries(STRETCHES)
    inputs = tensors(queries, 2, torch.float32)
    assert can_attend(queries, *inputs, {})
    assert can_attend(queries, *inputs, {"sliding_window": 21})  # which no stretch is longer than
    assert not can_attend(queries, *inputs, {"sliding_window": 20})
    assert not can_attend(queries, *inputs, {"s_aux": torch.zeros(HEADS)})
    query, key, value = inputs
    assert not can_attend(queries, query, key, value[..., :4], {})
    assert not can_attend(queries, query, key.bfloat16(), value, {})

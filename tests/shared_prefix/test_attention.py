"""Attention over the row, in the kernels that take it in one call and in those that cannot."""

from __future__ import annotations

import inspect

import pytest
import torch
from reading_pairs import ARCHITECTURES, BATCH, compare, load, two
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from varlen_in_torch import Varlen, bottom_right

from dpo_recipes.shared_prefix import attention
from dpo_recipes.shared_prefix.layout import Row


def flash(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    sliding_window=None,
    cu_seq_lens_q=None,
    cu_seq_lens_k=None,
    max_length_q=None,
    max_length_k=None,
    **given,
):
    """flash_attention_2 as Transformers calls it: with the borders of a varlen call, or on a padded batch."""
    if cu_seq_lens_q is not None:
        assert max_length_q == cu_seq_lens_q.diff().max() and max_length_k == cu_seq_lens_k.diff().max()
        assert cu_seq_lens_k[-1] == key.size(2) and cu_seq_lens_k.dtype == torch.int32 and attention_mask is None
        flash.calls += 1
        return bottom_right(query, key, value, cu_seq_lens_q, cu_seq_lens_k, sliding_window, scaling), None
    ahead = torch.arange(key.size(2)) - torch.arange(key.size(2))[:, None]
    mask = ((ahead <= 0) & (ahead > -(sliding_window or key.size(2))))[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None] | (ahead == 0)
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_flash_attention_takes_the_row_in_one_call(tiny, kind):
    AttentionInterface.register("flash_attention_2", flash)
    model = load(tiny(kind, **ARCHITECTURES[kind]))
    model.config._attn_implementation = "flash_attention_2"
    flash.calls = 0
    logps, gradient = compare(*two(model, require=True)[:2], BATCH)
    assert logps <= 5e-6 and gradient <= 5e-6 and flash.calls == 2


@pytest.fixture
def varlen(monkeypatch):
    """A kernel that takes 32 bits and stands on every device."""
    kernel = Varlen()
    monkeypatch.setattr(attention, "_has_flash_kernels", lambda device: True)
    monkeypatch.setattr(attention, "VARLEN_DTYPES", {torch.float32, torch.bfloat16})
    monkeypatch.setattr(attention, "varlen", kernel.of_torch_2_12)
    return kernel


@pytest.mark.parametrize("version", ["2_11", "2_12"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_torchs_varlen_kernel_takes_the_row_in_one_call(tiny, kind, version, varlen, monkeypatch):
    monkeypatch.setattr(attention, "varlen", getattr(varlen, f"of_torch_{version}"))
    logps, gradient = compare(*two(load(tiny(kind, **ARCHITECTURES[kind])), require=True)[:2], BATCH)
    assert logps <= 5e-6 and gradient <= 5e-6 and varlen.calls == 2


def test_a_varlen_kernel_without_windows_is_not_called(tiny, varlen, monkeypatch):
    monkeypatch.setattr(attention, "varlen", varlen.of_torch_2_10)
    logps, gradient = compare(*two(load(tiny()), require=True)[:2], BATCH)
    assert logps <= 5e-6 and gradient <= 5e-6


def test_under_autocast_the_varlen_kernel_is_given_16_bits(tiny, varlen):
    """Behind rotary embeddings the queries and keys of weights in 32 bits have 32, which the kernel does not take."""
    _, mine, said = two(load(tiny()), require=True)
    with torch.autocast("cpu", torch.bfloat16):
        mine(**BATCH).log_probs.sum().backward()
    assert varlen.dtypes == {torch.bfloat16} and varlen.calls == 2
    assert "read once" in said[0]


def test_the_varlen_kernel_of_this_torch_takes_what_it_is_given():
    """The call as it is made: with windows and, since torch 2.12, groups of heads."""
    kernel = pytest.importorskip("torch.nn.attention.varlen", reason="since torch 2.10").varlen_attn
    names = inspect.signature(kernel).parameters
    if "window_size" in names:
        of_groups = {"enable_gqa": True} if "enable_gqa" in names else {}
        tensor = torch.ones(1)
        call = inspect.signature(kernel).bind(*[tensor] * 5, 1, 1, scale=None, window_size=(-1, 0), **of_groups)
        assert list(call.arguments)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"attention_mask": torch.ones(1, 1, 2, 2)}, "a mask or a bias of its own"),
        ({"position_bias": torch.ones(1)}, "a mask or a bias of its own"),
        ({"dropout": 0.1}, "attention dropout is on"),
    ],
    ids=["mask", "bias", "dropout"],
)
def test_what_the_row_would_lose_is_refused(given, reason):
    row = Row.of(**BATCH)
    split = attention.split_attention(sdpa_attention_forward, "sdpa")
    tensor = torch.ones(1, 2, row.tokens.numel(), 4)
    with pytest.raises(ValueError, match=reason):
        split(None, tensor, tensor, tensor, pair_row=row, **given)

"""4-bit weights, as bitsandbytes makes them, against weights that are not packed."""

from __future__ import annotations

import bitsandbytes
import torch

from dpo_recipes.planning.packed_weights import count_numbers, is_packed, quantization_figures


def test_a_packed_weight_has_two_numbers_in_a_byte_and_figures_beside_it():
    weight = bitsandbytes.nn.Linear4bit(64, 32, bias=False, compress_statistics=True).to("cpu").weight
    assert is_packed(weight) and weight.numel() == 64 * 32 // 2
    assert count_numbers(weight) == 64 * 32
    state = weight.quant_state
    figures = [figure.data_ptr() for figure in quantization_figures(weight)]
    for figure in (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code):
        assert figure.data_ptr() in figures


def test_any_other_weight_is_its_numbers():
    weight = torch.nn.Linear(64, 32, bias=False).weight
    assert not is_packed(weight) and quantization_figures(weight) == []
    assert count_numbers(weight) == 64 * 32

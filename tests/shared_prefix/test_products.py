"""How torch multiplies on a CPU: the round numbers of rows, and what they are for."""

from __future__ import annotations

import pytest
import torch

from dpo_recipes.shared_prefix.products import product_dtype, round_number


@pytest.mark.parametrize(
    ("rows", "round_rows"),
    [(0, 0), (1, 32), (32, 32), (33, 64), (500, 512), (513, 544), (1024, 1024), (1025, 1088), (4097, 4160)],
)
def test_a_round_number_is_the_next_one(rows, round_rows):
    assert round_number(rows) == round_rows


def test_round_numbers_are_few_and_near():
    for rows in range(512, 9000):
        assert rows <= round_number(rows) <= rows * (1 + 1 / 16)
        assert round_number(round_number(rows)) == round_number(rows)
    assert len({round_number(rows) for rows in range(1, 1025)}) == 32
    assert len({round_number(rows) for rows in range(1025, 3073)}) == 32


def test_what_a_row_has_suffices_to_make_a_part_of_it_round():
    for tokens in range(1, 2200, 7):
        assert all(round_number(part) <= round_number(tokens) for part in range(tokens + 1))


def test_the_type_of_a_product_is_that_of_autocast_where_it_is_on():
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert product_dtype(single) is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(single) is torch.bfloat16 and product_dtype(double) is torch.float64

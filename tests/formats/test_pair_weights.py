"""What a pair weighs, by its row and by its messages."""

from __future__ import annotations

import pytest
from making import said

from dpo_recipes.formats.messages import Drop
from dpo_recipes.formats.pair_weights import weight_of_replies, weight_of_row, without_weights


@pytest.mark.parametrize(("value", "weight"), [(None, 1), ("", 1), ("2.5", 2.5), (3, 3), (1e-3, 1e-3)])
def test_the_weight_of_a_row(value, weight):
    assert weight_of_row({"weight": value}) == weight and weight_of_row({}) == 1


@pytest.mark.parametrize("value", [-1, "-0.5", float("nan"), "nan", float("inf"), "high", True, [1], {"w": 1}])
def test_what_is_no_weight(value):
    with pytest.raises(Drop, match="malformed: weight is not a number of 0 or more"):
        weight_of_row({"weight": value})
    with pytest.raises(Drop, match="malformed: loss_weight is not a number of 0 or more"):
        weight_of_replies([said("a", loss_weight=value)], [said("b")])


def test_a_weight_of_0_is_a_reason_of_its_own():
    for zero in (0, 0.0, "0"):
        with pytest.raises(Drop, match="^weight is 0$"):
            weight_of_row({"weight": zero})
        with pytest.raises(Drop, match="^weight is 0$"):
            weight_of_replies([said("a", loss_weight=zero)], [said("b", loss_weight=0)])


def test_the_weight_of_replies_is_one_number():
    tool = {"role": "tool", "content": "noon", "loss_weight": 0.0}
    assert weight_of_replies([said("a")], [said("b")]) == 1
    assert weight_of_replies([said("a", loss_weight=1), tool, said("c", loss_weight="1.0")], [said("b")]) == 1
    assert weight_of_replies([said("a", loss_weight=0.5)], [said("b", loss_weight=0.5)]) == 0.5
    for chosen in ([said("a", loss_weight=1.0)], [said("a", loss_weight=0.0), said("c", loss_weight=0.5)]):
        with pytest.raises(Drop, match="malformed: loss_weight differs between the replies of a pair"):
            weight_of_replies(chosen, [said("b", loss_weight=0.5)])


def test_a_template_sees_no_weights():
    plain = [said("a")]
    assert without_weights([said("a", loss_weight=1)]) == plain and without_weights(plain) is plain

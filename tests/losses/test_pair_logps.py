"""What a plugin loss sees: the log-ratios of six tensors."""

from __future__ import annotations

import pytest
import torch
from making import make_random_pair_logps

from dpo_recipes.losses.pair_logps import PairLogps


def test_pair_logps_derives_log_ratios():
    pairs = make_random_pair_logps(4)
    torch.testing.assert_close(pairs.chosen_logratios, pairs.policy_chosen - pairs.reference_chosen)
    torch.testing.assert_close(pairs.rejected_logratios, pairs.policy_rejected - pairs.reference_rejected)
    torch.testing.assert_close(pairs.h, pairs.chosen_logratios - pairs.rejected_logratios)


def test_pair_logps_maps_all_six_tensors():
    halved = make_random_pair_logps(4).map(lambda tensor: tensor[:2])
    assert [len(tensor) for tensor in vars(halved).values()] == [2] * 6


def test_pair_logps_takes_its_tensors_by_name_only():
    with pytest.raises(TypeError):
        PairLogps(*vars(make_random_pair_logps(4)).values())

"""What is alive, counted as it comes and goes, without a model."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dpo_recipes.planning.live_bytes import Live


def test_the_worst_moment_is_kept_with_its_parts_when_what_made_it_is_gone():
    with FakeTensorMode(), Live() as live:
        live.moment = "first"
        weights = live.add(torch.empty(100), "weights")
        large = torch.empty(1000)
        live.moment = "second"
        del large
        small = torch.empty(10)
    assert live.worst.total == 4400 and live.worst.name == "first"
    assert live.worst.parts == {"weights": 400, "activations": 4000}
    assert +live.now == {"weights": weights.nbytes, "activations": small.nbytes}


def test_a_storage_counts_once_and_as_the_part_that_it_was_last_said_to_be():
    with FakeTensorMode(), Live() as live:
        tensor = torch.empty(100)
        view = tensor.view(10, 10)
        assert live.now.total() == 400
        live.add(view, "gradients")
    assert +live.now == {"gradients": 400}


def test_of_what_is_spread_over_devices_the_worst_moment_has_a_share_and_the_count_the_whole():
    with FakeTensorMode(), Live(divided_by={"gradients": 4}) as live:
        held = live.add(torch.zeros(100), "gradients")
    assert live.now["gradients"] == held.nbytes == 400
    live.worst = live.worst._replace(total=0)  # it was whole while it was made
    live.look()
    assert live.worst.total == 100 and live.worst.parts["gradients"] == 400

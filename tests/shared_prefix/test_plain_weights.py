"""A weight that is read where it lies has all of its numbers there."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from dpo_recipes.shared_prefix.plain_weights import is_plain


def test_a_parameter_is_plain_on_paper_too():
    assert is_plain(nn.Linear(2, 3).weight)
    with FakeTensorMode():
        assert is_plain(nn.Linear(2, 3).weight)


def test_what_is_divided_or_gathered_is_not(tmp_path):
    gathered = nn.Linear(2, 3).weight
    gathered.ds_id = 1
    assert not is_plain(gathered)
    assert not is_plain(torch.zeros(3, 2))  # a view of what FSDP1 has flattened

    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        divided = nn.Parameter(distribute_tensor(torch.zeros(3, 2), init_device_mesh("cpu", (1,))))
        assert isinstance(divided, nn.Parameter) and not is_plain(divided)
    finally:
        torch.distributed.destroy_process_group()

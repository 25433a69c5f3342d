"""Where a run trains, and what is refused or switched off there."""

from __future__ import annotations

import pytest
import torch

from dpo_recipes.errors import RecipeError
from dpo_recipes.models import device as device_module
from dpo_recipes.models.device import device
from dpo_recipes.recipe.resolve import Device


def test_device_is_the_cpu_here_and_says_nothing():
    said: list[str] = []
    assert device(said.append) == Device() and said == []


def test_cudnn_attention_is_switched_off_on_cuda_where_its_gradients_can_be_nan(monkeypatch):
    said: list[str] = []
    switched: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    for version in ("2.13.0+cu130", "2.11.0", "2.10.1", "2.9.0"):
        monkeypatch.setattr(torch, "__version__", version)
        assert device(said.append).kind == "cuda"
    assert switched == [False, False] and "cuDNN attention is off" in said[0]


def test_several_gpus_or_processes_are_refused_with_what_to_set(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(
        RecipeError, match="To train on all of them: dpo-recipes train mine --launch ddp. To use one: CUDA"
    ):
        device(name="mine")
    monkeypatch.setattr(device_module, "Device", lambda: Device(processes=2))
    with pytest.raises(RecipeError, match="Only `train` works in several processes, and a launcher has started 2"):
        device()
    assert device(use_cpu=True, with_others=True).processes == 2

"""How many positions' logits are held at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dpo_recipes.evaluation.logits import tokens_of_a_batch


def model_of(vocabulary: int, device: str) -> SimpleNamespace:
    text = SimpleNamespace(vocab_size=vocabulary)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text), device=torch.device(device))


@pytest.mark.parametrize(("device", "megabytes"), [("cpu", 134.2), ("cuda", 536.9)])
def test_logits_of_a_batch_have_so_many_bytes_at_most(device, megabytes):
    positions = tokens_of_a_batch(model_of(49_152, device))
    assert 4 * 49_152 * positions == pytest.approx(megabytes * 1e6, rel=1e-3)

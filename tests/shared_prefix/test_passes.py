"""Passes over pairs that train nothing, the reference's and that over held-out pairs: no padding, no prompt twice."""

from __future__ import annotations

import os

import pytest
import torch
from in_processes import make_trainer

from dpo_recipes import LoRA


@pytest.fixture
def read(monkeypatch, tmp_path) -> list[torch.Size]:
    """The shapes of all token ids that reach a model, and a cache of reference log-probabilities that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shapes: list[torch.Size] = []
    embed = torch.nn.Embedding.forward

    def recorded(self, ids):
        shapes.append(ids.shape)
        return embed(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", recorded)
    return shapes


def tokens_read_once(pairs) -> int:
    """Of both sides of all pairs, with what they begin with once."""
    total = 0
    for pair in pairs:
        chosen = pair["prompt_ids"] + pair["chosen_ids"]
        rejected = pair["prompt_ids"] + pair["rejected_ids"]
        total += len(chosen) + len(rejected) - len(os.path.commonprefix([chosen, rejected]))
    return total


@pytest.mark.parametrize("adapter", [None, LoRA(r=4)], ids=["full", "LoRA"])
def test_each_token_is_read_once(tiny, tmp_path, read, adapter):
    trainer, said = make_trainer(tiny(), tmp_path, "ddp", adapter=adapter, pair_sharing="require")
    splits = (trainer.train_dataset, trainer.eval_dataset)

    # The reference: the first batch is read in TRL's way too, to compare.
    in_trls_way = [shape for shape in read if shape[0] > 1]
    in_rows = [shape.numel() for shape in read if shape[0] == 1]
    assert len(in_trls_way) == 1 and sum(in_rows) == sum(tokens_read_once(split) for split in splits)
    assert "Each pair is read once" in said[0]

    read.clear()
    trainer.held_out()
    assert sum(shape.numel() for shape in read) == tokens_read_once(trainer.eval_dataset)
    assert all(shape[0] == 1 for shape in read)

"""What trainers write goes into a folder of the test's own, the reference cache too."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_recipes.training import trainer as ours


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where the reference is kept: another test may have left the same, computed in batches that round otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "dpo-recipes" / "reference"


@pytest.fixture
def forwards(monkeypatch) -> list[int]:
    """Pairs of each reference forward."""
    counted: list[int] = []
    plain = ours.DPOTrainer.compute_ref_log_probs

    def count(self, model, inputs):
        counted.append(len(inputs["input_ids"]) // 2)
        return plain(self, model, inputs)

    monkeypatch.setattr(ours.DPOTrainer, "compute_ref_log_probs", count)
    return counted

"""What holds for every test of reading pairs once."""

from __future__ import annotations

import pytest
from transformers import AttentionInterface


@pytest.fixture(autouse=True)
def _attention_as_it_was(monkeypatch):
    """What `share` registers is for the process: undone here, so that no test leans on another."""
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))

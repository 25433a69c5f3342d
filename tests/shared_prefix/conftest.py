"""What holds for every test of reading pairs once."""

from __future__ import annotations

import sys

import pytest
from transformers import AttentionInterface

from dpo_recipes.shared_prefix.forward import EAGER


@pytest.fixture
def count_calls(monkeypatch):
    """Lets a function of autograd, a class, note each of its calls in the list that is returned."""

    def noting(function):
        calls = []
        apply = function.apply

        def noted(*given):
            calls.append(function.__name__)
            return apply(*given)

        monkeypatch.setattr(function, "apply", noted)
        return calls

    return noting


@pytest.fixture(autouse=True)
def _attention_as_it_was(monkeypatch):
    """What `share` registers is for the process: undone here, so that no test leans on another."""
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    yield
    for name, file in list(sys.modules.items()):
        if name.startswith("transformers.models."):
            kernel = vars(file).get(EAGER)
            if hasattr(kernel, "reads_pairs"):
                setattr(file, EAGER, kernel.__wrapped__)

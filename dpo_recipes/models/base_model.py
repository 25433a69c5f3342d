"""The causal LM under its adapters, found without the libraries of either: what plans a run imports this early."""

from __future__ import annotations

from typing import Any


def without_adapters(model: Any) -> Any:
    """The causal LM under its adapters; a model without any is that itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model

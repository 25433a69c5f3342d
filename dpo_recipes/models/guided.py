"""Replies drawn from two models at once: from a mix of their logits.

Leans on Transformers 5.23: `UnbatchedClassifierFreeGuidanceLogitsProcessor`, which asks its model once a token as
`model(input_ids, attention_mask=, use_cache=, past_key_values=)`, and leaves the policy's logits alone where the scale
is 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import LogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor

from .base_model import without_adapters
from .generate import Guide


def guided_by(reference: Callable[[], AbstractContextManager[Any]], factor: float) -> Guide:
    """The logits ref + factor * (policy - ref) in place of the policy's, up to a constant for each token.

    `reference` lends the other model for a forward, as `Reference.model` does.
    """

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        # `generate` counts positions from a prompt's first token; a forward alone would count its padding too.
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        with reference() as model:
            if "position_ids" in inspect.signature(without_adapters(model).forward).parameters:
                options["position_ids"] = positions
            return model(input_ids=input_ids, attention_mask=attention_mask, **options)

    def guide(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> LogitsProcessor:
        lent: Any = forward  # it is called, and asked for nothing else
        ids: Any = input_ids
        mask: Any = attention_mask
        return UnbatchedClassifierFreeGuidanceLogitsProcessor(
            guidance_scale=factor, model=lent, unconditional_ids=ids, unconditional_attention_mask=mask
        )

    return guide

"""The logits of whole sequences: of a model that is at hand, or of one that is lent for a forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

# (input_ids, attention_mask), both (batch, length) -> logits (batch, length, vocabulary)
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Lend = Callable[[], AbstractContextManager[Any]]  # lends a model, as Reference.model does

LARGEST_LOGITS = 2**27  # numbers of a batch's logits: half a gigabyte in 32 bits, for each model that is compared
LARGEST_ON_A_CPU = 2**25  # which is no faster with more


def logits_of(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(batch, length, vocabulary) of tokens and their mask, wherever these are."""
    output = model(input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device))
    return output.logits


def lent_logits(lend: Lend) -> Logits:
    """The logits of a model that is lent anew for each batch."""

    def logits(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        with lend() as model:
            return logits_of(model, input_ids, attention_mask)

    return logits


def tokens_of_a_batch(model: Any) -> int:
    """How many positions, padding with them, whose logits may be held at once."""
    config = getattr(model, "config", None)
    vocabulary = getattr(config.get_text_config(), "vocab_size", None) if config is not None else None
    is_on_cpu = getattr(getattr(model, "device", None), "type", None) == "cpu"
    largest = LARGEST_ON_A_CPU if is_on_cpu else LARGEST_LOGITS
    return largest // (vocabulary or 1)

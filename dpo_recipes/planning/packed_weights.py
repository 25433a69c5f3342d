"""4-bit weights: two numbers in a byte, and figures beside them."""

from __future__ import annotations

import torch


def is_packed(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "quant_state")


def count_numbers(parameter: torch.Tensor) -> int:
    """The numbers that a parameter stands for, of which a 4-bit one has two in a byte."""
    return 2 * parameter.numel() if is_packed(parameter) else parameter.numel()


def quantization_figures(parameter: torch.Tensor) -> list[torch.Tensor]:
    """What a 4-bit parameter holds beside its numbers: scales and codes, which may be quantised once more."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    values = [*vars(state).values()]
    if state.state2 is not None:
        values += vars(state.state2).values()
    return [value for value in values if isinstance(value, torch.Tensor)]

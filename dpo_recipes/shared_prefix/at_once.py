"""Layers that compute as one step of autograd what the libraries write as many operations: fewer passes, less held."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import lora_linear, rms_norm


def compute_at_once(model: nn.Module) -> Callable[[], None]:
    """Let the layers of a model that can compute at once where gradients are taken; returns what undoes it."""
    changed = []
    for module in model.modules():
        at_once = lora_linear.forward_of(module) or rms_norm.forward_of(module)
        if at_once is not None:
            vars(module)["forward"] = types.MethodType(_where_gradients_are_taken(at_once), module)
            changed.append(module)

    def undo() -> None:
        for module in changed:
            vars(module).pop("forward", None)

    return undo


def _where_gradients_are_taken(at_once: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that is the library's own elsewhere, with which the first batch is compared.

    And where torch compiles a model: it joins operations itself.
    """

    @functools.wraps(at_once)
    def forward(module: Any, *args: Any, **given: Any) -> Any:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return type(module).forward(module, *args, **given)
        return at_once(module, *args, **given)

    return forward

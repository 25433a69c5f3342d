"""Layers that compute as one step of autograd what the libraries write as many operations: fewer passes, less held."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import lora_linear, rms_norm, rotary


def compute_at_once(model: nn.Module) -> Callable[[], None]:
    """Let the layers of a model that can compute at once where gradients are taken; returns what undoes it.

    A layer whose forward somebody has replaced, as accelerate's hooks and libraries of kernels do, is left as it is.
    """
    changed: dict[nn.Module, Any] = {}
    for module in model.modules():
        at_once = lora_linear.computing(module) or rms_norm.computing(module) or rotary.computing(module)
        if at_once is not None and "forward" not in vars(module):
            changed[module] = types.MethodType(_where_it_can(at_once), module)
            vars(module)["forward"] = changed[module]

    def undo() -> None:
        for module, forward in changed.items():
            if vars(module).get("forward") is forward:
                del vars(module)["forward"]
        changed.clear()

    return undo


def _where_it_can(at_once: Callable[..., Any]) -> Callable[..., Any]:
    """A forward by `at_once`, and by the library where that gives None or no gradient is taken.

    With the library's own the first batch is compared. Under reentrant checkpointing it is the first forward of a
    layer, and not the one that it computes again. And it is used where torch compiles a model, as that joins operations
    itself.
    """

    def forward(module: Any, *args: Any, **given: Any) -> Any:
        output = None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            output = at_once(module, *args, **given)
        return type(module).forward(module, *args, **given) if output is None else output

    return forward

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
    """Let the layers of a model that can compute at once where gradients are taken; returns what undoes it.

    A layer whose forward somebody has replaced, as accelerate's hooks and libraries of kernels do, is left as it is.
    """
    changed: dict[nn.Module, Any] = {}
    for module in model.modules():
        at_once = lora_linear.forward_of(module) or rms_norm.forward_of(module)
        if at_once is not None and "forward" not in vars(module):
            changed[module] = types.MethodType(_where_gradients_are_taken(at_once), module)
            vars(module)["forward"] = changed[module]

    def undo() -> None:
        for module, forward in changed.items():
            if vars(module).get("forward") is forward:
                del vars(module)["forward"]
        changed.clear()

    return undo


def _where_gradients_are_taken(at_once: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that is the library's own elsewhere, with which the first batch is compared.

    Under reentrant checkpointing that is the first forward of a layer, and not the one that it computes again. And it
    is the library's where torch compiles a model, which joins operations itself.
    """

    @functools.wraps(at_once)
    def forward(module: Any, *args: Any, **given: Any) -> Any:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return type(module).forward(module, *args, **given)
        return at_once(module, *args, **given)

    return forward

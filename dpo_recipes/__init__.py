"""Preference tuning recipes: one small Python file becomes a trained model, through Hugging Face TRL."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

# Nothing is sent unless asked; huggingface_hub reads this when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Public name -> (module, name in it); imported on first use, so that `import dpo_recipes` costs nothing.
_PUBLIC = {
    **{name: ("recipe", name) for name in ("Recipe", "Data", "LoRA", "QLoRA")},
    **{name: ("losses", name) for name in ("PairLogps", "conformance")},
    "load": ("catalogue", "load"), "list": ("catalogue", "rows"), "new": ("catalogue", "new"),
    "apply": ("overrides", "apply"), "show": ("settings", "show"), "RecipeError": ("errors", "RecipeError"),
    **{verb: (verb, verb) for verb in ("preview", "check", "doctor", "train")}, "Run": ("rundir", "Run"),
}  # fmt: skip
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dpo_recipes' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f".{module}", __name__), attribute)


class _Package(ModuleType):
    """A verb is a function that lives in a module of the same name; importing the module must not hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        own = isinstance(value, ModuleType) and _PUBLIC.get(name, ("",))[0] == name
        super().__setattr__(name, getattr(value, name) if own else value)


sys.modules[__name__].__class__ = _Package

"""Preference tuning recipes: one small Python file becomes a trained model, through Hugging Face TRL."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Nothing is sent unless asked; huggingface_hub reads this when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Public name -> the module it lives in and its name there. Imported on first use: `import dpo_recipes` is quick.
_PUBLIC = {
    "Recipe": ("recipe.recipe", "Recipe"),
    "Data": ("recipe.data", "Data"),
    "LoRA": ("recipe.adapters", "LoRA"),
    "QLoRA": ("recipe.adapters", "QLoRA"),
    "RewardModel": ("recipe.judges", "RewardModel"),
    "Endpoint": ("recipe.judges", "Endpoint"),
    "JudgeEndpoint": ("recipe.judges", "JudgeEndpoint"),
    "PairLogps": ("losses.pair_logps", "PairLogps"),
    "conformance": ("losses.conformance", "conformance"),
    "load": ("recipe.catalogue", "load"),
    "list": ("commands.recipes", "list_"),
    "new": ("commands.recipes", "new"),
    "apply": ("recipe.overrides", "apply"),
    "show": ("commands.show", "show"),
    "preview": ("commands.preview", "preview"),
    "check": ("commands.check", "check"),
    "doctor": ("commands.doctor", "doctor"),
    "train": ("commands.train", "train"),
    "pairs": ("commands.pairs", "pairs"),
    "rounds": ("commands.rounds", "rounds"),
    "evaluate": ("commands.evaluate", "evaluate"),
    "sweep": ("commands.sweep", "sweep"),
    "compare": ("commands.compare", "compare"),
    "chat": ("commands.chat", "chat"),
    "reference": ("commands.reference", "reference"),
    "export": ("commands.export", "export"),
    "bench": ("commands.bench", "bench"),
    "report": ("commands.report", "report"),
    "Run": ("runs.folder", "Run"),
    "RecipeError": ("errors", "RecipeError"),
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dpo_recipes' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f".{module}", __name__), attribute)

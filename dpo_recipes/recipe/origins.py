"""Every value of a recipe as it was resolved, and where it came from: default, mode, recipe file or command line."""

from typing import Any

from ..losses.selection import name_of, own_numbers
from .overrides import FREE
from .recipe import Data, LoRA, Recipe
from .resolve import Settings
from .validation import hints


def plain(value: Any) -> Any:
    """A recipe's value as JSON can hold it: functions by name, an adapter by its kind."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    return type(value).__name__ if isinstance(value, LoRA) else name_of(value) if callable(value) else value


def values_with_origins(recipe: Recipe, settings: Settings) -> dict[str, tuple[Any, str]]:
    """Dotted key -> (resolved value, origin): default, mode default, recipe file or command line."""
    adapter, data = recipe.adapter, recipe.data
    args = {n: d for f, _ in recipe.plugins.values() for n, d in own_numbers(f).items()} | recipe.loss_args
    own = {n: getattr(adapter, n) for n in hints(type(adapter))} if adapter else {}
    if adapter and adapter.continue_from:  # rank, alpha and modules are then the continued adapter's own
        own = {n: value for n, value in own.items() if n in ("continue_from", "double_quant")}
    parts = {"data": {n: getattr(data, n) for n in hints(Data)}, "adapter": own, "loss_args": args, "trl": recipe.trl}
    by_mode = vars(settings) | {
        "dtype": f"{settings.weights} weights" + (f", {settings.autocast} autocast" if settings.autocast else ""),
        "adapter.alpha": 2 * adapter.r if adapter else None,
    }
    found: dict[str, tuple[Any, str]] = {}
    for name in hints(Recipe):
        values = {} if name in ("data", "loss_args", "trl") else {name: getattr(recipe, name)}
        values |= {f"{name}.{n}": value for n, value in parts.get(name, {}).items()}
        for key, value in values.items():
            open_ = key in by_mode and value in (None, "auto")
            found[key] = (by_mode[key], "mode default") if open_ else (plain(value), origin(recipe, key))
    return found


def origin(recipe: Recipe, key: str) -> str:
    """Where the value of a dotted key came from: command line, recipe file or default."""
    head, _, name = key.rpartition(".")
    owner: Any = getattr(recipe, head) if head else recipe
    if key in recipe.cli_keys or any(k.startswith(f"{key}.") for k in recipe.cli_keys if head):
        return "command line"
    if name not in (owner if head in FREE else owner.given):
        return "default"
    return "command line" if head in FREE and head in recipe.cli_keys else "recipe file"

"""Every value of a recipe as it was resolved, and where it came from: default, mode, device, file or command line."""

from __future__ import annotations

from typing import Any, Literal

from ..losses.selection import name_of, own_numbers
from .adapters import LoRA
from .choices import CHOSEN, IN_STEPS
from .overrides import OPEN_DICTIONARIES
from .recipe import Recipe
from .resolve import Settings
from .validation import Value, field_types

Origin = Literal["default", "mode default", "chosen", "recipe file", "command line"]


WAS_SET: tuple[Origin, ...] = ("recipe file", "command line")  # and not left at a default


def values_with_origins(recipe: Recipe, settings: Settings) -> dict[str, tuple[Any, Origin]]:
    """Dotted key -> (resolved value, origin), every field of the recipe, its data and its adapter once."""
    decided = _decided_by_mode(recipe, settings)
    values: dict[str, tuple[Any, Origin]] = {}
    for key, value in _values(recipe).items():
        left_open = value is None or value == "auto"
        if left_open and key in decided:
            values[key] = (decided[key], CHOSEN if key in recipe.reasons else "mode default")
        else:
            values[key] = (plain(value), origin(recipe, key))
    if IN_STEPS in recipe.reasons:  # which no field holds
        values[IN_STEPS] = (False, CHOSEN)
    return values


def origin(recipe: Recipe, key: str) -> Origin:
    """Where the value of a dotted key came from: the choice for a device, command line, recipe file or default."""
    if key in recipe.reasons:
        return CHOSEN
    if key in recipe.cli_keys:
        return "command line"

    owner, _, name = key.rpartition(".")
    if owner in OPEN_DICTIONARIES:
        if name not in getattr(recipe, owner):
            return "default"
        return "command line" if owner in recipe.cli_keys else "recipe file"  # set as a whole

    if key in OPEN_DICTIONARIES and any(part.startswith(f"{key}.") for part in recipe.cli_keys):
        return "command line"
    value: Value = getattr(recipe, owner) if owner else recipe
    return "recipe file" if name in value.given else "default"


def plain(value: Any) -> Any:
    """A recipe's value as JSON can hold it: functions by name, an adapter by its kind."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, LoRA):
        return type(value).__name__
    if isinstance(value, Value):  # a reward model, a judge
        return repr(value)
    if callable(value):
        return name_of(value)
    return value


def _values(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value as the recipe holds it, in the order of the recipe's fields."""
    values: dict[str, Any] = {}
    for name in field_types(Recipe):
        value = getattr(recipe, name)
        if name == "data":
            values |= _under("data", _fields(value))
        elif name == "adapter":
            values["adapter"] = value
            values |= _under("adapter", _adapter_fields(value))
        elif name == "loss_args":
            values |= _under("loss_args", _numbers_of_plugins(recipe) | value)
        elif name in ("trl", "rules"):
            values |= _under(name, value)
        else:
            values[name] = value
    return values


def _under(owner: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{owner}.{name}": value for name, value in values.items()}


def _fields(value: Value) -> dict[str, Any]:
    return {name: getattr(value, name) for name in field_types(type(value))}


def _adapter_fields(adapter: LoRA | None) -> dict[str, Any]:
    if adapter is None:
        return {}
    values = _fields(adapter)
    if adapter.continue_from:  # rank, alpha and modules are then the continued adapter's own
        return {name: value for name, value in values.items() if name in ("continue_from", "double_quant")}
    return values


def _numbers_of_plugins(recipe: Recipe) -> dict[str, Any]:
    """The numbers that the plugin losses take, with their defaults."""
    numbers: dict[str, Any] = {}
    for loss, _weight in recipe.plugins.values():
        numbers |= own_numbers(loss)
    return numbers


def _decided_by_mode(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Dotted key -> what became of it, of the values that a recipe may leave open."""
    precision = f"{settings.weights} weights"
    if settings.autocast:
        precision += f", {settings.autocast} autocast"
    decided: dict[str, Any] = {
        "reference": settings.reference,
        "learning_rate": settings.learning_rate,
        "micro_batch_size": settings.micro_batch_size,
        "dtype": precision,
    }
    if recipe.adapter is not None:
        decided["adapter.alpha"] = 2 * recipe.adapter.r
    return decided

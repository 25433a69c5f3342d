"""Which losses a recipe chooses, by name or as functions, with their numbers; and what cannot be chosen."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import RecipeError, UsageError, nearest
from .plugins import PLUGIN_LOSSES, Loss
from .trl_losses import TRL_LOSSES

KNOWN = (*TRL_LOSSES, *PLUGIN_LOSSES)
REQUIRED = inspect.Parameter.empty  # the default of a number that has none


def name_of(loss: str | Callable[..., Any]) -> str:
    """The name a loss, or any function, goes by in a recipe, in files and in messages."""
    if isinstance(loss, str):
        return loss
    return getattr(loss, "__name__", repr(loss))


def function_of(loss: str | Loss) -> Loss | None:
    """The function of a plugin loss; None for TRL's."""
    if isinstance(loss, str):
        return PLUGIN_LOSSES.get(loss)
    return loss


def own_numbers(loss: Loss) -> dict[str, Any]:
    """The keyword numbers a plugin loss takes besides `beta`, with their defaults; RecipeError if it is no loss."""
    name = name_of(loss)
    if inspect.isclass(loss):
        raise RecipeError(f"The loss {name} is a class, and a loss is a function: `def name(pairs, *, beta, ...)`.")
    if isinstance(loss, functools.partial):
        raise RecipeError(
            f"The loss {name} is a partial, which has no name: give the function itself, and its numbers as loss_args."
        )
    parameters = _parameters_of(loss)
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    after_the_pairs = [p.name for p in parameters[1:]]
    if not name.isidentifier() or "beta" not in keywords or list(keywords) != after_the_pairs:
        raise RecipeError(
            f"The loss {name}{inspect.Signature(parameters)} must be written `def name(pairs, *, beta, ...)`, "
            "with a name for each of its own numbers."
        )
    return {number: default for number, default in keywords.items() if number != "beta"}


def _parameters_of(loss: Loss) -> list[inspect.Parameter]:
    """The parameters of a function as a message shows them, without their types; none where it has no signature."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # it is no function, or one written in C
        return []
    return [p.replace(annotation=p.empty) for p in signature.parameters.values()]


def at_start(loss: Loss, beta: float, loss_args: Mapping[str, Any]) -> float | None:
    """The declared value of a plugin loss where the policy still equals its reference; None when it has none."""
    declared = getattr(loss, "at_start", None)
    if declared is None:
        return None
    numbers = {**own_numbers(loss), **loss_args}
    return float(declared(beta, **numbers))


def refuse_impossible_losses(weights: Mapping[Any, float], loss_args: Mapping[str, Any]) -> None:
    """Refuse losses that do not exist or share a name, weights that are not positive, and numbers no loss reads."""
    names = [name_of(loss) for loss in weights]
    accepted_numbers: dict[str, Any] = {}
    for loss, weight in weights.items():
        _refuse_unknown_name(loss)
        _refuse_weight(name_of(loss), weight)
        _refuse_shared_name(loss, names)
        function = function_of(loss)
        if function is not None:
            accepted_numbers |= own_numbers(function)

    for number, value in loss_args.items():
        _refuse_number(number, value, accepted_numbers, names)
    for number, default in accepted_numbers.items():
        if default is REQUIRED and number not in loss_args:
            raise UsageError(f"Recipe.loss_args.{number} must be given: the loss has no default for it.")


def _refuse_unknown_name(loss: str | Loss) -> None:
    if not isinstance(loss, str) or loss in KNOWN:
        return
    hint = " Plain DPO is 'sigmoid'." if loss == "dpo" else nearest(loss, KNOWN)
    raise UsageError(
        f"Recipe.loss={loss!r} is neither TRL's nor ours.{hint} Known: {', '.join(KNOWN)}; "
        "a mix of several is {'sigmoid': 1.0, 'sft': 0.1}."
    )


def _refuse_weight(name: str, weight: float) -> None:
    if not 0 < weight < math.inf:
        raise UsageError(f"Recipe.loss gives {name!r} the weight {weight!r}: weights are positive, finite numbers.")


def _refuse_shared_name(loss: str | Loss, names: list[str]) -> None:
    """A name stands for one loss: in the log, in the run folder, and for whoever reads the recipe."""
    name = name_of(loss)
    chosen_twice = names.count(name) > 1
    takes_a_known_name = name in KNOWN and not isinstance(loss, str) and loss is not PLUGIN_LOSSES.get(name)
    if chosen_twice or takes_a_known_name:
        raise UsageError(f"Recipe.loss: two losses go by the name {name!r}: give your function another one.")


def _refuse_number(number: str, value: Any, accepted: Mapping[str, Any], names: list[str]) -> None:
    """Refuse a number that no chosen loss reads, and one of the wrong type or range."""
    shown = f"Recipe.loss_args.{number}={value!r}"
    if number not in accepted:
        hint = nearest(number, accepted) or " TRL's losses take theirs in trl={...}."
        raise UsageError(f"{shown} is read by no loss of {sorted(names)}.{hint}")

    default = accepted[number]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(default, (bool, str)):
        if not isinstance(value, type(default)):
            word = "true or false" if isinstance(default, bool) else "text"
            raise UsageError(f"{shown} has the wrong type: expected {word} such as {default!r}, its default.")
    elif isinstance(default, (int, float)) and not is_number:
        raise UsageError(f"{shown} has the wrong type: expected a number such as {default!r}, its default.")
    if number == "label_smoothing" and not (is_number and 0 <= value < 0.5):
        raise UsageError(f"{shown} must lie in [0, 0.5).")

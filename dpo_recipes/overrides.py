"""`key=value` on the command line -> a changed recipe, typed from the dataclass; and where every value came from."""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Sequence
from typing import Any

from . import dpoconfig
from .errors import UsageError, nearest
from .recipe import Data, LoRA, QLoRA, Recipe, expected, fits, hints

ADAPTERS: dict[str, type[LoRA] | None] = {"none": None, "lora": LoRA, "qlora": QLoRA}
WORDS = {"true": True, "false": False, "none": None, "null": None}


def apply(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with each `key=value` applied: `beta=0.05`, `adapter.r=64`, `data.train=train`, `trl.save_steps=50`.

    `adapter=none|lora|qlora` chooses the adapter and keeps the numbers that the recipe gave it. Raises UsageError for
    an unknown key (with the nearest one), a key set twice, and a value of the wrong type (with the expected form).
    """
    pairs = _pairs(recipe, assignments)
    typed = frozenset(pairs)
    changes: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    adapter = recipe.adapter
    if "adapter" in pairs:
        changes["adapter"] = adapter = _adapter(pairs.pop("adapter"), adapter)
    for key, text in pairs.items():
        head, _, rest = key.partition(".")
        if head in hints(Recipe) and not rest and head not in ("data", "trl") and "." not in key:
            changes[head] = parse(text, hints(Recipe)[head], key)
        elif head == "trl" and rest:
            nested.setdefault(head, dict(recipe.trl))[rest] = _option(text, rest)
        elif head == "loss_args" and rest:
            nested.setdefault(head, dict(recipe.loss_args))[rest] = literal(text)
        elif key.startswith("data.chat_template_kwargs.") and (name := rest.partition(".")[2]):
            own = nested.setdefault("data", {})
            own.setdefault("chat_template_kwargs", dict(recipe.data.chat_template_kwargs))[name] = literal(text)
        elif head == "data" and rest in hints(Data):
            nested.setdefault(head, {})[rest] = parse(text, hints(Data)[rest], key)
        elif head == "adapter" and adapter is not None and rest in hints(type(adapter)):
            nested.setdefault(head, {})[rest] = parse(text, hints(type(adapter))[rest], key)
        else:
            raise UsageError(_unknown(key, adapter, recipe))
    for head, values in nested.items():
        if head in ("trl", "loss_args"):
            changes[head] = values
        elif head == "data":
            changes[head] = recipe.data.evolve(**values)
        elif adapter is not None:  # a continued adapter brings its own rank, so the recipe's gives way
            theirs = adapter.given - {"double_quant"} if values.get("continue_from") else frozenset()
            changes[head] = adapter.evolve(*theirs, **values)
    # A length in steps takes the place of the recipe's length in epochs.
    new = recipe.evolve(*(["num_train_epochs"] if "trl.max_steps" in pairs else []), **changes)
    object.__setattr__(new, "source", recipe.source)
    object.__setattr__(new, "cli_keys", recipe.cli_keys | typed)
    return new


def _pairs(recipe: Recipe, assignments: Sequence[str]) -> dict[str, str]:
    """Key -> text of each KEY=VALUE, none of them twice, as a whole and in parts, or without a value."""
    pairs: dict[str, str] = {}
    for text, following in zip(assignments, [*assignments[1:], ""], strict=False):
        key, separator, value = text.partition("=")
        key = key.strip()
        loose = following if following and "=" not in following and not following.startswith("-") else ""
        if text.startswith("-"):
            bare = key.lstrip("-")
            written = f": {bare}={value or loose or 'VALUE'}" if bare in keys(recipe) else f".{home(bare, recipe)}"
            raise UsageError(
                f"{key} is not an option. Values of the recipe are written KEY=VALUE, without dashes{written}"
            )
        if not separator or (not value and loose):
            if key in keys(recipe):
                raise UsageError(
                    f"{text!r} lacks its value: write {key}={loose or 'VALUE'}, without spaces around the =."
                )
            raise UsageError(f"{text!r} is not KEY=VALUE, such as beta=0.05.{nearest(key, keys(recipe))}")
        if not key or key.endswith(".") or not value:
            raise UsageError(f"{text!r} lacks its {'key' if value else 'value'}: overrides look like beta=0.05.")
        if key in pairs:
            quotes = " A dict needs quotes around the whole: 'loss={...}'." if key.startswith("loss") else ""
            raise UsageError(f"{key} is set twice, to {pairs[key]!r} and to {value!r}: keep one.{quotes}")
        pairs[key] = value
    for key in pairs:
        whole = key.rpartition(".")[0]
        if whole in pairs and whole != "adapter":
            raise UsageError(f"{whole} is set as a whole and again by {key}: keep one.")
    return pairs


def _adapter(text: str, current: LoRA | None) -> LoRA | None:
    if text.lower() not in ADAPTERS:
        near = nearest(text, ADAPTERS)
        raise UsageError(
            f"adapter={text!r}: expected none, lora or qlora.{near} Its numbers are adapter.r=16 and so on."
        )
    cls = ADAPTERS[text.lower()]
    if cls is None:
        return None
    return cls(**{n: getattr(current, n) for n in (current.given if current else ()) if n in hints(cls)})


def keys(recipe: Recipe) -> list[str]:
    """Every key that `apply` takes for this recipe, except the sub-keys of free dictionaries."""
    adapter = hints(type(recipe.adapter)) if recipe.adapter else {}
    return [
        *(n for n in hints(Recipe) if n not in ("data", "trl")),
        *(f"data.{n}" for n in hints(Data)),
        *(f"adapter.{n}" for n in adapter),
        *(f"trl.{n}" for n in dpoconfig.options() if n not in dpoconfig.OURS),
    ]


def _unknown(key: str, adapter: LoRA | None, recipe: Recipe) -> str:
    head, _, rest = key.partition(".")
    if key in ("data", "trl"):
        part = "data.path=pairs.jsonl" if key == "data" else "trl.max_grad_norm=0.5"
        return f"{key} is set by its parts, such as {part}."
    if head == "adapter" and rest in hints(QLoRA):
        has = "this recipe trains all weights. Add adapter=lora or" if adapter is None else "it is QLoRA's. Add"
        return f"{key} has nothing to act on: {has} adapter=qlora."
    return f"{key} is not a field of the recipe.{home(key, recipe) or ' `dpo-recipes show RECIPE` lists them all.'}"


def home(key: str, recipe: Recipe | None = None) -> str:
    """The sentence that says where a misplaced name belongs; for an unknown one, the nearest."""
    bare = key.rsplit(".", 1)[-1]
    ours = [*hints(Recipe), *(f"data.{n}" for n in hints(Data)), *(f"adapter.{n}" for n in hints(QLoRA))]
    if bare in dpoconfig.REMOVED:
        return f" {bare} is {dpoconfig.REMOVED[bare]}."
    if place := dpoconfig.ALIASES.get(bare) or next((k for k in ours if k.rpartition(".")[2] == bare.lower()), None):
        head, _, rest = place.partition(".")
        inside = f" (in a recipe file {head}={'Data' if head == 'data' else 'LoRA'}({rest}=VALUE))" if rest else ""
        return f" Write {place}=VALUE{inside}."
    if bare in dpoconfig.OURS:
        return f" It is set by {dpoconfig.OURS[bare]}."
    if bare in dpoconfig.options():
        return f" It is DPOConfig's: write trl.{bare}=VALUE (in a recipe file trl={{{bare!r}: VALUE}})."
    return nearest(key, keys(recipe) if recipe else ours)


def literal(text: str) -> Any:
    """A Python literal, true, false or none; anything else is text."""
    if text.strip().lower() in WORDS:
        return WORDS[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def parse(text: str, hint: Any, key: str) -> Any:
    """`text` as a value of the declared type."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    value: Any = literal(text)
    holds = {typing.get_origin(c) for c in choices} & {list, dict}
    if isinstance(value, int) and not isinstance(value, bool) and float in choices:
        value = float(value)
    if str in choices and (isinstance(value, str) or not (holds or fits(value, hint))):
        value = text  # 123 for a name is the text "123"
    if list in holds and isinstance(value, str) and "," in value:
        value = [part.strip(" []'\"") for part in value.split(",")]
    if (dict in holds and isinstance(value, str) and value.startswith("{")) or not fits(value, hint):
        raise UsageError(f"{key}={text!r} has the wrong type: expected {expected(hint)}.")
    return value


def _option(text: str, name: str) -> Any:
    """A value for a DPOConfig field; its name and fitness are judged where the recipe is built."""
    option, value = dpoconfig.options().get(name), literal(text)
    if option is None or text == option.default:
        return text
    if "," in text and isinstance(value, str) and "list" in option.annotation:
        return [part.strip() for part in text.split(",")]
    return value if dpoconfig.fits(value, option.annotation) else text


def origin(recipe: Recipe, key: str) -> str:
    """Where the value of a dotted key came from: command line, recipe file or default."""
    head, _, rest = key.partition(".")
    if key in recipe.cli_keys or (rest and any(k.startswith(f"{key}.") for k in recipe.cli_keys)):
        return "command line"
    if head == "loss_args":
        given = "command line" if head in recipe.cli_keys else "recipe file"
        return given if rest in recipe.loss_args else "default"
    owner = getattr(recipe, head) if rest and head in ("data", "adapter") else recipe
    return "recipe file" if (rest if owner is not recipe else head) in owner.given else "default"

"""`key=value` on the command line -> a changed recipe, typed from the dataclass; and where every value came from."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from . import dpoconfig
from .errors import UsageError, nearest
from .recipe import Data, LoRA, QLoRA, Recipe, fits, hints, members, wrong

ADAPTERS: dict[str, type[LoRA] | None] = {"none": None, "lora": LoRA, "qlora": QLoRA}
WORDS = {"true": True, "false": False, "none": None, "null": None}
FREE = ("trl", "loss_args", "data.chat_template_kwargs")  # dictionaries whose parts may be set one by one


def apply(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with each `key=value` applied: `beta=0.05`, `adapter.r=64`, `data.train=train`, `trl.save_steps=50`.

    `adapter=none|lora|qlora` chooses the adapter and keeps the numbers that the recipe gave it. Raises UsageError for
    an unknown key (with the nearest one), a key set twice, and a value of the wrong type (with the expected form).
    """
    texts = _texts(assignments)
    adapter = _adapter(texts["adapter"], recipe.adapter) if "adapter" in texts else recipe.adapter
    types = _types(adapter)
    parts: dict[str, dict[str, Any]] = {owner: {} for owner in ("", "data", "adapter", *FREE)}
    for key, text in texts.items():
        owner, _, name = key.rpartition(".")
        if owner in FREE:
            parts[owner][name] = _option(text, name) if owner == "trl" else literal(text)
        elif key in types:
            parts[owner][name] = adapter if key == "adapter" else parse(text, types[key], key)
        elif owner == "adapter" and name in hints(QLoRA):
            raise UsageError(f"{key} has nothing to act on: add adapter={'qlora' if adapter else 'lora'}.")
        else:
            near = home(key) or " `dpo-recipes show RECIPE` lists them all."
            raise UsageError(f"{key} is not a field of the recipe.{near}")
    for owner in FREE:
        if parts[owner]:
            head, _, name = owner.rpartition(".")
            before = parts[head].get(name, getattr(recipe.data if head else recipe, name))
            parts[head][name] = before | parts[owner]
    changes, own = parts[""], parts["adapter"]
    if parts["data"]:
        changes["data"] = recipe.data.evolve(**parts["data"])
    if adapter and own:  # a continued adapter brings its own rank, so the recipe's gives way
        changes["adapter"] = adapter.evolve(*adapter.given - {"double_quant"} if "continue_from" in own else (), **own)
    new = recipe.evolve(**changes)
    object.__setattr__(new, "source", recipe.source)
    object.__setattr__(new, "cli_keys", recipe.cli_keys.union(texts))
    return new


def _texts(assignments: Sequence[str]) -> dict[str, str]:
    """Key -> text of each KEY=VALUE, none of them twice."""
    texts: dict[str, str] = {}
    for text in assignments:
        key, _, value = text.partition("=")
        key = key.strip()
        if not key or not value or key.startswith("-") or key.endswith("."):
            near = home(key.strip("-."))
            raise UsageError(f"{text!r} is neither an option (see --help) nor KEY=VALUE, such as beta=0.05.{near}")
        if key in texts:
            raise UsageError(f"{key} is set twice, to {texts[key]!r} and to {value!r}: keep one, and quote a dict.")
        texts[key] = value
    return texts


def _adapter(text: str, current: LoRA | None) -> LoRA | None:
    if text.lower() not in ADAPTERS:
        raise UsageError(f"adapter={text!r} must be none, lora or qlora.{nearest(text, ADAPTERS)}")
    if (cls := ADAPTERS[text.lower()]) is None:
        return None
    return cls(**{n: getattr(current, n) for n in getattr(current, "given", ()) if n in hints(cls)})


def _types(adapter: LoRA | None) -> dict[str, Any]:
    """Every dotted key that takes one value -> its type."""
    owners = {"": Recipe, "data.": Data} | ({"adapter.": type(adapter)} if adapter else {})
    return {f"{o}{n}": hint for o, cls in owners.items() for n, hint in hints(cls).items() if n != "data"}


def home(key: str) -> str:
    """The sentence that says where a misplaced name belongs; for an unknown one, the nearest."""
    bare, ours = key.rpartition(".")[2], list(_types(QLoRA()))
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
    return nearest(key, [*ours, *(f"trl.{name}" for name in dpoconfig.options())])


def literal(text: str) -> Any:
    """A Python literal, true, false or none; anything else is text."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        word = text.strip().lower()
        return WORDS[word] if word in WORDS else ast.literal_eval(text.strip())
    return text


def _typed(text: str, fitting: Callable[[Any], bool], splits: bool) -> Any:
    """The literal that `text` is where the field takes one, else the text; `splits`: a,b is a list."""
    value = literal(text)
    if isinstance(value, str) or not fitting(value):  # 123 for a name is the text "123"
        return [part.strip(" []'\"") for part in text.split(",")] if splits and "," in text else text
    return value


def parse(text: str, hint: Any, key: str) -> Any:
    """`text` as a value of the declared type."""
    value = _typed(text, lambda v: fits(v, hint), list[str] in members(hint))
    if not fits(value, hint):
        raise UsageError(f"{key}={text!r} {wrong(value, hint)}")
    return float(value) if type(value) is int and float in members(hint) else value


def _option(text: str, name: str) -> Any:
    """A value for a DPOConfig field; its name and fitness are judged where the recipe is built."""
    option = dpoconfig.options().get(name)
    if option is None or text.lower() == option.default:
        return text.lower()
    return _typed(text, lambda v: dpoconfig.fits(v, option.annotation), "list" in option.annotation)


def origin(recipe: Recipe, key: str) -> str:
    """Where the value of a dotted key came from: command line, recipe file or default."""
    head, _, rest = key.partition(".")
    if key in recipe.cli_keys or any(k.startswith(f"{key}.") for k in recipe.cli_keys if rest):
        return "command line"
    if rest and head in FREE:
        given = "command line" if head in recipe.cli_keys else "recipe file"
        return given if rest in getattr(recipe, head) else "default"
    owner, name = (getattr(recipe, head), rest) if rest else (recipe, head)
    return "recipe file" if name in owner.given else "default"

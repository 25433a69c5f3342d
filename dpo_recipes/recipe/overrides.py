"""`key=value` on the command line -> a changed recipe, typed from the dataclass."""

import ast
import contextlib
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from ..errors import UsageError, nearest
from . import trl_options as dpoconfig
from .recipe import Data, LoRA, QLoRA, Recipe
from .validation import fits, hints, members, wrong

ADAPTERS: dict[str, type[LoRA] | None] = {"none": None, "lora": LoRA, "qlora": QLoRA}
WORDS = {"true": "True", "false": "False", "none": "None", "null": "None"}
FREE = ("trl", "loss_args", "data.chat_template_kwargs")  # dictionaries whose parts may be set one by one


def apply(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with each `key=value` applied: `beta=0.05`, `adapter.r=64`, `data.train=train`, `trl.save_steps=50`.

    `adapter=none|lora|qlora` chooses the adapter and keeps the numbers that the recipe gave it. Raises UsageError for
    an unknown key (with the nearest one), a key set twice, and a value of the wrong type (with the expected form).
    """
    texts, adapter = _texts(assignments), recipe.adapter
    if kind := texts.get("adapter"):
        if kind.lower() not in ADAPTERS:
            raise UsageError(f"adapter={kind!r} must be none, lora or qlora.{nearest(kind, ADAPTERS)}")
        cls, given = ADAPTERS[kind.lower()], adapter.given if adapter else frozenset()
        adapter = cls(**{n: getattr(adapter, n) for n in given if n in hints(cls)}) if cls else None
    types = _types(adapter)
    parts: dict[str, dict[str, Any]] = {"": {}, "data": {}, "adapter": {}}
    for key, text in sorted(texts.items(), key=lambda item: item[0].count(".")):  # a whole dictionary before its parts
        owner, _, name = key.rpartition(".")
        if owner in FREE:
            head, _, field = owner.rpartition(".")
            before = parts[head].get(field, attrgetter(owner)(recipe))
            parts[head][field] = before | {name: _option(text, name) if owner == "trl" else literal(text)}
        elif key in types:
            value = parts[owner][name] = adapter if key == "adapter" else _typed(text, types[key])
            if not fits(value, types[key]):
                raise UsageError(f"{key}={text!r} {wrong(value, types[key])}")
        elif owner == "adapter" and name in hints(QLoRA):
            raise UsageError(f"{key} has nothing to act on: add adapter={'qlora' if adapter else 'lora'}.")
        else:
            near = home(key) or " `dpo-recipes show RECIPE` lists them all."
            raise UsageError(f"{key} is not a field of the recipe.{near}")
    changes, data, own = parts[""], parts["data"], parts["adapter"]
    if data:  # a path takes the place of a mix, and a mix that of a path
        changes["data"] = recipe.data.evolve(*({"path", "mix"} if {"path", "mix"} & data.keys() else ()), **data)
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
        return ast.literal_eval(WORDS.get(text.strip().lower(), text.strip()))
    return text


def _typed(text: str, hint: Any) -> Any:
    """`text` as a value of a type, or of an annotation as DPOConfig writes it; what does not fit stays text."""
    fitting, value = dpoconfig.fits_annotation if isinstance(hint, str) else fits, literal(text)
    if not isinstance(value, str) and fitting(value, hint):  # 123 for a name is the text "123"
        return float(value) if type(value) is int and float in members(hint) else value
    listed = "list" in str(hint) and ("," in text or not fitting(text, hint))
    return [part.strip(" []'\"") for part in text.split(",")] if listed else text


def _option(text: str, name: str) -> Any:
    """A value for a DPOConfig field; its name and fitness are judged where the recipe is built."""
    option = dpoconfig.options().get(name)
    return text.lower() if option is None or text.lower() == option.default else _typed(text, option.annotation)

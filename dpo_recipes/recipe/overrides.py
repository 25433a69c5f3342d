"""`key=value` on the command line -> a changed recipe, typed from the dataclass."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from ..errors import UsageError, nearest
from . import trl_options
from .adapters import LoRA, QLoRA
from .data import FILE_SUFFIXES, Data
from .recipe import PREPARED, RULES, Recipe
from .validation import field_types, has_type, must_be, union_members

ADAPTERS: dict[str, type[LoRA] | None] = {"none": None, "lora": LoRA, "qlora": QLoRA}
PYTHON_WORDS = {"true": "True", "false": "False", "none": "None", "null": "None"}
NAME_OF_SPLIT = re.compile(r"\w+ *(\[.*\])?")  # or of a slice; a path has a dot or a slash in it
OPEN_DICTIONARIES = ("trl", "loss_args", "rules", "data.chat_template_kwargs")  # whose parts may be set one by one


def apply(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with each `key=value` applied: `beta=0.05`, `adapter.r=64`, `data.train=train`, `trl.save_steps=50`.

    `adapter=none|lora|qlora` chooses the adapter and keeps the numbers that the recipe gave it. Raises UsageError for
    an unknown key (with the nearest one), a key set twice, and a value of the wrong type (with the expected form).
    """
    texts = _texts(assignments)
    adapter = _chosen_adapter(recipe.adapter, texts.get("adapter"))
    values = _typed_values(recipe, adapter, texts)
    _refuse_two_lengths(texts)
    _refuse_to_part_what_is_made_together(recipe, values)
    changed = _with_values(recipe, adapter, values)
    reasons = {key: reason for key, reason in recipe.reasons.items() if key not in texts}
    return changed.from_where(
        source=recipe.source, cli_keys=recipe.cli_keys.union(texts), called=recipe.called, reasons=reasons
    )


def _texts(assignments: Sequence[str]) -> dict[str, str]:
    """Key -> text of each KEY=VALUE, none of them twice."""
    texts: dict[str, str] = {}
    for assignment in assignments:
        if "\N{FULLWIDTH EQUALS SIGN}" in assignment and "=" not in assignment:
            raise UsageError(f"{assignment!r} has a full-width equals sign: write the one of the keyboard, beta=0.05.")
        key, _, text = assignment.partition("=")
        key = key.strip()
        if not key or not text or key.startswith("-") or key.endswith("."):
            raise UsageError(
                f"{assignment!r} is neither an option (see --help) nor KEY=VALUE, such as beta=0.05."
                f"{where_it_belongs(key.strip('-.'))}"
            )
        if key in texts:
            raise UsageError(f"{key} is set twice, to {texts[key]!r} and to {text!r}: keep one, and quote a dict.")
        texts[key] = text
    return texts


def _refuse_two_lengths(texts: Mapping[str, str]) -> None:
    """Both typed for one run: the Trainer would follow the steps, and the epochs would do nothing."""
    if "num_train_epochs" in texts and "trl.max_steps" in texts:
        raise UsageError(
            f"num_train_epochs={texts['num_train_epochs']} does nothing beside trl.max_steps={texts['trl.max_steps']}, "
            "which decides the length of the run: keep one of them."
        )


def _chosen_adapter(current: LoRA | None, text: str | None) -> LoRA | None:
    """The adapter after `adapter=TEXT`, with the numbers of the current one that it takes too."""
    if text is None:
        return current
    if text.lower() not in ADAPTERS:
        hint = nearest(text, ADAPTERS)
        if "(" in text:
            hint = " Its numbers are given one by one, as in adapter=lora adapter.r=8."
        raise UsageError(f"adapter={text!r} must be none, lora or qlora.{hint}")

    kind = ADAPTERS[text.lower()]
    if kind is None:
        return None
    if current is None:
        return kind()
    kept = {name: getattr(current, name) for name in current.given if name in field_types(kind)}
    return kind(**kept)


def _typed_values(recipe: Recipe, adapter: LoRA | None, texts: Mapping[str, str]) -> dict[str, Any]:
    """Dotted key of a field -> its new value; parts of a dictionary are added to what it holds."""
    types = _types_by_key(adapter)
    values: dict[str, Any] = {}
    for key in sorted(texts, key=_depth):  # a whole dictionary before its parts
        owner, _, name = key.rpartition(".")
        if owner in OPEN_DICTIONARIES:
            dictionary = values.get(owner, attrgetter(owner)(recipe))
            values[owner] = dictionary | {name: _part(owner, name, texts[key])}
        elif key == "adapter":
            values[key] = adapter
        elif key in types:
            values[key] = _field_value(key, texts[key], types[key])
        elif owner == "adapter" and name in field_types(QLoRA):
            missing = "qlora" if adapter else "lora"
            raise UsageError(f"{key} has nothing to act on: add adapter={missing}.")
        else:
            hint = where_it_belongs(key) or " `dpo-recipes show RECIPE` lists them all."
            raise UsageError(f"{key} is not a field of the recipe.{hint}")
    return values


def _depth(key: str) -> int:
    return key.count(".")


def _types_by_key(adapter: LoRA | None) -> dict[str, Any]:
    """Every dotted key that takes one value -> its type."""
    types = field_types(Recipe)
    del types["data"]  # its fields are set one by one
    for name, hint in field_types(Data).items():
        types[f"data.{name}"] = hint
    if adapter is not None:
        for name, hint in field_types(type(adapter)).items():
            types[f"adapter.{name}"] = hint
    return types


def _with_values(recipe: Recipe, adapter: LoRA | None, values: Mapping[str, Any]) -> Recipe:
    """The recipe with new values of its own fields and of those of its data and adapter."""
    changes = {key: value for key, value in values.items() if "." not in key}
    # A revision is that of the model before.
    unset = ["revision"] if "model" in changes else []

    data_changes = _inside("data", values)
    if {"path", "mix"} & data_changes.keys():  # a path takes the place of a mix, and a mix that of a path
        changes["data"] = _replaced_data(recipe.data, data_changes)
    elif data_changes:
        changes["data"] = recipe.data.evolve(**data_changes)

    adapter_changes = _inside("adapter", values)
    if adapter is not None and "continue_from" in adapter_changes:
        # A continued adapter brings its own rank, so the recipe's gives way.
        changes["adapter"] = adapter.evolve(*adapter.given - {"double_quant"}, **adapter_changes)
    elif adapter is not None and adapter_changes:
        changes["adapter"] = adapter.evolve(**adapter_changes)

    return recipe.evolve(*unset, **changes)


def _replaced_data(data: Data, changes: Mapping[str, Any]) -> Data:
    """The data with another path or mix.

    Subset, folder and revision were those of the set before. A single file has no splits: the names of splits go with
    that set, a slice of one stays, a sum of several becomes the whole file.
    """
    unset = ["path", "mix", "subset", "data_dir", "revision"]
    renamed: dict[str, Any] = {}
    paths = changes.get("mix") or [changes.get("path") or ""]
    if all(path.lower().endswith(FILE_SUFFIXES) for path in paths):
        split = data.train.partition("[")[0].strip()
        if "[" in data.train and "+" not in data.train:
            renamed["train"] = data.train.replace(split, "train")
        else:
            unset.append("train")
        if isinstance(data.eval, str) and data.eval.partition("[")[0].strip() == split:
            renamed["eval"] = data.eval.replace(split, "train")
        elif isinstance(data.eval, str) and NAME_OF_SPLIT.fullmatch(data.eval):
            unset.append("eval")
    return data.evolve(*unset, **{**renamed, **changes})


def _refuse_to_part_what_is_made_together(recipe: Recipe, values: Mapping[str, Any]) -> None:
    """The reward and the measures of a recipe that makes its own model or pairs are made for these alone.

    A `prepare` that asks for the model makes its pairs with whichever is named.
    """
    if not recipe.reward and not recipe.measures:
        return
    own_values = {"model": recipe.model, "data.path": recipe.data.name, "data.mix": recipe.data.name}
    if recipe.prepare_asks_for_the_model:
        del own_values["model"]
    for key, own_value in own_values.items():
        if key in values and PREPARED in own_value and PREPARED not in str(values[key]):
            model = values.get("model", "org/name")
            path = values.get("data.path", "pairs.jsonl")
            raise UsageError(
                f"{key}={values[key]!r} does not go with {recipe.name}, which makes its own model and pairs: its "
                f"reward and measures know no others. To train on yours: dpo-recipes train starter model={model} "
                f"data.path={path}, or with a file of your own: dpo-recipes new mine --from starter."
            )


def _inside(owner: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Field name -> value, of the dotted keys that begin with an owner."""
    return {key.removeprefix(f"{owner}."): value for key, value in values.items() if key.startswith(f"{owner}.")}


# A text as a value.


def literal(text: str) -> Any:
    """A Python literal, true, false or none; anything else is text."""
    python = PYTHON_WORDS.get(text.strip().lower(), text.strip())
    try:
        return ast.literal_eval(python)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that literal_eval may raise
        return text


def _field_value(key: str, text: str, hint: Any) -> Any:
    """`text` as a value of a field; UsageError where it is none."""

    def fits(value: Any) -> bool:
        return has_type(value, hint)

    takes_list = any(typing.get_origin(member) is list for member in union_members(hint))
    value = _typed(text, fits, takes_list)
    if not fits(value):
        raise UsageError(f"{key}={text!r} {must_be(value, hint)}")
    if type(value) is int and float in union_members(hint):
        return float(value)
    return value


def _part(dictionary: str, name: str, text: str) -> Any:
    """`text` as a value of an open dictionary. Whether it may stand there is judged where the recipe is built."""
    if dictionary != "trl":
        return literal(text)
    option = trl_options.options().get(name)
    if option is None:
        return text
    if text.lower() == option.default:  # report_to=None is the word "none"
        return option.default

    def fits(value: Any) -> bool:
        return trl_options.fits_annotation(value, option.annotation)

    return _typed(text, fits, takes_list="list" in option.annotation)


def _typed(text: str, fits: Callable[[Any], bool], takes_list: bool) -> Any:
    """`text` as a literal or a list, whichever fits; what does not fit stays text, to be refused as it was written."""
    value = literal(text)
    if not isinstance(value, str) and fits(value):  # 123 for a name is the text "123"
        return value
    if takes_list and ("," in text or not fits(text)):
        return [part.strip(" []'\"") for part in text.split(",")]
    return text


# A name in the wrong place.


def where_it_belongs(key: str) -> str:
    """The sentence that says where a misplaced name belongs; for an unknown one, the nearest."""
    name = key.rpartition(".")[2]
    if name in trl_options.REMOVED:
        return f" {name} is {trl_options.REMOVED[name]}."

    place = trl_options.ALIASES.get(name) or _field_called(name)
    if place:
        return f" Write {place}=VALUE{_in_a_recipe_file(place)}."

    if name in RULES:
        return f" It is a rule of the guard: write rules.{name}=VALUE (in a recipe file rules={{{name!r}: VALUE}})."
    if name in trl_options.OURS:
        return f" It is set by {trl_options.OURS[name]}."
    if name in trl_options.options():
        return f" It is DPOConfig's: write trl.{name}=VALUE (in a recipe file trl={{{name!r}: VALUE}})."
    return nearest(key, [*_types_by_key(QLoRA()), *(f"trl.{option}" for option in trl_options.options())])


def _field_called(name: str) -> str | None:
    """The dotted key of a field, by its own name in any spelling."""
    for key in _types_by_key(QLoRA()):
        if key.rpartition(".")[2] == name.lower():
            return key
    return None


def _in_a_recipe_file(place: str) -> str:
    """How the value of a dotted key is written there; nothing for a field of the recipe itself."""
    owner, _, name = place.partition(".")
    if not name:
        return ""
    cls = "Data" if owner == "data" else "LoRA"
    return f" (in a recipe file {owner}={cls}({name}=VALUE))"

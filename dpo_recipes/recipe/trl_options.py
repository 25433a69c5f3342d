"""What the installed DPOConfig accepts, read from its source, because importing TRL takes about five seconds.

dpoconfig.toml says what a recipe may not put into `trl={...}`, and what to write instead.
"""

import ast
import contextlib
import math
import re
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RecipeError, UsageError, nearest

OFF: tuple[Any, ...] = (None, False, 0, "no", "none", [], ["none"])

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
OURS, ALIASES, REMOVED, INERT, NEEDS = (  # by single names
    {name: value for names, value in _TABLES[table].items() for name in names.split()}
    for table in ("ours", "aliases", "removed", "inert", "needs")
)
READ_BY = {name: set(losses) for name, losses in _TABLES["read_by"].items()}
CHOICES = {name: tuple(words) for name, words in _TABLES["choices"].items()}
F_DIVERGENCES, F_DIVERGENCE_LOSSES = CHOICES["f_divergence_type"], set(_TABLES["losses"]["f_divergence"])
INSIDE_TRL_LOSSES = _TABLES["losses"]["inside_trl"]


class Option(NamedTuple):
    """One DPOConfig field: its annotation as written, its default, and the choices that its source lists."""

    annotation: str
    default: Any
    choices: tuple[str, ...]


@cache
def _classes(path: str) -> dict[str, list[ast.stmt]]:
    package, _, rest = path.partition("/")
    spec = find_spec(package)  # finds the folder and imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"{package} is not installed: run `make install`, or `pip install dpo-recipes`.")
    tree = ast.parse(Path(spec.submodule_search_locations[0], rest).read_text(encoding="utf-8"))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def options() -> dict[str, Option]:
    """Every field of the installed DPOConfig, with TRL's defaults; a computed default is None."""
    found: dict[str, Option] = {}
    enums = _classes("transformers/trainer_utils.py") | _classes("transformers/training_args.py")
    for path, name in _TABLES["sources"].items():
        body = _classes(path)[name]
        # e.g. `default_optim`, set once more under `if is_torch_available():`
        names = {ast.unparse(n.targets[0]): n.value for b in body for n in ast.walk(b) if isinstance(n, ast.Assign)}
        for node in (n for n in body if isinstance(n, ast.AnnAssign)):  # `x: T = 1`, or `= field(default=1, ...)`
            call = {k.arg: k.value for k in node.value.keywords} if isinstance(node.value, ast.Call) else {}
            value = call.get("default", call.get("default_factory", node.value))
            value = value.body if isinstance(value, ast.Lambda) else value
            value = names.get(value.id) or ast.List([]) if isinstance(value, ast.Name) else value
            kind = ast.unparse(node.annotation)
            listed = [_literal(n.value) for n in enums.get(kind.partition(" ")[0], ()) if isinstance(n, ast.Assign)]
            listed = listed or (_literal(call.get("metadata")) or {}).get("choices", [])
            found[ast.unparse(node.target)] = Option(kind, _literal(value), tuple(listed))
    found |= {name: found[name]._replace(choices=words) for name, words in CHOICES.items()}
    return {n: o for n, o in found.items() if not n.startswith("_") and "ClassVar" not in o.annotation}


def _literal(node: ast.expr | None) -> Any:
    with contextlib.suppress(ValueError):
        return ast.literal_eval(node) if node else None


def fits(value: Any, annotation: str) -> bool:
    """Whether a value has the type that DPOConfig's source declares; names of enums and classes stand for text."""
    words, kind = set(re.findall(r"\w+", annotation)), type(value).__name__
    if isinstance(value, str):  # for a dict it is JSON, or the path of a JSON file
        as_dict = "dict" not in words or value.lstrip().startswith("{") or value.endswith(".json")
        return as_dict and bool(words - {"int", "float", "bool", "dict", "list", "Any", "None"})
    finite = not isinstance(value, float) or math.isfinite(value)
    return finite and bool(words & {"NoneType": {"None"}, "int": {"int", "float"}}.get(kind, {kind}))


def check(given: dict[str, Any], losses: set[str], plugins: bool, precomputes: bool = False) -> None:
    """Refuse what does not exist, what has a field of its own, and what would do nothing beside these losses.

    `plugins`: one of the losses is not TRL's; `precomputes`: the reference is precomputed though `trl` does not say so.
    """
    if given:
        beside = {n: o.default for n, o in options().items()} | {"precompute_ref_log_probs": precomputes} | given
        for name, value in given.items():
            if why := _misfit(name, value):
                raise UsageError(f"trl.{name}={value!r} {why}")
            if value != options()[name].default and (why := _idle(name, losses, plugins, beside)):
                raise UsageError(f"trl.{name}={value!r} would do nothing here: {why}. Delete it.")


def _misfit(name: str, value: Any) -> str | None:
    """Why a recipe may not set this DPOConfig field, or not to this value."""
    for table, words in ((OURS, "has a place of its own: set {}"), (REMOVED, "is {}"), (INERT, "does nothing: {}")):
        if name in table:
            return f"{words.format(table[name])}."
    if name not in options():
        near = f" It is {ALIASES[name]}, a field of the recipe." if name in ALIASES else nearest(name, options())
        return f"is not a field of the installed DPOConfig.{near}"
    annotation, default, choices = options()[name]
    if not fits(value, annotation):
        return f"has the wrong type: DPOConfig declares {name}: {annotation}."
    if isinstance(value, (int, float)) and (value < 0 or name == "max_steps" and not value) and value != default:
        return f"is too small to mean anything: TRL's own is {default!r}."
    if isinstance(value, str) and choices and value not in choices:
        return f"is not one of {', '.join(choices)}.{nearest(value, choices)}"
    return None


def _idle(name: str, losses: set[str], plugins: bool, beside: dict[str, Any]) -> str | None:
    """Why an option acts on nothing beside these losses and options."""
    readers = READ_BY.get(name, losses)
    if not readers & losses:
        tail = "; TRL's sigmoid ignores it since 0.29, loss='cdpo' is label smoothing" if len(readers) > 1 else ""
        return f"read by loss {', '.join(sorted(readers))} only{tail}"
    needs = NEEDS.get(name, {}).items()
    if needs and not any(beside[n] not in OFF if value is True else beside[n] == value for n, value in needs):
        return f"read with {' or '.join(n if value is True else f'{n}={value!r}' for n, value in needs)} only"
    if plugins and name in INSIDE_TRL_LOSSES:
        return f"it acts inside TRL's own losses and would never reach the plugin loss in {sorted(losses)}"
    clash = {"f_divergence_type": losses - F_DIVERGENCE_LOSSES, "use_weighting": losses & {"aot", "aot_unpaired"}}
    return f"it has no meaning for loss={min(clash[name])!r}" if clash.get(name) else None

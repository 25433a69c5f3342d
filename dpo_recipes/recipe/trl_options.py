"""What the installed DPOConfig takes, and what a recipe may not put into `trl={...}`.

Leans on TRL 1.16: the names, types, defaults and choices of DPOConfig's fields, read from its source, because importing
TRL takes about five seconds; and, in trl_options.toml beside this file, what each name would do, or would not.
"""

from __future__ import annotations

import ast
import math
import re
import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RecipeError, UsageError, nearest, nearest_name
from ..losses.trl_losses import F_DIVERGENCE_LOSSES, TRL_LOSSES, UNWEIGHTED_LOSSES, readers_of

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _by_single_names(table: str, tables: Mapping[str, Any] = _TABLES) -> dict[str, Any]:
    """A table of the file, in which a row may hold several names, with one entry a name."""
    entries = {}
    for names, value in tables[table].items():
        entries.update(dict.fromkeys(names.split(), value))
    return entries


# The tables of trl_options.toml, where each is explained.
SOURCES: dict[str, str] = _TABLES["sources"]  # file of a package -> the class in it whose fields DPOConfig has
OURS: dict[str, str] = _by_single_names("ours")  # TRL's name -> the field of a recipe that sets it
ALIASES: dict[str, str] = _by_single_names("aliases")  # name in other programs -> the field of a recipe
REMOVED: dict[str, str] = _by_single_names("removed")  # name that is gone -> what to write instead
INERT: dict[str, str] = _by_single_names("inert")  # name that DPOConfig takes -> why nothing happens
NEEDS: dict[str, dict[str, Any]] = _by_single_names("needs")  # name -> {other option: the value it must have}, any one
HARMFUL: dict[str, str] = _by_single_names("harmful")  # name that DPOConfig takes -> what goes wrong then
LIMITS: dict[str, dict[str, Any]] = _by_single_names("limits")  # name -> least, most, above, below; and why
CHOICES: dict[str, tuple[str, ...]] = {name: tuple(words) for name, words in _TABLES["choices"].items()}
# option -> {its value: [the package that it needs as it is imported, as pip calls it]}
PACKAGES: dict[str, dict[str, list[str]]] = {
    "report_to": _by_single_names("report_to", _TABLES["packages"]),
    "optim": _by_single_names("optim", _TABLES["packages"]),
}
EVALUATED: list[str] = _TABLES["evaluations"]["metrics"]  # by which a checkpoint can be the best
INSIDE_TRL_LOSSES: list[str] = _TABLES["losses"]["inside_trl"]  # names that never reach a plugin loss

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")  # schedules that never read warmup_steps

# Values that switch an option off, where the table of needs asks for any but off.
OFF: tuple[Any, ...] = (None, False, 0, "no", "none", [], ["none"])


class Option(NamedTuple):
    """One DPOConfig field: its annotation as written, its default, and the choices that its source lists."""

    annotation: str
    default: Any
    choices: tuple[str, ...]


# Reading the source.


@cache
def options() -> dict[str, Option]:
    """Every field of the installed DPOConfig, with TRL's defaults; a computed default is None."""
    fields: dict[str, Option] = {}
    for path, class_name in SOURCES.items():
        fields |= _fields_of(_classes(path)[class_name])
    for name, words in CHOICES.items():
        fields[name] = fields[name]._replace(choices=words)
    return fields


def _fields_of(body: list[ast.stmt]) -> dict[str, Option]:
    """The dataclass fields among the statements of a class: `name: type = 1`, or `= field(default=1, ...)`."""
    assigned = _assigned_names(body)
    fields = {}
    for statement in body:
        if isinstance(statement, ast.AnnAssign):
            name = ast.unparse(statement.target)
            annotation = ast.unparse(statement.annotation)
            if not name.startswith("_") and "ClassVar" not in annotation:
                fields[name] = _option(annotation, statement.value, assigned)
    return fields


def _option(annotation: str, value: ast.expr | None, assigned: Mapping[str, ast.expr]) -> Option:
    keywords: dict[str | None, ast.expr] = {}
    if isinstance(value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}

    default = keywords.get("default", keywords.get("default_factory", value))
    if isinstance(default, ast.Lambda):
        default = default.body
    elif isinstance(default, ast.Name):  # assigned above, or else the factory `list`
        default = assigned.get(default.id, ast.List([]))

    choices = _enum_values(annotation)
    if not choices:
        metadata = _literal(keywords.get("metadata")) or {}
        choices = metadata.get("choices", [])
    return Option(annotation, _literal(default), tuple(choices))


def _assigned_names(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """Name -> what a class assigns to it, at last: `default_optim` is set again under `if is_torch_available():`."""
    assigned = {}
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign):
                assigned[ast.unparse(node.targets[0])] = node.value
    return assigned


def _enum_values(annotation: str) -> list[Any]:
    """The values of the enum that an annotation begins with (`SchedulerType | str`); nothing where it is no enum."""
    enums = _classes("transformers/trainer_utils.py") | _classes("transformers/training_args.py")
    members = enums.get(annotation.partition(" ")[0], [])
    return [_literal(member.value) for member in members if isinstance(member, ast.Assign)]


@cache
def _classes(path: str) -> dict[str, list[ast.stmt]]:
    """Name -> statements of each class in a file of an installed package, `trl/trainer/dpo_config.py`."""
    package, _, rest = path.partition("/")
    spec = find_spec(package)  # finds the folder and imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"{package} is not installed: run `make install`, or `pip install dpo-recipes`.")
    file = Path(spec.submodule_search_locations[0], rest)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _literal(node: ast.expr | None) -> Any:
    """The value of an expression; None where it would have to be computed."""
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


# What a recipe may set.


def fits_annotation(value: Any, annotation: str) -> bool:
    """Whether a value has the type that DPOConfig's source declares; names of enums and classes stand for text."""
    words = set(re.findall(r"\w+", annotation))
    if isinstance(value, str):
        if "dict" in words and not (value.lstrip().startswith("{") or value.endswith(".json")):
            return False  # for a dict it is JSON, or the path of a JSON file
        return bool(words - {"int", "float", "bool", "dict", "list", "Any", "None"})
    if value is None:
        return "None" in words
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if type(value) is int:
        return bool(words & {"int", "float"})
    return type(value).__name__ in words or repr(value) in words  # of Literal[False]


def refuse_unusable_options(given: Mapping[str, Any], losses: Collection[str], precomputes: bool = False) -> None:
    """Refuse what does not exist, what has a field of its own, and what would do nothing beside these losses.

    `losses` are names, of TRL's losses and of plugin losses; `precomputes`: the reference is precomputed though `trl`
    does not say so.
    """
    if not given:
        return  # before DPOConfig's source is read
    defaults = {name: option.default for name, option in options().items()}
    in_force = {**defaults, "precompute_ref_log_probs": precomputes, **given}
    for name, value in given.items():
        _refuse_misfit(name, value)
        if value != defaults[name]:
            # What would do nothing whatever its value comes before the value.
            _refuse_idle_beside_losses(name, value, frozenset(losses))
            _refuse_idle_beside_options(name, value, in_force)
            _refuse_meaningless(name, value, frozenset(losses))
            _refuse_out_of_range(name, value)
    # Where eval_steps is open, the Trainer takes logging_steps, which a recipe sets to 1 unless it says otherwise.
    evaluation_steps = in_force["eval_steps"] or given.get("logging_steps", 1)
    _refuse_unknowable_best_model(in_force, evaluation_steps)
    _refuse_unknown_metric(in_force["metric_for_best_model"])
    _refuse_idle_warmup(in_force)


def _refuse_misfit(name: str, value: Any) -> None:
    """What a recipe may not set in `trl`, or not to this value, whatever stands beside it."""
    shown = f"trl.{name}={value!r}"
    if name in OURS:
        raise UsageError(f"{shown} has a place of its own: set {OURS[name]}.")
    if name in REMOVED:
        raise UsageError(f"{shown} is {REMOVED[name]}.")
    if name in INERT:
        raise UsageError(f"{shown} does nothing: {INERT[name]}.")
    if name in HARMFUL:
        raise UsageError(f"{shown} cannot be used: {HARMFUL[name]}.")
    if name in ALIASES:
        raise UsageError(
            f"{shown} is not a field of the installed DPOConfig. It is {ALIASES[name]}, a field of the recipe."
        )
    if name not in options():
        raise UsageError(f"{shown} is not a field of the installed DPOConfig.{nearest(name, options())}")

    option = options()[name]
    if not fits_annotation(value, option.annotation):
        raise UsageError(f"{shown} has the wrong type: DPOConfig declares {name}: {option.annotation}.")
    words = value if isinstance(value, list) else [value]  # report_to may be several
    for word in words:
        if isinstance(word, str) and option.choices and word not in option.choices:
            raise UsageError(f"{shown} is not one of {', '.join(option.choices)}.{nearest(word, option.choices)}")


def _refuse_out_of_range(name: str, value: Any) -> None:
    """A number that cannot be meant; what is merely unusual is taken."""
    if not isinstance(value, (int, float)):
        return
    shown = f"trl.{name}={value!r}"
    limit = LIMITS.get(name)
    if limit is None:
        if value < 0:
            raise UsageError(f"{shown} is too small to mean anything: TRL's own is {options()[name].default!r}.")
        return

    too_small = value < limit.get("least", -math.inf) or value <= limit.get("above", -math.inf)
    too_large = value > limit.get("most", math.inf) or value >= limit.get("below", math.inf)
    if too_small or too_large:
        raise UsageError(f"{shown} must be {_range_in_words(limit)}: {limit['why']}.")


def _range_in_words(limit: Mapping[str, Any]) -> str:
    """`at least 0 and below 1`."""
    bounds = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
    return " and ".join(f"{words} {limit[bound]:,}" for bound, words in bounds.items() if bound in limit)


def _refuse_idle_warmup(in_force: Mapping[str, Any]) -> None:
    scheduler = in_force["lr_scheduler_type"]
    if in_force["warmup_steps"] and scheduler in WITHOUT_WARMUP:
        raise UsageError(
            f"trl.warmup_steps={in_force['warmup_steps']!r} would do nothing here: lr_scheduler_type={scheduler!r} has "
            "no warm-up, constant_with_warmup has. Delete it."
        )


def _refuse_unknowable_best_model(in_force: Mapping[str, Any], eval_steps: float) -> None:
    """`load_best_model_at_end` where the checkpoints are not those that are evaluated; the best of no evaluations."""
    evaluated, saved = in_force["eval_strategy"], in_force["save_strategy"]
    if not in_force["load_best_model_at_end"]:
        if saved == "best":
            _refuse_best_of_nothing(in_force)
        return
    if evaluated == "no":
        raise UsageError(
            "trl.load_best_model_at_end needs evaluations while training, to know which checkpoint is the best: add "
            "trl.eval_strategy=steps and trl.eval_steps=50, say."
        )
    if saved not in (evaluated, "best"):
        raise UsageError(
            f"trl.load_best_model_at_end needs a checkpoint where there is an evaluation, but "
            f"eval_strategy={evaluated!r} and save_strategy={saved!r}: set trl.save_strategy={evaluated}, or best."
        )
    save_steps = in_force["save_steps"]
    are_whole_numbers = eval_steps >= 1 and save_steps >= 1  # of shares DPOConfig says it itself
    if saved == "steps" and are_whole_numbers and save_steps % eval_steps:
        raise UsageError(
            f"trl.load_best_model_at_end needs a checkpoint where there is an evaluation, but a checkpoint is saved "
            f"every {save_steps} steps and evaluated every {eval_steps}: make the first a multiple of the "
            "second, or set trl.save_strategy=best."
        )


def _refuse_best_of_nothing(in_force: Mapping[str, Any]) -> None:
    """`save_strategy="best"`, for which nothing says when or by which number."""
    if in_force["eval_strategy"] == "no":
        raise UsageError(
            "trl.save_strategy='best' needs evaluations while training, to know which checkpoint is the best: add "
            "trl.eval_strategy=steps and trl.eval_steps=50, say."
        )
    has_default = in_force["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy")  # which look at the loss
    if in_force["metric_for_best_model"] is None and not has_default:
        raise UsageError(
            "trl.save_strategy='best' needs to know by which number: add trl.metric_for_best_model=loss, say."
        )


def _refuse_unknown_metric(metric: str | None) -> None:
    """A number that no evaluation while training has; `eval_` before it may be left out."""
    if metric is None:
        return
    name = metric.removeprefix("eval_")
    if name in EVALUATED:
        return

    meant = nearest(name, EVALUATED)
    if not meant:
        last_parts = {known.rpartition("/")[2]: known for known in reversed(EVALUATED)}
        match = nearest_name(name, last_parts)
        if match is not None:
            meant = f" Did you mean {last_parts[match]!r}?"
    if not meant:
        meant = " What is measured before and after training alone, such as rewards of sampled answers, chooses none."
    raise UsageError(
        f"trl.metric_for_best_model={metric!r} is no number by which an evaluation while training can tell the best "
        f"model. It can be {', '.join(EVALUATED)}.{meant}"
    )


def _refuse_idle_beside_losses(name: str, value: Any, losses: frozenset[str]) -> None:
    """An option that acts in some of TRL's losses only, none of which is chosen."""
    readers = readers_of(name)
    if not readers or readers & losses:
        return
    hint = ""
    if name == "label_smoothing":
        hint = "; TRL's sigmoid ignores it since 0.29, loss='cdpo' is label smoothing"
    raise UsageError(
        f"trl.{name}={value!r} would do nothing here: read by loss {', '.join(sorted(readers))} only{hint}. Delete it."
    )


def _refuse_idle_beside_options(name: str, value: Any, in_force: Mapping[str, Any]) -> None:
    """An option that acts beside one of several others only, none of which is set so."""
    if name not in NEEDS:
        return
    alternatives = []
    for other, wanted in NEEDS[name].items():
        if wanted is True:  # any value but off
            acts = in_force[other] not in OFF
            alternatives.append(other)
        else:
            acts = in_force[other] == wanted
            alternatives.append(f"{other}={wanted!r}")
        if acts:
            return
    raise UsageError(
        f"trl.{name}={value!r} would do nothing here: read with {' or '.join(alternatives)} only. Delete it."
    )


def _refuse_meaningless(name: str, value: Any, losses: frozenset[str]) -> None:
    """An option that would not reach one of the chosen losses, or that TRL has not defined for one of them."""
    shown = f"trl.{name}={value!r}"
    if name in INSIDE_TRL_LOSSES and losses - TRL_LOSSES.keys():
        raise UsageError(
            f"{shown} would do nothing here: it acts inside TRL's own losses and would never reach the plugin loss in "
            f"{sorted(losses)}. Delete it."
        )
    without_meaning: frozenset[str] = frozenset()
    if name == "f_divergence_type":
        without_meaning = losses - F_DIVERGENCE_LOSSES
    elif name == "use_weighting":
        without_meaning = losses & UNWEIGHTED_LOSSES
    if without_meaning:
        raise UsageError(
            f"{shown} would do nothing here: it has no meaning for loss={min(without_meaning)!r}. Delete it."
        )

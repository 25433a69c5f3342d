"""The recipe: a frozen value that says which model, which data, which adapter, which loss and which numbers.

`__post_init__` may refuse, never change. Nothing heavy is imported, so that showing or refusing a recipe is quick.
"""

from __future__ import annotations

import contextlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, Literal

from ..errors import UsageError, nearest
from ..losses.plugins import Loss
from ..losses.selection import function_of, name_of, own_numbers, refuse_impossible_losses
from ..losses.trl_losses import LIKELIHOOD_LOSSES, SMOOTHED_LOSSES, TRL_LOSSES
from . import trl_options as dpoconfig

Format = Literal[
    "preference", "text", "ultrafeedback", "hh_rlhf", "sharegpt", "alpaca", "orca", "shp", "helpsteer2", "helpsteer3",
    "summarize", "ultrainteract",
]  # fmt: skip
ALLOWED = (
    "border",
    "start_token",
    "end_token",
    "special_tokens",
    "truncated",
    "contradictions",
)  # stops of the data report, by name
PREPARED = "{prepared}"  # in `model` and `data.path`: the folder that the recipe's `prepare` fills

# Field -> what holds for its value unless that is None, and how a message says it.
LIMITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    **dict.fromkeys(("beta", "learning_rate", "num_train_epochs"),
                    (lambda v: 0 < v < float("inf"), "a positive, finite number")),
    **dict.fromkeys(("r", "alpha", "global_batch_size", "micro_batch_size"), (lambda v: v >= 1, "at least 1")),
    "loss": (lambda v: v != {}, "at least one loss"),
    "max_length": (lambda v: v >= 2, "at least 2"),
    "seed": (lambda v: 0 <= v < 2**32, "in [0, 2**32)"),
    "dropout": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "max_dropped": (lambda v: 0 <= v <= 1, "a share in [0, 1]"),
    "mix": (lambda v: all(0 < w <= 1 for w in v.values()), "paths with the share of their pairs to use, in (0, 1]"),
    "eval": (lambda v: v[-1] != "%" and v.lower() not in ("none", "true", "false") if isinstance(v, str) else 0 < v < 1,
             "a split, a file, or the share to hold out, between 0 and 1"),
    "allow": (lambda v: {*v} <= {*ALLOWED}, f"a list of findings to allow: {', '.join(ALLOWED)}"),
    "template_date": (lambda v: date.fromisoformat(v).isoformat() == v, "a date as YYYY-MM-DD, such as 2025-07-08"),
    "target_modules": (lambda v: all(v) and v and not {"all_linear", "lm_head"} & {*v, str(v)},
                       "'all-linear' or names of modules; never the head, whose weight TRL reads past any adapter"),
}  # fmt: skip


class Value:
    """A dataclass that remembers which of its fields were given, and refuses a value of the wrong type or range."""

    given: frozenset[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> typing.Self:
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset([*list(hints(cls))[: len(args)], *kwargs]))  # not compared
        return self

    def evolve(self, *unset: str, **changes: Any) -> typing.Self:
        """The same value with some fields changed; what was left at its default stays so, and `unset` returns to it."""
        return type(self)(**{name: getattr(self, name) for name in self.given.difference(unset)} | changes)

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value, (limit, words) = getattr(self, name), LIMITS.get(name, (lambda _: True, ""))
            why = wrong(value, hint)
            if fits(value, hint) and value != "":
                with contextlib.suppress(ValueError):
                    if value is None or limit(value):
                        continue
                why = f"must be {words}."
            shown = name_of(value) if callable(value) else repr(value)
            raise UsageError(f"{type(self).__name__}.{name}={shown} {why}")
        for refused, why in self.refusals():
            if refused:
                raise UsageError(why)

    def refusals(self) -> Iterable[tuple[Any, str]]:
        """(whether it is refused, why) of values that are right alone and do not go together."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Data(Value):
    """Preference pairs: a hub id, a local json, jsonl, csv or parquet file, or a folder of files named after splits."""

    path: str | None = field(default=None, kw_only=False)
    mix: dict[str, float] = field(default_factory=dict)  # several of these: path -> share of its pairs to use
    train: str = "train"  # split, or a slice of one: "train[:1000]"
    eval: str | float = 0.05  # a split, or the share of the train pairs to hold out
    subset: str | None = None  # configuration name on the hub
    data_dir: str | None = None  # folder inside the hub data set
    revision: str | None = None  # branch, tag or commit of the hub data set
    format: Format | None = None  # None: recognised from the columns
    reader: Callable[[dict[str, Any]], Any] | None = None  # row -> prompt, chosen, rejected; or None to drop it
    streaming: bool = False  # read while training, from a set too large to store
    chat_template: str | None = None  # Jinja, for a base model that has none
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # e.g. {"enable_thinking": False}
    template_date: str | None = None  # YYYY-MM-DD, for templates that print today's date
    drop_truncated: bool = False  # drop pairs of which max_length cuts a side, with its end token
    max_dropped: float = 0.05  # share of rows that may be unusable before the run is refused
    allow: list[str] = field(default_factory=list)  # stops of the data report that do not stop this run

    def refusals(self) -> Iterable[tuple[Any, str]]:
        return (
            ((self.path is None) != bool(self.mix), "Data(path) or Data(mix={path: share}): one of the two."),
            (self.format and self.reader, "data.format does nothing beside data.reader, which reads the rows itself."),
            (error := _rejects(self.reader, "row"), f"reader(row): {error}."),
        )

    @property
    def paths(self) -> dict[str, float]:
        """Path -> share of its pairs to use."""
        return self.mix or {str(self.path): 1.0}

    @property
    def name(self) -> str:
        return " + ".join(self.paths)


@dataclass(frozen=True, kw_only=True)
class LoRA(Value):
    """Train a low-rank adapter (2106.09685); the reference is the base model with the adapter disabled."""

    r: int = 16
    alpha: int | None = None  # None: twice the rank
    dropout: float = 0.0  # acts only with trl={"disable_dropout": False}
    target_modules: str | list[str] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    continue_from: str | None = None  # folder of an adapter to train on; the reference is then its frozen copy

    def refusals(self) -> Iterable[tuple[Any, str]]:
        extra = self.continue_from is not None and self.given - {"continue_from", "double_quant"}
        return [
            (n, f"adapter.{n} cannot stand beside continue_from: that adapter brings its own.")
            for n in sorted(extra or ())
        ]


@dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """LoRA over a base quantised to 4-bit NF4 with bf16 compute (2305.14314)."""

    double_quant: bool = True


@dataclass(frozen=True, kw_only=True)
class Recipe(Value):
    """Everything that decides the result of a run. Fields left at None are decided by the mode; `show` says how."""

    source: typing.ClassVar[Path | None] = None  # the file it was loaded from
    cli_keys: typing.ClassVar[frozenset[str]] = frozenset()  # what the command line changed

    model: str  # hub id or folder
    data: Data
    revision: str | None = None  # of the model and its tokenizer, so also of a reference that is its start
    adapter: LoRA | QLoRA | None = None  # None: full fine-tuning
    reference: str | None = None  # None: the start weights; else hub id or folder of another model
    loss: str | dict[str | Callable[..., Any], float] | Callable[..., Any] = "sigmoid"
    loss_args: dict[str, Any] = field(default_factory=dict)  # a plugin loss's own numbers
    beta: float = 0.1
    learning_rate: float | None = None  # None: 5e-7 full, 5e-6 adapters
    global_batch_size: int = 16  # pairs per optimiser step, over all devices
    micro_batch_size: int | None = None  # pairs per device and forward; None: the largest divisor up to 4
    num_train_epochs: float = 1.0
    max_length: int | None = 1024  # tokens, prompt plus completion
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None  # None: Transformers' choice
    pair_sharing: Literal["auto", "off", "require"] = "off"  # read each pair's prompt once, without padding
    trust_remote_code: bool = False
    seed: int = 42
    reward: Callable[[str, str], float] | None = None  # reward(prompt, completion), for the evaluation
    measures: dict[str, Callable[[str, str], float]] = field(default_factory=dict)  # more of these, averaged by name
    prepare: Callable[[Path, int], None] | None = None  # prepare(folder, seed): fills {prepared} on first use
    trl: dict[str, Any] = field(default_factory=dict)  # any other DPOConfig field, in TRL's spelling

    def refusals(self) -> Iterable[tuple[Any, str]]:
        refuse_impossible_losses(self.weights, self.loss_args)
        trl, full, precomputes = self.trl, self.adapter is None, self.adapter is None or self.reference is not None
        dpoconfig.refuse_unusable_options(trl, self.loss_names, precomputes)
        moving, precompute = trl.get("sync_ref_model"), trl.get("precompute_ref_log_probs")
        return (
            (full and self.dtype in ("float16", "bfloat16"),
             f"dtype={self.dtype!r} in full fine-tuning: 16-bit weights swallow small steps, 'auto' keeps 32 bit."),
            (isinstance(self.adapter, QLoRA) and self.dtype != "auto",
             f"dtype={self.dtype!r} does nothing under QLoRA, which computes in bf16: delete it."),
            ((PREPARED in f"{self.model} {self.data.name} {self.reference}") != bool(self.prepare),
             f"{PREPARED} in model, data.path or reference goes with a `prepare` that fills it: both or neither."),
            (error := _rejects(self.prepare, "folder", "seed"), f"prepare(folder, seed): {error}."),
            (error := _rejects(self.reward, "prompt", "completion"), f"reward(prompt, completion): {error}."),
            (self.loss_names <= LIKELIHOOD_LOSSES and self.beta != 0.1,
             "beta does nothing: loss='sft' is plain likelihood."),
            (self.loss_names & SMOOTHED_LOSSES and not trl.get("label_smoothing"),
             "loss='exo_pair' needs trl.label_smoothing above 0; the EXO paper uses 0.001."),
            (self.adapter and self.adapter.dropout and trl.get("disable_dropout", True),
             "adapter.dropout does nothing, as TRL disables all dropout, without trl={'disable_dropout': False}."),
            (moving and (precompute or self.reference or self.reward or not full),
             "trl.sync_ref_model moves a copy: no adapter, reference, reward or precompute_ref_log_probs beside it."),
            (precompute is False and precomputes and not moving,
             "trl.precompute_ref_log_probs=False would keep a second model in memory: delete it."),
            (self.data.streaming and trl.get("dataloader_num_workers"),
             "data.streaming counts what it drops in this process: no trl.dataloader_num_workers beside it."),
            (self.data.streaming and (precomputes or precompute or not trl.get("max_steps")),
             "data.streaming needs trl.max_steps, and a reference not computed beforehand: an adapter's own."),
        )  # fmt: skip

    @property
    def name(self) -> str:
        return self.source.stem if self.source else "recipe"

    @property
    def weights(self) -> dict[str | Callable[..., Any], float]:
        """Every loss with its weight; one loss alone has weight 1."""
        return dict(self.loss) if isinstance(self.loss, dict) else {self.loss: 1.0}

    @property
    def loss_names(self) -> set[str]:
        return {name_of(loss) for loss in self.weights}

    @property
    def plugins(self) -> dict[str, tuple[Loss, float]]:
        """name -> (function, weight) of the losses that are not TRL's."""
        return {name_of(f): (f, w) for loss, w in self.weights.items() if (f := function_of(loss))}

    def numbers(self, plugin: Loss) -> dict[str, Any]:
        """The `loss_args` that this plugin takes."""
        return {name: value for name, value in self.loss_args.items() if name in own_numbers(plugin)}

    @property
    def trl_losses(self) -> dict[str, float]:
        """name -> weight of TRL's own losses."""
        return {name_of(loss): w for loss, w in self.weights.items() if loss in TRL_LOSSES}


def _rejects(function: Callable[..., Any] | None, *arguments: str) -> TypeError | None:
    """Why a function cannot be called as it will be, perhaps hours later; one written in C has no signature to ask."""
    try:
        with contextlib.suppress(ValueError):
            inspect.signature(function or print).bind(*arguments)
    except TypeError as error:
        return error
    return None


def hints(cls: type) -> dict[str, Any]:
    """Field name -> resolved type, in the order of declaration."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in fields(cls)}


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type a field declares; an int is a float, a bool is not an int."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if len(members(hint)) > 1:
        return any(fits(value, member) for member in members(hint))
    if origin is Literal:
        return value in args
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if origin is list:
        return isinstance(value, list) and all(fits(v, args[0]) for v in value)
    if origin is Callable:
        return callable(value)
    kinds = (int, float) if hint is float else object if hint is Any else hint
    return isinstance(value, kinds) and not (isinstance(value, bool) and hint in (int, float))


def expected(hint: Any) -> str:
    """A type in words, as the messages say it: `must be ...`."""
    words = {
        int: "a whole number", float: "a number such as 0.1 or 5e-7", str: "text", bool: "true or false",
        type(None): "none", dict: "a dict such as {'name': value}", list: "a list such as ['q_proj', 'v_proj']",
        Literal: "one of " + ", ".join(map(str, typing.get_args(hint))), Callable: "a function",
    }  # fmt: skip
    if len(members(hint)) > 1:
        return " or ".join(dict.fromkeys(map(expected, members(hint))))
    return words.get(typing.get_origin(hint) or hint) or f"{hint.__name__}(...)"


def wrong(value: Any, hint: Any) -> str:
    """What a value of the wrong type must be, and the nearest word where a field lists its words."""
    listed = [word for member in members(hint) for word in typing.get_args(member) if isinstance(word, str)]
    return f"must be {expected(hint)}.{nearest(value, listed) if isinstance(value, str) else ''}"

"""The recipe: a frozen value that says which model, which data, which adapter, which loss and which numbers.

`__post_init__` may refuse, never change. Only the standard library is imported here, so that listing, showing and
refusing a recipe costs milliseconds. `catalogue` finds and loads recipe files, `overrides` changes single values.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

from . import dpoconfig, losses
from .errors import UsageError, nearest

FORMATS = ("preference", "text", "ultrafeedback", "hh_rlhf")
PREPARED = "{prepared}"  # in `model` and `data.path`: the folder that the recipe's `prepare` fills


class Value:
    """A dataclass that remembers which of its fields were given, and refuses a value of the wrong type.

    `given` takes no part in comparisons.
    """

    given: frozenset[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> typing.Self:
        self = super().__new__(cls)
        by_position = {f.name for f in fields(cls)[: len(args)]}  # type: ignore[arg-type]
        object.__setattr__(self, "given", frozenset(kwargs) | by_position)
        return self

    def evolve(self, *unset: str, **changes: Any) -> typing.Self:
        """The same value with some fields changed; what was left at its default stays so, and `unset` returns to it."""
        return type(self)(**{name: getattr(self, name) for name in self.given.difference(unset)} | changes)

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = getattr(self, name)
            self._refuse_unless(fits(value, hint), name, f"has the wrong type: expected {expected(hint)}.")
            self._refuse_unless(value != "", name, f"is empty: expected {expected(hint)}.")

    def _refuse_unless(self, holds: bool, name: str, why: str) -> None:
        if not holds:
            value = getattr(self, name)
            shown = losses.name_of(value) if callable(value) else repr(value)
            raise UsageError(f"{type(self).__name__}.{name}={shown} {why}")


@dataclass(frozen=True, kw_only=True)
class Data(Value):
    """Preference pairs: a hub id, a local json, jsonl, csv or parquet file, or a folder of files named after splits."""

    path: str = field(kw_only=False)
    train: str = "train"  # split, or a slice of one: "train[:1000]"
    eval: str | float = 0.05  # a split, or the share of the train pairs to hold out
    subset: str | None = None  # configuration name on the hub
    data_dir: str | None = None  # folder inside the hub data set
    revision: str | None = None  # branch, tag or commit of the hub data set
    format: str | None = None  # one of FORMATS; None: recognised from the columns
    chat_template: str | None = None  # Jinja, for a base model that has none
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # e.g. {"enable_thinking": False}
    template_date: str | None = None  # YYYY-MM-DD, for templates that print today's date
    max_dropped: float = 0.05  # share of rows that may be unusable before the run is refused

    def __post_init__(self) -> None:
        super().__post_init__()
        share = isinstance(self.eval, str) or 0 < self.eval < 1
        self._refuse_unless(share, "eval", "is no share to hold out: it lies between 0 and 1, or names a split.")
        self._refuse_unless(0 <= self.max_dropped <= 1, "max_dropped", "is no share: it lies between 0 and 1.")
        known = f"is not one of {', '.join(FORMATS)}.{nearest(self.format or '', FORMATS)}"
        self._refuse_unless(self.format in (None, *FORMATS), "format", known)
        try:
            dated = (
                self.template_date is None or date.fromisoformat(self.template_date).isoformat() == self.template_date
            )
        except ValueError:
            dated = False
        self._refuse_unless(dated, "template_date", "is not a date as YYYY-MM-DD, such as 2025-07-08.")


@dataclass(frozen=True, kw_only=True)
class LoRA(Value):
    """Train a low-rank adapter (2106.09685); the reference is the base model with the adapter disabled.

    With `continue_from`, an adapter's folder, that adapter is trained on and its frozen copy is the reference; rank,
    alpha and modules are then the adapter's own.
    """

    r: int = 16
    alpha: int | None = None  # None: twice the rank
    dropout: float = 0.0  # acts only with trl={"disable_dropout": False}
    target_modules: str | list[str] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    continue_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_unless(self.r >= 1, "r", "is too small: a rank is at least 1.")
        self._refuse_unless(self.alpha is None or self.alpha >= 1, "alpha", "is too small: it is at least 1.")
        self._refuse_unless(0 <= self.dropout < 1, "dropout", "does not lie in [0, 1).")
        named = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        self._refuse_unless(all(named) and bool(named), "target_modules", "names no module: 'all-linear' is a start.")
        self._refuse_unless("all_linear" not in named, "target_modules", "names no module. Did you mean 'all-linear'?")
        headless = "lm_head" not in named
        self._refuse_unless(
            headless, "target_modules", "would never train the head, whose weight TRL reads past any adapter."
        )
        if self.continue_from is not None and (extra := self.given - {"continue_from", "double_quant"}):
            raise UsageError(
                f"{type(self).__name__}.{min(extra)} cannot be set beside continue_from: the adapter in "
                f"{self.continue_from!r} brings its own. Delete one of the two."
            )


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
    revision: str | None = None  # of the model, its tokenizer and the reference
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
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    attn_implementation: str | None = None  # None: Transformers' choice
    trust_remote_code: bool = False
    seed: int = 42
    reward: Callable[[str, str], float] | None = None  # reward(prompt, completion), for the evaluation
    prepare: Callable[[Path, int], None] | None = None  # prepare(folder, seed): fills {prepared} on first use
    trl: dict[str, Any] = field(default_factory=dict)  # any other DPOConfig field, in TRL's spelling

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "learning_rate", "num_train_epochs"):
            value = getattr(self, name)
            self._refuse_unless(value is None or 0 < value < float("inf"), name, "is not a positive, finite number.")
        for name, low in (("global_batch_size", 1), ("micro_batch_size", 1), ("max_length", 2)):
            value = getattr(self, name)
            self._refuse_unless(value is None or value >= low, name, f"is too small: at least {low}.")
        self._refuse_unless(0 <= self.seed < 2**32, "seed", "is no seed: they lie in [0, 2**32).")
        dtypes = ("auto", "float32", "bfloat16", "float16")
        known = f"is not one of {', '.join(dtypes)}.{nearest(self.dtype, dtypes)}"
        self._refuse_unless(self.dtype in dtypes, "dtype", known)
        nan = "in full fine-tuning turns the weights to NaN; use 'bfloat16', 'float32', or an adapter."
        self._refuse_unless(self.dtype != "float16" or self.adapter is not None, "dtype", nan)
        free = self.dtype == "auto" or not isinstance(self.adapter, QLoRA)
        self._refuse_unless(free, "dtype", "does nothing under QLoRA, which computes in bf16: delete it.")
        used = PREPARED in f"{self.model} {self.data.path} {self.reference}"
        if self.prepare is None and used:
            raise UsageError(f"Recipe.model, data.path or reference names {PREPARED}, but no `prepare` fills it.")
        idle = f"would fill {PREPARED}, which model, data.path and reference do not name: prepare=None."
        self._refuse_unless(used or self.prepare is None, "prepare", idle)
        self._must_accept("prepare", "folder", "seed")
        self._must_accept("reward", "prompt", "completion")
        losses.check(self.weights, self.loss_args)
        unread = self.loss_names == {"sft"} and self.beta != 0.1
        self._refuse_unless(not unread, "beta", "does nothing: loss='sft' is plain likelihood and reads no beta.")
        self._check_trl()

    def _must_accept(self, name: str, *arguments: str) -> None:
        """Refuse a function that cannot be called as it will be, perhaps hours later."""
        try:
            if function := getattr(self, name):
                inspect.signature(function).bind(*arguments)
        except TypeError as error:
            why = f"is called as {name}({', '.join(arguments)}), which cannot work: {error}."
            self._refuse_unless(False, name, why)
        except ValueError:
            pass  # written in C, without a signature

    def _check_trl(self) -> None:
        """Refuse options of TRL's that cannot work, or do nothing, beside the rest of the recipe."""
        trl, adapter = self.trl, self.adapter
        precomputes = adapter is None or self.reference is not None
        dpoconfig.check(trl, self.loss_names, bool(self.plugins), precomputes)
        if "exo_pair" in self.loss_names and not trl.get("label_smoothing"):
            raise UsageError("loss='exo_pair' needs trl.label_smoothing above 0; the EXO paper uses 0.001.")
        if trl.get("label_smoothing", 0.0) >= 0.5:
            raise UsageError(
                f"trl.label_smoothing={trl['label_smoothing']!r} must lie below 0.5: labels flip less than half."
            )
        if adapter is not None and adapter.dropout and trl.get("disable_dropout", True):
            raise UsageError(
                f"adapter.dropout={adapter.dropout!r} would do nothing: TRL disables all dropout. Add "
                "trl={'disable_dropout': False}, or delete it."
            )
        if trl.get("sync_ref_model"):
            if adapter is not None or self.reference is not None or trl.get("precompute_ref_log_probs"):
                raise UsageError(
                    "trl.sync_ref_model moves a copy of the start weights after the policy: it needs adapter=None, "
                    "reference=None and no precompute_ref_log_probs."
                )
        elif precomputes and trl.get("precompute_ref_log_probs") is False:
            raise UsageError(
                "trl.precompute_ref_log_probs=False would keep a second model in memory: in full fine-tuning, and with "
                "a reference of its own, its log-probabilities are computed before training. Delete it."
            )
        epochs = self.num_train_epochs == 1 or trl.get("max_steps", -1) < 1
        self._refuse_unless(epochs, "num_train_epochs", "does nothing beside trl.max_steps: keep one of the two.")

    @property
    def name(self) -> str:
        """The stem of the recipe's file."""
        return self.source.stem if self.source else "recipe"

    @property
    def weights(self) -> dict[str | Callable[..., Any], float]:
        """Every loss with its weight; one loss alone has weight 1."""
        return dict(self.loss) if isinstance(self.loss, dict) else {self.loss: 1.0}

    @property
    def loss_names(self) -> set[str]:
        return {losses.name_of(loss) for loss in self.weights}

    @property
    def plugins(self) -> dict[str, tuple[losses.Loss, float]]:
        """name -> (function, weight) of the losses that are not TRL's."""
        found: dict[str, tuple[losses.Loss, float]] = {}
        for loss, weight in self.weights.items():
            if not isinstance(loss, str):
                found[losses.name_of(loss)] = (loss, weight)
            elif loss in losses.LOSSES:
                found[loss] = (losses.LOSSES[loss], weight)
        return found

    @property
    def trl_losses(self) -> dict[str, float]:
        """name -> weight of TRL's own losses."""
        return {
            loss: weight for loss, weight in self.weights.items() if isinstance(loss, str) and loss in losses.TRL_LOSSES
        }


def hints(cls: type) -> dict[str, Any]:
    """Field name -> resolved type, in the order of declaration."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in fields(cls)}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type a field declares; an int is a float, a bool is not an int."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if origin is list:
        return isinstance(value, list) and all(fits(v, args[0]) for v in value)
    if origin is Callable or getattr(origin, "__name__", "") == "Callable":
        return callable(value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def expected(hint: Any) -> str:
    """A type in words, as the error messages say it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(expected(a) for a in args))
    if origin is dict:
        return "a dict such as {'sigmoid': 1.0, 'sft': 0.1}" if args[1] is float else "a dict such as {'name': value}"
    if origin is list:
        return "a list such as ['q_proj', 'v_proj']"
    words = {int: "a whole number", float: "a number such as 0.1 or 5e-7", str: "text", bool: "true or false"}
    words |= {type(None): "none", LoRA: "LoRA(...)", QLoRA: "QLoRA(...)", Data: "Data(...)", Any: "anything"}
    return words.get(hint, "a function")

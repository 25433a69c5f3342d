"""The recipe: a frozen value that says which model, which data, which adapter, which loss and which numbers.

`__post_init__` may refuse, never change. Nothing heavy is imported, so that showing or refusing a recipe is quick.
"""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..losses.plugins import Loss
from ..losses.selection import function_of, name_of, own_numbers, refuse_impossible_losses
from ..losses.trl_losses import LIKELIHOOD_LOSSES, SMOOTHED_LOSSES, TRL_LOSSES
from . import trl_options as dpoconfig
from .validation import Value

Format = Literal[
    "preference", "text", "ultrafeedback", "hh_rlhf", "sharegpt", "alpaca", "orca", "shp", "helpsteer2", "helpsteer3",
    "summarize", "ultrainteract",
]  # fmt: skip
PREPARED = "{prepared}"  # in `model` and `data.path`: the folder that the recipe's `prepare` fills


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

"""What a recipe becomes on a device: mode defaults, micro-batch, precision, and the one table Recipe -> DPOConfig."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from . import dpoconfig, losses
from .errors import UsageError
from .overrides import origin
from .recipe import Data, LoRA, QLoRA, Recipe, hints

# A pair's loss depends on the other pairs of its micro-batch here, so the micro-batch is part of the maths.
COUPLED = ("aot", "aot_unpaired", "sft")


@dataclass(frozen=True)
class Device:
    """Where the run happens: torch's name, whether bf16 is native there, and the number of processes."""

    kind: str = "cpu"
    bf16: bool = False
    processes: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE") or 1))


@dataclass(frozen=True)
class Settings:
    """The numbers a recipe leaves to the mode, decided."""

    device: str  # torch's name of the device
    learning_rate: float
    weights: str  # dtype of the base weights: float32, bfloat16, float16
    autocast: str | None  # bf16, fp16 or none
    micro_batch_size: int  # pairs per device and forward
    accumulation: int  # forwards per optimiser step
    reference: str  # adapter off | frozen adapter | start weights | moving copy | other model
    precompute: bool  # reference log-probabilities computed once, before training


def resolve(recipe: Recipe, device: Device) -> Settings:
    """Decide what the recipe leaves open. UsageError when the batch does not divide or the precision does not exist."""
    weights, autocast = _precision(recipe, device)
    micro, accumulation = _batch(recipe, device)
    reference = _reference(recipe)
    return Settings(
        device=device.kind,
        learning_rate=recipe.learning_rate or (5e-7 if recipe.adapter is None else 5e-6),
        weights=weights,
        autocast=autocast,
        micro_batch_size=micro,
        accumulation=accumulation,
        reference=reference,
        precompute=reference in ("start weights", "other model") or bool(recipe.trl.get("precompute_ref_log_probs")),
    )


def _reference(recipe: Recipe) -> str:
    if recipe.trl.get("sync_ref_model"):
        return "moving copy"
    if recipe.reference is not None:
        return "other model"
    if recipe.adapter is None:
        return "start weights"
    return "frozen adapter" if recipe.adapter.continue_from else "adapter off"


def _precision(recipe: Recipe, device: Device) -> tuple[str, str | None]:
    if isinstance(recipe.adapter, QLoRA):
        half = "bfloat16" if device.bf16 or device.kind == "cpu" else "float16"
    elif recipe.dtype == "auto":
        if not device.bf16:
            return "float32", None
        return ("float32" if recipe.adapter is None else "bfloat16"), "bf16"
    elif recipe.dtype == "float32":
        return "float32", None
    else:
        half = recipe.dtype
    if half == "float16" and device.kind == "cpu":
        raise UsageError("dtype='float16' does not train on a CPU: use 'float32' or 'bfloat16'.")
    if half == "bfloat16" and device.kind == "cuda" and not device.bf16:
        raise UsageError("dtype='bfloat16' is not native to this GPU: use 'auto', or 'float16' with an adapter.")
    return half, "bf16" if half == "bfloat16" else "fp16"


def _batch(recipe: Recipe, device: Device) -> tuple[int, int]:
    total, processes = recipe.global_batch_size, device.processes
    if total % processes:
        near = {n for n in (total - total % processes, total - total % processes + processes) if n}
        raise UsageError(
            f"global_batch_size={total} pairs do not divide over {processes} processes. "
            f"Nearest that {'does' if len(near) == 1 else 'do'}: {' and '.join(map(str, sorted(near)))}."
        )
    share, micro = total // processes, recipe.micro_batch_size
    if micro is None:
        if coupled := [n for n in COUPLED if n in recipe.loss_names]:
            raise UsageError(
                f"loss={coupled[0]!r} depends on which pairs share a forward: micro_batch_size is part of the maths, "
                "and must be set."
            )
        micro = max(n for n in (1, 2, 3, 4) if share % n == 0)
    if share % micro:
        divisors = [str(n) for n in range(1, min(share, 1024) + 1) if share % n == 0]
        raise UsageError(
            f"micro_batch_size={micro} does not divide the {share} pairs per device and step (global_batch_size="
            f"{total} over {processes} process{'es' if processes > 1 else ''}). It can be {', '.join(divisors)}."
        )
    return micro, share // micro


def dpo_config(recipe: Recipe, settings: Settings, output_dir: str) -> dict[str, Any]:
    """The one translation: every DPOConfig argument that is not TRL's own default. `recipe.trl` has the last word."""
    weights = list(recipe.trl_losses.values())
    return {
        "output_dir": output_dir,
        "beta": recipe.beta,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": recipe.num_train_epochs,
        "max_length": recipe.max_length,
        "seed": recipe.seed,
        "loss_type": list(recipe.trl_losses),  # empty beside plugins alone: TRL then computes the metrics only
        "loss_weights": weights if any(w != 1 for w in weights) else None,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "bf16": settings.autocast == "bf16",
        "fp16": settings.autocast == "fp16",
        "use_cpu": settings.device == "cpu",  # or else bf16 is refused there
        "trust_remote_code": recipe.trust_remote_code,
        "precompute_ref_log_probs": settings.precompute,
        "disable_tqdm": True,  # the progress bar is ours
        "logging_steps": 1,  # every step lands in metrics.jsonl; TRL computes the metrics at every step anyway
        "per_device_eval_batch_size": settings.micro_batch_size,
        **recipe.trl,
    }


def differences(config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """name -> (this run's value, TRL's own default) of each DPOConfig field that differs."""
    defaults = {name: option.default for name, option in dpoconfig.options().items()} | {
        "bf16": True,
        "disable_tqdm": False,
    }
    found = {name: (value, defaults[name]) for name, value in config.items() if value != defaults[name]}
    found.pop("output_dir", None)
    return found


def plain(value: Any) -> Any:
    """A recipe's value as JSON can hold it: functions by name, an adapter by its kind."""
    if isinstance(value, LoRA):
        return type(value).__name__
    if callable(value):
        return losses.name_of(value)
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    return value


def rows(recipe: Recipe, settings: Settings) -> dict[str, tuple[Any, str]]:
    """Dotted key -> (resolved value, origin): default, mode default, recipe file or command line."""
    adapter = recipe.adapter
    args = {n: d for f, _ in recipe.plugins.values() for n, d in losses.own_numbers(f).items()} | recipe.loss_args
    parts: dict[str, list[str]] = {
        "model": [f"data.{n}" for n in hints(Data)],
        "adapter": [f"adapter.{n}" for n in hints(type(adapter))] if adapter else [],
        "loss": [f"loss_args.{n}" for n in args],
    }
    if adapter and adapter.continue_from:  # rank, alpha and modules are then the continued adapter's own
        parts["adapter"] = [k for k in parts["adapter"] if k in ("adapter.continue_from", "adapter.double_quant")]
    keys = [k for n in hints(Recipe) if n not in ("data", "trl", "loss_args") for k in (n, *parts.get(n, ()))]
    found: dict[str, tuple[Any, str]] = {}
    for key in (*keys, *(f"trl.{n}" for n in recipe.trl)):
        head, _, rest = key.partition(".")
        owner = args if head == "loss_args" else getattr(recipe, head)
        value = owner if not rest else owner[rest] if isinstance(owner, dict) else getattr(owner, rest)
        found[key] = (plain(value), origin(recipe, key))
    by_mode = {
        "learning_rate": settings.learning_rate,
        "micro_batch_size": settings.micro_batch_size,
        "dtype": f"{settings.weights} weights" + (f", {settings.autocast} autocast" if settings.autocast else ""),
        "reference": settings.reference,
        "adapter.alpha": 2 * adapter.r if adapter else None,
    }
    for key, value in by_mode.items():
        if key in found and found[key][0] in (None, "auto"):
            found[key] = (value, "mode default")
    return found


def show(recipe: Recipe, device: Device | None = None) -> dict[str, Any]:
    """What `dpo-recipes show` prints: `recipe` (key -> value, origin) and `trl` (name -> value, TRL's default)."""
    device = device or (Device() if recipe.trl.get("use_cpu") else here())
    settings = resolve(recipe, device)
    differing = differences(dpo_config(recipe, settings, ""))
    return {
        "name": recipe.name,
        "device": device.kind,
        "step": step(recipe, settings, device),
        "recipe": {key: {"value": value, "origin": where} for key, (value, where) in rows(recipe, settings).items()},
        "trl": {name: {"value": value, "default": default} for name, (value, default) in differing.items()},
    }


def step(recipe: Recipe, settings: Settings, device: Device) -> str:
    """How many pairs an optimiser step takes, and how they get there: the derived numbers, in words."""
    parts = f"{settings.micro_batch_size} pairs x {settings.accumulation} accumulation"
    parts += f" x {device.processes} processes" if device.processes > 1 else ""
    return f"{recipe.global_batch_size} pairs a step = {parts}"


def here() -> Device:
    """The device of this machine as far as it can be known without importing torch."""
    if os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        return Device("cuda", bf16=True)
    return Device("mps" if sys.platform == "darwin" and os.uname().machine == "arm64" else "cpu")

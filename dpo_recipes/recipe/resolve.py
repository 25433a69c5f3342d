"""What a recipe becomes on a device: mode defaults, micro-batch, precision, and the one table Recipe -> DPOConfig."""

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..losses.selection import name_of, own_numbers
from ..losses.trl_losses import COUPLED_LOSSES
from . import trl_options as dpoconfig
from .overrides import origin
from .recipe import Data, LoRA, QLoRA, Recipe, hints


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
    adapter, trl = recipe.adapter, recipe.trl
    start = "start weights" if adapter is None else "frozen adapter" if adapter.continue_from else "adapter off"
    reference = "moving copy" if trl.get("sync_ref_model") else "other model" if recipe.reference else start
    rate = recipe.learning_rate or (5e-7 if adapter is None else 5e-6)
    precompute = reference in ("start weights", "other model") or bool(trl.get("precompute_ref_log_probs"))
    return Settings(device.kind, rate, *_precision(recipe, device), *_batch(recipe, device), reference, precompute)


def _precision(recipe: Recipe, device: Device) -> tuple[str, str | None]:
    half, auto = recipe.dtype, recipe.dtype == "auto" and not isinstance(recipe.adapter, QLoRA)
    if half == "float32" or auto and (recipe.adapter is None or not device.bf16):
        return "float32", "bf16" if auto and device.bf16 else None
    if half == "auto":
        half = "bfloat16" if device.bf16 or device.kind == "cpu" else "float16"
    if half == "float16" and device.kind == "cpu":
        raise UsageError("dtype='float16' does not train on a CPU: use 'float32' or 'bfloat16'.")
    if half == "bfloat16" and device.kind == "cuda" and not device.bf16:
        raise UsageError("dtype='bfloat16' is not native to this GPU: use 'auto', or 'float16' with an adapter.")
    return half, "bf16" if half == "bfloat16" else "fp16"


def _batch(recipe: Recipe, device: Device) -> tuple[int, int]:
    """Pairs per device and forward, and forwards per step: their product over all processes is the global batch."""
    total, processes, micro = recipe.global_batch_size, device.processes, recipe.micro_batch_size
    share, rest = divmod(total, processes)
    if rest:
        near = " and ".join(str(n) for n in (total - rest, total - rest + processes) if n)
        raise UsageError(f"global_batch_size={total} pairs do not divide over {processes} processes. Nearest: {near}.")
    if micro is None and (coupled := recipe.loss_names & COUPLED_LOSSES):
        raise UsageError(f"loss={min(coupled)!r} depends on which pairs share a forward: set micro_batch_size.")
    micro = micro or max(n for n in (1, 2, 3, 4) if share % n == 0)
    if share % micro:
        divisors = ", ".join(str(n) for n in range(1, min(share, 1024) + 1) if share % n == 0)
        why = f"micro_batch_size={micro} does not divide the {share} pairs per device and step. It can be {divisors}."
        raise UsageError(why)
    return micro, share // micro


def dpo_config(recipe: Recipe, settings: Settings, output_dir: str) -> dict[str, Any]:
    """The one translation: every DPOConfig argument that is not TRL's own default. `recipe.trl` has the last word."""
    weights = list(recipe.trl_losses.values())
    return {
        "output_dir": output_dir, "learning_rate": settings.learning_rate,
        **{n: getattr(recipe, n) for n in ("beta", "num_train_epochs", "max_length", "seed", "trust_remote_code")},
        "loss_type": list(recipe.trl_losses),  # empty beside plugins alone: TRL then computes the metrics only
        "loss_weights": weights if any(w != 1 for w in weights) else None,
        "per_device_train_batch_size": settings.micro_batch_size,
        "per_device_eval_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "bf16": settings.autocast == "bf16", "fp16": settings.autocast == "fp16",
        "use_cpu": settings.device == "cpu",  # or else bf16 is refused there
        "precompute_ref_log_probs": settings.precompute,
        "disable_tqdm": True,  # the progress bar is ours
        "logging_steps": 1,  # every step lands in metrics.jsonl; TRL computes the metrics at every step anyway
        **recipe.trl,
    }  # fmt: skip


def plain(value: Any) -> Any:
    """A recipe's value as JSON can hold it: functions by name, an adapter by its kind."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    return type(value).__name__ if isinstance(value, LoRA) else name_of(value) if callable(value) else value


def rows(recipe: Recipe, settings: Settings) -> dict[str, tuple[Any, str]]:
    """Dotted key -> (resolved value, origin): default, mode default, recipe file or command line."""
    adapter, data = recipe.adapter, recipe.data
    args = {n: d for f, _ in recipe.plugins.values() for n, d in own_numbers(f).items()} | recipe.loss_args
    own = {n: getattr(adapter, n) for n in hints(type(adapter))} if adapter else {}
    if adapter and adapter.continue_from:  # rank, alpha and modules are then the continued adapter's own
        own = {n: value for n, value in own.items() if n in ("continue_from", "double_quant")}
    parts = {"data": {n: getattr(data, n) for n in hints(Data)}, "adapter": own, "loss_args": args, "trl": recipe.trl}
    by_mode = vars(settings) | {
        "dtype": f"{settings.weights} weights" + (f", {settings.autocast} autocast" if settings.autocast else ""),
        "adapter.alpha": 2 * adapter.r if adapter else None,
    }
    found: dict[str, tuple[Any, str]] = {}
    for name in hints(Recipe):
        values = {} if name in ("data", "loss_args", "trl") else {name: getattr(recipe, name)}
        values |= {f"{name}.{n}": value for n, value in parts.get(name, {}).items()}
        for key, value in values.items():
            open_ = key in by_mode and value in (None, "auto")
            found[key] = (by_mode[key], "mode default") if open_ else (plain(value), origin(recipe, key))
    return found


def show(recipe: Recipe, device: Device | None = None) -> dict[str, Any]:
    """What `dpo-recipes show` prints: `recipe` (key -> value, origin) and `trl` (name -> value, TRL's default)."""
    device = device or (Device() if recipe.trl.get("use_cpu") else here())
    settings = resolve(recipe, device)
    step = f"{recipe.global_batch_size} pairs a step = {settings.micro_batch_size} pairs x "
    step += f"{settings.accumulation} accumulation" + f" x {device.processes} processes" * (device.processes > 1)
    trls = {name: option.default for name, option in dpoconfig.options().items()} | {"output_dir": ""}
    trls |= {"bf16": True, "disable_tqdm": False}  # what DPOConfig makes of its own None
    config = dpo_config(recipe, settings, "")
    return {
        "name": recipe.name, "device": device.kind, "step": step,
        "recipe": {key: {"value": value, "origin": where} for key, (value, where) in rows(recipe, settings).items()},
        "trl": {name: {"value": v, "default": trls[name]} for name, v in config.items() if v != trls[name]},
    }  # fmt: skip


def here() -> Device:
    """The device of this machine as far as it can be known without importing torch."""
    if os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        return Device("cuda", bf16=True)
    return Device("mps" if sys.platform == "darwin" and os.uname().machine == "arm64" else "cpu")

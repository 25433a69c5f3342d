"""What a recipe becomes on a device: mode defaults, micro-batch and precision."""

import os
import sys
from dataclasses import dataclass, field

from ..errors import UsageError
from ..losses.trl_losses import COUPLED_LOSSES
from .recipe import QLoRA, Recipe


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


def here() -> Device:
    """The device of this machine as far as it can be known without importing torch."""
    if os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        return Device("cuda", bf16=True)
    return Device("mps" if sys.platform == "darwin" and os.uname().machine == "arm64" else "cpu")

"""What a recipe becomes on a device: learning rate, precision, micro-batch and reference, where it leaves them open."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace

from ..errors import UsageError
from ..losses.trl_losses import COUPLED_LOSSES, SFT
from .adapters import LoRA, QLoRA
from .choices import IN_STEPS
from .recipe import Recipe


def processes() -> int:
    """How many the launcher (accelerate, torchrun) has started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def process() -> int:
    """Which of them this is; 0 is the main one, and the only one where there is no launcher."""
    return int(os.environ.get("RANK") or 0)


@dataclass(frozen=True)
class Device:
    """Where the run happens: torch's name, whether bf16 is native there, and the number of processes."""

    kind: str = "cpu"
    bf16: bool = False
    processes: int = field(default_factory=processes)


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
    precompute: bool  # reference log-probabilities computed once, before training: never a second model while training

    @property
    def in_16_bits(self) -> bool:
        """Whether matrices are multiplied in 16 bits: under autocast, without which no weights have so few."""
        return self.autocast is not None

    @property
    def loads_reference(self) -> bool:
        """Whether the reference is loaded as a model of its own, and is not the policy's own weights."""
        reads_its_start_in_steps = self.reference == "start weights" and not self.precompute
        return self.reference in ("other model", "moving copy") or reads_its_start_in_steps


def resolve(recipe: Recipe, device: Device) -> Settings:
    """Decide what the recipe leaves open. UsageError when the batch does not divide or the precision does not exist."""
    weights, autocast = _precision(recipe, device)
    micro_batch_size, accumulation = _batch(recipe, device)
    return Settings(
        device=device.kind,
        learning_rate=_learning_rate(recipe),
        weights=weights,
        autocast=autocast,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation,
        reference=_reference(recipe),
        precompute=recipe.precomputes_reference and IN_STEPS not in recipe.reasons,
    )


def here() -> Device:
    """The device of this machine as far as it can be known without importing torch."""
    has_gpu = os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    if has_gpu:
        return Device("cuda", bf16=True)
    if sys.platform == "darwin" and os.uname().machine == "arm64":
        return Device("mps")
    return Device("cpu")


def multiplies_bf16() -> bool:
    """Whether this machine's CPU has units for matrices in bf16: AMX, as Intel's Xeons since 2023 have it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return " amx_bf16" in file.read()
    except OSError:
        return False


def _learning_rate(recipe: Recipe) -> float:
    if recipe.learning_rate is not None:
        return recipe.learning_rate
    return 5e-7 if recipe.adapter is None else 5e-6


def _reference(recipe: Recipe) -> str:
    """Which model the policy is compared with."""
    if recipe.trl.get("sync_ref_model"):
        return "moving copy"
    if recipe.reference:
        return "other model"
    if recipe.adapter is None:
        return "start weights"
    if recipe.adapter.continue_from:
        return "frozen adapter"
    return "adapter off"


def _precision(recipe: Recipe, device: Device) -> tuple[str, str | None]:
    """The dtype of the base weights, and of autocast where there is any."""
    if recipe.dtype == "auto":
        if "dtype" in recipe.reasons:  # chosen for a CPU
            device = replace(device, bf16=True)
        return _automatic_precision(recipe.adapter, device)
    if recipe.dtype == "float32":
        return "float32", None
    if recipe.dtype == "float16" and device.kind == "cpu":
        raise UsageError("dtype='float16' does not train on a CPU: use 'float32' or 'bfloat16'.")
    if recipe.dtype == "bfloat16" and device.kind == "cuda" and not device.bf16:
        raise UsageError("dtype='bfloat16' is not native to this GPU: use 'auto', or 'float16' with an adapter.")
    return recipe.dtype, "bf16" if recipe.dtype == "bfloat16" else "fp16"


def _automatic_precision(adapter: LoRA | None, device: Device) -> tuple[str, str | None]:
    if isinstance(adapter, QLoRA):  # a 4-bit base computes in 16 bit everywhere, slowly or not
        if device.bf16 or device.kind == "cpu":
            return "bfloat16", "bf16"
        return "float16", "fp16"
    if not device.bf16:
        return "float32", None
    if adapter is None:  # 16-bit weights swallow small steps
        return "float32", "bf16"
    return "bfloat16", "bf16"


def _batch(recipe: Recipe, device: Device) -> tuple[int, int]:
    """Pairs per device and forward, and forwards per step: their product over all processes is the global batch."""
    total, processes = recipe.global_batch_size, device.processes
    pairs, rest = divmod(total, processes)  # per device and step
    if rest:
        multiples = (total - rest, total - rest + processes)
        nearest_sizes = " and ".join(str(size) for size in multiples if size > 0)
        raise UsageError(
            f"global_batch_size={total} pairs do not divide over {processes} processes. Nearest: {nearest_sizes}."
        )

    coupled = recipe.loss_names & COUPLED_LOSSES
    if recipe.sft_weight is not None:
        coupled -= {SFT}  # a remedy of one field: it need not come with another
    if coupled and recipe.micro_batch_size is None:
        raise UsageError(f"loss={min(coupled)!r} depends on which pairs share a forward: set micro_batch_size.")

    micro_batch_size = recipe.micro_batch_size or max(size for size in (1, 2, 3, 4) if pairs % size == 0)
    if pairs % micro_batch_size:
        up_to = min(pairs, 1024)  # of a larger batch the message would be a list of thousands
        divisors = ", ".join(str(size) for size in range(1, up_to + 1) if pairs % size == 0)
        raise UsageError(
            f"micro_batch_size={micro_batch_size} does not divide the {pairs} pairs per device and step. "
            f"It can be {divisors}."
        )
    return micro_batch_size, pairs // micro_batch_size

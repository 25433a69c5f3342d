"""The device that a run uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from packaging.version import Version

from ..errors import RecipeError
from ..recipe.resolve import Device

Say = Callable[[str], None]


def device(say: Say = lambda _: None, use_cpu: bool = False) -> Device:
    """Where this process trains. On CUDA, switches off an attention kernel whose gradients can be NaN, and says so."""
    if Device().processes > 1:
        raise RecipeError(f"This version trains in one process; a launcher started {Device().processes}.")
    if torch.cuda.is_available() and not use_cpu:
        if (count := torch.cuda.device_count()) > 1:
            raise RecipeError(f"{count} GPUs are visible, and one process uses one. Set CUDA_VISIBLE_DEVICES=0, say.")
        if Version(torch.__version__) >= Version("2.11") and torch.backends.cuda.cudnn_sdp_enabled():
            # pytorch#196678, trl#7181: NaN in grad_q under a mask at lengths of 64 mod 128 on H100 and H200, since
            # 2.11, seen on 2.13. To be bounded above by the first release that carries the fix.
            torch.backends.cuda.enable_cudnn_sdp(False)
            say(f"cuDNN attention is off: with torch {torch.__version__} its gradients can be NaN under a mask.")
        return Device("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.mps.is_available() and not use_cpu:
        return Device("mps")
    return Device()

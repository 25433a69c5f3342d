"""What a recipe needs on a device, from shapes alone: one training step on fake tensors, its live bytes counted.

Leans on TRL 1.16: which positions its head scores, and the size of every buffer on the way, forward and backward.
"""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import os
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import RecipeError, UsageError
from ..recipe.dpo_arguments import dpo_arguments
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, Settings, resolve
from ..training.session import Session

USABLE = 0.95  # of a device's memory: the rest is the driver's, the kernels' and lost in fragments
PARTS = ("weights", "adapter", "gradients", "optimizer", "reference", "activations", "head")
logging.getLogger("torch._subclasses.fake_tensor").disabled = True  # what does not run is said once, by us
STATES = {  # name of an optimiser, or a part of it -> bytes that it keeps per number; any other is taken for AdamW
    "sgd": 0, "adafactor": 0, "rmsprop_bnb_8bit": 1, "rmsprop": 4, "adagrad": 4, "ademamix_8bit": 3, "ademamix": 12,
    "lion_8bit": 1, "lion": 4, "4bit": 1, "8bit": 2, "32bit": 8,
}  # fmt: skip


class Unplannable(RecipeError):
    """What cannot be known without the real thing."""


@dataclass(frozen=True)
class Plan:
    """What trains, and the bytes that are live at the worst moment; a device's context and fragments come on top."""

    trainable: int  # numbers
    total: int
    moment: str  # reference | evaluation | step
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    reference: int  # a frozen adapter or a second model; log-probabilities computed before training are nothing
    activations: int
    head: int  # TRL's: a tile of logits, and the gradients of what made them
    peak: int  # their sum


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, by part, and keeps the count of the worst moment."""

    def __init__(self) -> None:
        super().__init__()
        self.moment, self.known, self.now, self.worst = (
            "",
            WeakIdKeyDictionary(),
            Counter[str](),
            (0, "", Counter[str]()),
        )

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(torch.Tensor, self.add, function(*args, **(kwargs or {})))

    def add(self, tensor: torch.Tensor, part: str = "") -> Any:
        """Count a tensor's storage, once, as activations or as the part that it is said to be."""
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known[storage] = Counter()  # part -> bytes
            weakref.finalize(storage, self.now.subtract, self.known[storage])
        held = self.known[storage]
        if part or not held:
            self.now.subtract(held)
            held.clear()
            held[part or "activations"] = storage.nbytes()
            self.now.update(held)
        if (total := self.now.total()) >= self.worst[0]:
            self.worst = total, self.moment, self.now.copy()
        return tensor


class Head(torch.autograd.Function):
    """What TRL's head allocates on the way from hidden states (positions, width) to log-probabilities, and back."""

    @staticmethod
    def forward(ctx: Any, live: Live, triton: bool, hidden: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, *weights)
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        (n, width), weight, single = hidden.shape, weights[0], half == torch.float32
        rows, words = min(n, 4096), min(len(weight), 32768)  # of a tile

        def tile(back: bool) -> torch.Tensor:  # Triton folds it in place; torch in fp32 copies, and adds gradients so
            cast = words * (weight.dtype != half) * (1 + (back and len(weight) > words)) + rows * (hidden.dtype != half)
            copies = max(rows * words * (29 if back else 13) // 4, back * words * (rows + width) * (not single))
            buffer = live.add(hidden.new_empty(rows * 32768 + cast * width, dtype=half), "head")
            live.add(hidden.new_empty(0 if triton else copies, dtype=torch.float32), "head")
            return buffer

        ctx.live, ctx.tile = live, tile
        tile(back=False)
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        asked = list(zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True))
        grads = [ctx.live.add(torch.zeros_like(t, dtype=torch.float32), "head") if on else None for t, on in asked]
        _buffer = ctx.tile(back=True)
        return None, None, *(g if g is None else g.to(t.dtype) for g, (t, _) in zip(grads, asked, strict=True))


def plan(skeleton: Any, recipe: Recipe, settings: Settings, *, tokens: int, second: Any = None) -> Plan:
    """The plan for sequences of at most `tokens`, prompt and completion; `second`: the skeleton of another reference.
    Unplannable where a model does not run on fake tensors."""
    options: dict[str, Any] = {"gradient_checkpointing": True, "optim": "adamw"} | dpo_arguments(recipe, settings, "")
    live, rows = Live(), settings.micro_batch_size
    passes = max(rows, options["per_device_eval_batch_size"], options.get("precompute_ref_batch_size") or 0)
    try:
        with FakeTensorMode(), live:
            policy, reference = _lent(skeleton, live), second and _lent(second, live, "reference")
            trained = [p for p in policy.train().parameters() if p.requires_grad]
            if second:
                live.moment = "reference"
                _forward(reference, live, settings, passes, tokens)
                live.now["reference"] *= settings.reference == "moving copy"  # of another, the log-probabilities stay
            states = next((size for name, size in STATES.items() if name in options["optim"]), None)
            live.now["optimizer"] = sum(p.numel() * (2 * p.itemsize if states is None else states) for p in trained)
            live.moment = "evaluation"
            _forward(policy, live, settings, passes, tokens)
            live.moment, grown = "step", lambda p: (live.add(p.grad, "gradients"), None)[1]
            for parameter in trained:
                if settings.accumulation > 1:  # the gradients of earlier micro-batches wait
                    parameter.grad = live.add(torch.empty_like(parameter), "gradients")
                parameter.register_post_accumulate_grad_hook(grown)
            if options["gradient_checkpointing"]:
                policy.activation_checkpointing_enable(options.get("gradient_checkpointing_kwargs"))
                if recipe.adapter:
                    policy.enable_input_require_grads()
            _forward(policy, live, settings, rows, tokens, grad=True).sum().backward()
    except Exception as error:
        raise Unplannable(f"This model does not run on fake tensors: {type(error).__name__}: {error}") from error
    ours = [p for name, p in skeleton.named_parameters() if ".ref." not in name]
    sizes = [p.numel() * (1 + hasattr(p, "quant_state")) for p in ours]  # 4 bit: two numbers in a byte
    trainable = sum(size for size, p in zip(sizes, ours, strict=True) if p.requires_grad)
    peak, moment, parts = live.worst
    return Plan(trainable, sum(sizes), moment, peak=peak, **{part: parts[part] for part in PARTS})


def _lent(skeleton: Any, live: Live, part: str = "") -> Any:
    """A copy of a skeleton with fake CPU tensors in place of meta ones, whose attention would hold every score."""
    memo: dict[int, Any] = {}

    def fake(tensor: torch.Tensor, part: str) -> torch.Tensor:
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        return memo.setdefault(id(tensor), live.add(made, part))

    for name, parameter in skeleton.named_parameters():
        own = part or ("adapter" if ".default." in name else "reference" if ".ref." in name else "weights")
        memo[id(parameter)] = made = torch.nn.Parameter(fake(parameter, own), parameter.requires_grad)
        for figure in _figures(parameter):
            fake(figure, own)
        made.quant_state = copy.deepcopy(getattr(parameter, "quant_state", None), memo)  # type: ignore[attr-defined]
    for buffer in skeleton.buffers():
        fake(buffer, part or "weights")
    return copy.deepcopy(skeleton, memo)


def _figures(parameter: torch.Tensor) -> list[torch.Tensor]:
    """What a 4-bit parameter holds beside its numbers: scales and codes."""
    state = getattr(parameter, "quant_state", None)
    values = (*vars(state).values(), *vars(state.state2 or state).values()) if state else ()
    return [value for value in values if isinstance(value, torch.Tensor)]


def _forward(model: Any, live: Live, settings: Settings, pairs: int, tokens: int, grad: bool = False) -> torch.Tensor:
    """A forward as TRL's: padded rows through the backbone, every position but the last through the head."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(settings.autocast))
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.set_grad_enabled(grad), torch.autocast("cpu", half, enabled=half is not None):
        ids, mask, *_ = torch.zeros(4, 2 * pairs, tokens, dtype=torch.long)  # and the completion mask and the labels
        hidden = causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        weights = causal.get_output_embeddings().parameters()  # with a bias in some models
        return Head.apply(live, settings.device == "cuda", hidden.reshape(-1, hidden.shape[-1]), *weights)


def parse_memory(text: str) -> int:
    """Bytes of '24GB' (10^9 each) or '80GiB' (2^30)."""
    found = re.fullmatch(r"(\d*\.?\d+)\s*(?:([KMGT])(i?))?B?", text.strip(), re.IGNORECASE)
    if not found or text.strip()[-1].isdigit() or not float(found[1]):
        raise UsageError(f"--gpu {text!r} is no amount of memory. Examples: 24GB, 80GiB, 512MB.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index((found[2] or " ").upper()))


def measured_peak(step: Callable[[], Any], resident: Iterable[torch.Tensor]) -> int:
    """The most bytes that were live while `step` ran, `resident` included; on CUDA the allocator's own number."""
    gc.collect()  # or what others left behind would be freed, and subtracted, on the way
    tensors = [part for tensor in resident for part in (tensor, *_figures(tensor))]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    if any(storage.device.type == "cuda" for storage in storages.values()):
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = (e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return sum(s.nbytes() for s in storages.values()) + max(0, *itertools.accumulate(changes))


def longest_pair(start: Session, report: dict[str, Any]) -> int:
    """Tokens of the longest pair of either split, as `max_length` cuts it. Unplannable where nothing tells."""
    lengths = [start.recipe.max_length] if start.recipe.max_length else []
    if "tokens" in report.get("train", {}):
        lengths.append(max([2, *start.train["length"], *start.eval["length"]]))
    if not lengths:
        raise Unplannable("Neither the pairs nor max_length say how long a pair can be.")
    return min(lengths)


def plan_for(start: Session, device: Device, tokens: int, recipe: Recipe) -> Plan:
    """The plan of a recipe, which may be a changed one of `start`, on a device, for pairs of at most `tokens`."""
    from ..models.skeleton import skeleton

    settings = resolve(recipe, device)
    policy = skeleton(recipe, settings, start.model_path)
    second = None
    if settings.reference in ("other model", "moving copy"):
        second = skeleton(recipe, settings, start.reference_path or start.model_path, trainable=False)
    return plan(policy, recipe, settings, tokens=min(tokens, recipe.max_length or tokens), second=second)


def device_memory(kind: str) -> int:
    """Bytes of the device that is there."""
    if kind != "cuda":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.cuda.get_device_properties(0).total_memory


def format_memory(size: float) -> str:
    """Bytes as people write them: '1.50 GB' or '24.0 MB'."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"

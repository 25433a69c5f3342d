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
from typing import Any, NamedTuple

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
# Part of an optimiser's name -> bytes that it keeps per number; the first that fits counts, so that the longer names
# come first. Any other is taken for AdamW, with two numbers of the parameter's own size.
STATES = {
    "sgd": 0,
    "adafactor": 0,
    "rmsprop_bnb_8bit": 1,
    "rmsprop": 4,
    "adagrad": 4,
    "ademamix_8bit": 3,
    "ademamix": 12,
    "lion_8bit": 1,
    "lion": 4,
    "4bit": 1,
    "8bit": 2,
    "32bit": 8,
}

# Of TRL's head, which makes logits tile by tile: `TOKEN_CHUNK_SIZE` and `_CHUNKED_LOGPROB_CHUNK_SIZE`.
TILE_POSITIONS = 4096
TILE_WORDS = 32768


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


class Moment(NamedTuple):
    """What is alive at a time."""

    total: int  # bytes
    name: str
    parts: Counter[str]  # part -> bytes


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, by part, and keeps the count of the worst moment."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = ""
        self.now = Counter[str]()  # part -> bytes
        self.worst = Moment(0, "", Counter[str]())
        self._known: Any = WeakIdKeyDictionary()  # storage -> its part and bytes, as a counter

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(torch.Tensor, self.add, function(*args, **(kwargs or {})))

    def add(self, tensor: torch.Tensor, part: str = "") -> Any:
        """Count a tensor's storage, once, as activations or as the part that it is said to be."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = Counter[str]()
            weakref.finalize(storage, self.now.subtract, self._known[storage])

        counted = self._known[storage]
        if part or not counted:
            self.now.subtract(counted)
            counted.clear()
            counted[part or "activations"] = storage.nbytes()
            self.now.update(counted)

        total = self.now.total()
        if total >= self.worst.total:
            self.worst = Moment(total, self.moment, self.now.copy())
        return tensor


class Head(torch.autograd.Function):
    """What TRL's head allocates on the way from hidden states (positions, width) to log-probabilities, and back.

    TRL makes the logits tile by tile and keeps none of them, so that its need is that of one tile, forward or backward,
    and backward of the gradients in float32. Nothing is computed here.
    """

    @staticmethod
    def forward(ctx: Any, live: Live, triton: bool, hidden: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """`weights`: (words, width), and in some models a bias."""
        compute_dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        ctx.save_for_backward(hidden, *weights)
        ctx.live = live
        ctx.triton = triton
        ctx.compute_dtype = compute_dtype

        _tile(live, triton, compute_dtype, hidden, weights[0], backward=False)
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        hidden, weight, *_others = ctx.saved_tensors
        gradients: list[torch.Tensor | None] = []
        for tensor, needs_gradient in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True):
            if needs_gradient:  # TRL adds them up in float32, whatever the tensor has
                gradients.append(ctx.live.add(torch.zeros_like(tensor, dtype=torch.float32), "head"))
            else:
                gradients.append(None)

        _buffer = _tile(ctx.live, ctx.triton, ctx.compute_dtype, hidden, weight, backward=True)  # alive until the end
        returned = []
        for tensor, gradient in zip(ctx.saved_tensors, gradients, strict=True):
            returned.append(None if gradient is None else gradient.to(tensor.dtype))
        return None, None, *returned


def _tile(
    live: Live,
    triton: bool,
    compute_dtype: torch.dtype,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *,
    backward: bool,
) -> torch.Tensor:
    """Allocate what one tile of logits needs, and let go of what is temporary. -> what lives as long as the tile."""
    width = hidden.size(1)
    positions = min(len(hidden), TILE_POSITIONS)
    words = min(len(weight), TILE_WORDS)
    several_tiles = len(weight) > words

    # Hidden states and weights in the dtype of the product, where that is not their own. Backward holds two tiles of
    # the weights where there are several: the new one is made before the old one is let go.
    cast_rows = 0
    if hidden.dtype != compute_dtype:
        cast_rows += positions
    if weight.dtype != compute_dtype:
        cast_rows += 2 * words if backward and several_tiles else words

    # The buffer of logits is TILE_WORDS wide, however few words there are.
    lasting = live.add(hidden.new_empty(positions * TILE_WORDS + cast_rows * width, dtype=compute_dtype), "head")

    # Triton folds a tile in place and adds its products to the gradients in place. Torch makes copies in float32 (and
    # masks, of a quarter of their size): three and a quarter forward, seven and a quarter backward; and, to add a
    # product of 16 bits in float32, copies of both of its factors.
    if not triton:
        quarters = 29 if backward else 13
        numbers = positions * words * quarters // 4
        if backward and compute_dtype != torch.float32:
            numbers = max(numbers, words * (positions + width))
        live.add(hidden.new_empty(numbers, dtype=torch.float32), "head")
    return lasting


# ------------------------------------------------------------------------------------------------------------ the plan


def plan(skeleton: Any, recipe: Recipe, settings: Settings, *, tokens: int, second: Any = None) -> Plan:
    """The plan for sequences of at most `tokens`, prompt and completion; `second`: the skeleton of another reference.

    Unplannable where a model does not run on fake tensors.
    """
    live = Live()
    try:
        with FakeTensorMode(), live:
            _run_on_paper(live, skeleton, second, recipe, settings, tokens)
    except Exception as error:
        raise Unplannable(f"This model does not run on fake tensors: {type(error).__name__}: {error}") from error

    trainable, total = 0, 0
    for name, parameter in skeleton.named_parameters():
        if ".ref." in name:  # a frozen copy of an adapter
            continue
        numbers = parameter.numel()
        if hasattr(parameter, "quant_state"):
            numbers *= 2  # 4 bit: two numbers in a byte
        total += numbers
        if parameter.requires_grad:
            trainable += numbers

    bytes_of_parts = {part: live.worst.parts[part] for part in PARTS}
    return Plan(trainable=trainable, total=total, moment=live.worst.name, peak=live.worst.total, **bytes_of_parts)


def _run_on_paper(live: Live, skeleton: Any, second: Any, recipe: Recipe, settings: Settings, tokens: int) -> None:
    """What a run does, once each, in its order: the pass of another reference, an evaluation, a training step."""
    options: dict[str, Any] = {"gradient_checkpointing": True, "optim": "adamw"} | dpo_arguments(recipe, settings, "")
    pairs_a_step = settings.micro_batch_size
    pairs_a_pass = max(  # without gradients
        pairs_a_step, options["per_device_eval_batch_size"], options.get("precompute_ref_batch_size") or 0
    )
    policy = _on_fake_tensors(skeleton, live).train()
    reference = _on_fake_tensors(second, live, "reference") if second else None
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]

    if reference is not None:
        live.moment = "reference"
        _forward(reference, live, settings, pairs_a_pass, tokens)
        if settings.reference != "moving copy":
            live.now["reference"] = 0  # of another model only the log-probabilities stay

    live.now["optimizer"] = sum(_optimizer_bytes(parameter, options["optim"]) for parameter in trained)
    live.moment = "evaluation"
    _forward(policy, live, settings, pairs_a_pass, tokens)

    live.moment = "step"
    _count_gradients(live, trained, waiting=settings.accumulation > 1)
    if options["gradient_checkpointing"]:
        policy.activation_checkpointing_enable(options.get("gradient_checkpointing_kwargs"))
        if recipe.adapter:
            policy.enable_input_require_grads()
    _forward(policy, live, settings, pairs_a_step, tokens, grad=True).sum().backward()


def _optimizer_bytes(parameter: torch.Tensor, optimizer: str) -> int:
    """What an optimiser keeps for a parameter."""
    for name, bytes_per_number in STATES.items():
        if name in optimizer:
            return parameter.numel() * bytes_per_number
    return parameter.numel() * 2 * parameter.itemsize


def _count_gradients(live: Live, trained: list[Any], waiting: bool) -> None:
    """Count gradients as such when they are made; `waiting`: those of earlier micro-batches are there already."""

    def count(parameter: Any) -> None:
        live.add(parameter.grad, "gradients")

    for parameter in trained:
        if waiting:
            parameter.grad = live.add(torch.empty_like(parameter), "gradients")
        parameter.register_post_accumulate_grad_hook(count)


def _on_fake_tensors(skeleton: Any, live: Live, part: str = "") -> Any:
    """A copy of a skeleton with fake CPU tensors in place of meta ones, whose attention would hold every score.

    `part`: what all of it counts as, instead of weights, adapter and reference by the names of the parameters.
    """
    copies: dict[int, Any] = {}  # id of a tensor -> its fake copy, as `deepcopy` takes them

    def fake(tensor: torch.Tensor, part: str) -> torch.Tensor:
        empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        return copies.setdefault(id(tensor), live.add(empty, part))

    for name, parameter in skeleton.named_parameters():
        own_part = part or _part_of(name)
        fake_parameter = torch.nn.Parameter(fake(parameter, own_part), parameter.requires_grad)
        copies[id(parameter)] = fake_parameter
        for tensor in _quantization(parameter):
            fake(tensor, own_part)
        quant_state = copy.deepcopy(getattr(parameter, "quant_state", None), copies)
        fake_parameter.quant_state = quant_state  # type: ignore[attr-defined]
    for buffer in skeleton.buffers():
        fake(buffer, part or "weights")
    return copy.deepcopy(skeleton, copies)


def _part_of(parameter_name: str) -> str:
    """PEFT names an adapter in its parameters: `default` is trained, `ref` is the frozen start of a continued one."""
    if ".default." in parameter_name:
        return "adapter"
    if ".ref." in parameter_name:
        return "reference"
    return "weights"


def _quantization(parameter: torch.Tensor) -> list[torch.Tensor]:
    """What a 4-bit parameter holds beside its numbers: scales and codes, which may be quantised once more."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    values = [*vars(state).values()]
    if state.state2 is not None:
        values += vars(state.state2).values()
    return [value for value in values if isinstance(value, torch.Tensor)]


def _forward(model: Any, live: Live, settings: Settings, pairs: int, tokens: int, grad: bool = False) -> torch.Tensor:
    """A forward as TRL's: padded rows through the backbone, every position but the last through the head."""
    autocast_dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    autocast = autocast_dtypes.get(str(settings.autocast))
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.set_grad_enabled(grad), torch.autocast("cpu", autocast, enabled=autocast is not None):
        # Of the four tensors in TRL's batch the completion mask and the labels are only held.
        input_ids, attention_mask, *_held = torch.zeros(4, 2 * pairs, tokens, dtype=torch.long)
        output = causal.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden = output.last_hidden_state[:, :-1]
        weights = causal.get_output_embeddings().parameters()  # with a bias in some models
        return Head.apply(live, settings.device == "cuda", hidden.reshape(-1, hidden.shape[-1]), *weights)


def longest_pair(session: Session, report: dict[str, Any]) -> int:
    """Tokens of the longest pair of either split, as `max_length` cuts it. Unplannable where nothing tells."""
    limits = []
    if session.recipe.max_length:
        limits.append(session.recipe.max_length)
    if "tokens" in report.get("train", {}):  # of a stream nothing is known beforehand
        limits.append(max([2, *session.train["length"], *session.eval["length"]]))
    if not limits:
        raise Unplannable("Neither the pairs nor max_length say how long a pair can be.")
    return min(limits)


def plan_for(session: Session, device: Device, tokens: int, recipe: Recipe) -> Plan:
    """The plan of a recipe, the session's own or a changed one, on a device, for pairs of at most `tokens`."""
    from ..models.skeleton import skeleton

    settings = resolve(recipe, device)
    policy = skeleton(recipe, settings, session.model_path)
    second = None
    if settings.reference in ("other model", "moving copy"):
        second = skeleton(recipe, settings, session.reference_path or session.model_path, trainable=False)
    return plan(policy, recipe, settings, tokens=min(tokens, recipe.max_length or tokens), second=second)


# -------------------------------------------------------------------------------------------------------------- memory


def parse_memory(text: str) -> int:
    """Bytes of '24GB' (10^9 each) or '80GiB' (2^30). UsageError for anything else, a bare number too."""
    text_without_spaces = text.strip()
    match = re.fullmatch(r"(\d*\.?\d+)\s*(?:([KMGT])(i?))?B?", text_without_spaces, re.IGNORECASE)
    if match is None or text_without_spaces[-1].isdigit() or float(match[1]) == 0:
        raise UsageError(f"--gpu {text!r} is no amount of memory. Examples: 24GB, 80GiB, 512MB.")

    number, prefix, binary = match.groups()
    thousand = 1024 if binary else 1000
    power = " KMGT".index((prefix or " ").upper())
    return int(float(number) * thousand**power)


def device_memory(kind: str) -> int:
    """Bytes of the device that is there."""
    if kind != "cuda":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.cuda.get_device_properties(0).total_memory


def format_memory(size: float) -> str:
    """Bytes as people write them: '1.50 GB' or '24.0 MB'."""
    if size >= 1e8:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB"


def measured_peak(step: Callable[[], Any], resident: Iterable[torch.Tensor]) -> int:
    """The most bytes that were live while `step` ran, `resident` included; on CUDA the allocator's own number."""
    gc.collect()  # or what others left behind would be freed, and subtracted, on the way

    storages = {}  # by address, as several tensors may share one
    for tensor in resident:
        for part in (tensor, *_quantization(tensor)):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage
    if any(storage.device.type == "cuda" for storage in storages.values()):
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events]  # below zero where memory is freed
    most_on_top = max(0, *itertools.accumulate(changes))
    return sum(storage.nbytes() for storage in storages.values()) + most_on_top

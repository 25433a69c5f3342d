"""What a recipe needs on a device, from shapes alone: one training step on fake tensors, its live bytes counted.

Two things come on top of tensors: what the process holds without a model, and what the allocator keeps for later.

Leans on TRL 1.16: which positions its head scores, and the size of every buffer on the way, forward and backward. Leans
on Transformers 5.23: the files of the weights are mapped into memory until all of them are read.
"""

from __future__ import annotations

import copy
import gc
import heapq
import logging
import os
import re
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow.compute
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import RecipeError, UsageError
from ..recipe.dpo_arguments import dpo_arguments
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, Settings, resolve
from ..shared_prefix.attention import split_attention
from ..shared_prefix.layout import Row
from ..training.session import Session
from .allocator import CachingAllocator
from .process import resident

USABLE = 0.95  # of a device's memory: the rest is the driver's, the kernels' and that of other programs
# What the parts of a sum are called, in the order in which they are shown.
PARTS = (
    "process",
    "weights",
    "gathered",
    "files",
    "adapter",
    "gradients",
    "buckets",
    "optimizer",
    "reference",
    "activations",
    "head",
    "allocator",
)
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
    """What trains, and the bytes that are held at the worst moment."""

    trainable: int  # numbers
    total: int
    moment: str  # loading | reference | evaluation | step
    process: int  # on a CPU: the libraries and the pairs; a GPU's own context is left to what USABLE leaves free
    weights: int
    gathered: int  # with several processes: weights of other devices, while they are in use (engines.py)
    files: int  # of weights, mapped while they are read
    adapter: int
    gradients: int
    buckets: int  # with several processes: buffers in which gradients travel (engines.py)
    optimizer: int
    reference: int  # a frozen adapter or a second model; log-probabilities computed before training are nothing
    activations: int
    head: int  # TRL's: a tile of logits, and the gradients of what made them
    allocator: int  # on a GPU: what torch keeps reserved in the end, beyond what is in use at that moment
    peak: int  # their sum


class PairLength(NamedTuple):
    """Tokens of a pair, as max_length cuts it."""

    prompt: int
    chosen: int  # without the prompt
    rejected: int

    @property
    def longer_row(self) -> int:
        return self.prompt + max(self.chosen, self.rejected)

    @property
    def read_once(self) -> int:
        return self.prompt + self.chosen + self.rejected

    def cut(self, max_length: int | None) -> PairLength:
        limit = max_length or self.longer_row
        prompt = min(self.prompt, limit)
        return PairLength(prompt, min(self.chosen, limit - prompt), min(self.rejected, limit - prompt))


class Moment(NamedTuple):
    """What is alive at a time."""

    total: int  # bytes on a device
    name: str
    parts: Counter[str]  # part -> bytes


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, by part, and keeps the count of the worst moment."""

    def __init__(self, allocator: CachingAllocator | None = None, divided_by: Mapping[str, int] | None = None) -> None:
        """`allocator`: what it keeps of freed memory counts too.

        `divided_by`: part -> over how many devices it is spread, by which the worst moment of one of them is found.
        The counts themselves stay those of whole parts.
        """
        super().__init__()
        self.allocator = allocator
        self.divided_by = divided_by or {}
        self.moment = ""
        self.now = Counter[str]()  # part -> bytes
        self.worst = Moment(0, "", Counter[str]())
        self._known: Any = WeakIdKeyDictionary()  # storage -> its part and bytes, as a counter
        self._in_use_at_worst = 0  # bytes of the allocator
        self._allocated: Any = WeakIdKeyDictionary()  # storage -> what frees the memory that the allocator holds for it

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(torch.Tensor, self.add, function(*args, **(kwargs or {})))

    def add(self, tensor: torch.Tensor, part: str = "") -> Any:
        """Count a tensor's storage, once, as activations or as the part that it is said to be."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = Counter[str]()
            weakref.finalize(storage, self.now.subtract, self._known[storage])
            self._allocate(storage, storage.nbytes())

        counted = self._known[storage]
        if part or not counted:
            self.now.subtract(counted)
            counted.clear()
            counted[part or "activations"] = storage.nbytes()
            self.now.update(counted)

            # Made whole, as a gradient is, and then divided. 4-bit weights are not; optimizer states are plain bytes.
            if part in self.divided_by and (tensor.is_floating_point() or part == "optimizer"):
                self._allocate(storage, storage.nbytes() // self.divided_by[part])

        self.look()
        return tensor

    def _allocate(self, storage: Any, size: int) -> None:
        """Have the allocator hold so many bytes for a storage until it is freed, in place of what it holds for it."""
        if self.allocator is None:
            return
        free_what_is_held = self._allocated.get(storage)
        if free_what_is_held is not None:
            free_what_is_held()
        self._allocated[storage] = weakref.finalize(storage, self.allocator.free, self.allocator.allocate(size))

    def look(self) -> None:
        """Keep the count where there has been no worse one."""
        total = self.now.total()
        for part, devices in self.divided_by.items():
            total -= self.now[part] - self.now[part] // devices
        if total >= self.worst.total:
            self.worst = Moment(total, self.moment, self.now.copy())
            if self.allocator is not None:
                self._in_use_at_worst = self.allocator.reserved - self.allocator.idle

    def kept_for_later(self) -> int:
        """Bytes that the allocator reserves in the end, beyond what is in use at the worst moment."""
        if self.allocator is None:
            return 0
        return self.allocator.reserved - self._in_use_at_worst


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


def plan(
    skeleton: Any,
    recipe: Recipe,
    settings: Settings,
    *,
    pairs: list[PairLength],
    second: Any = None,
    process: int = 0,
    divided_by: Mapping[str, int] | None = None,
) -> Plan:
    """The plan for the largest `pairs`, of which a batch takes as many as it has; of too few the last one is repeated.

    `second`: the skeleton of another reference; `process`: bytes that are held without a model. `divided_by`: the parts
    that are spread over several devices, which decide what is the worst moment; the plan has them whole. Unplannable
    where a model does not run on fake tensors.
    """
    live = Live(CachingAllocator() if settings.device == "cuda" else None, divided_by)
    live.now["process"] = process
    try:
        with live:
            _run_on_paper(live, skeleton, second, recipe, settings, pairs)
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
    bytes_of_parts["allocator"] = live.kept_for_later()
    return Plan(
        trainable=trainable, total=total, moment=live.worst.name, peak=sum(bytes_of_parts.values()), **bytes_of_parts
    )


def _run_on_paper(
    live: Live, skeleton: Any, second: Any, recipe: Recipe, settings: Settings, pairs: list[PairLength]
) -> None:
    """What a run does, once each, in its order: loading, the pass of another reference, an evaluation, a step."""
    options: dict[str, Any] = {"gradient_checkpointing": True, "optim": "adamw"} | dpo_arguments(recipe, settings, "")
    pairs_a_step = settings.micro_batch_size
    pairs_a_pass = max(  # without gradients
        pairs_a_step, options["per_device_eval_batch_size"], options.get("precompute_ref_batch_size") or 0
    )
    shares = recipe.pair_sharing != "off" and _can_share(skeleton)
    batch = Batch.of_largest(pairs, pairs_a_step, shares)
    batch_of_a_pass = Batch.of_largest(pairs, pairs_a_pass, shares)

    with FakeTensorMode():
        live.moment = "loading"
        policy = _on_fake_tensors(skeleton, live).train()
        _map_files(live, skeleton, settings)
        reference = None
        if second is not None:
            reference = _on_fake_tensors(second, live, "reference")
            _map_files(live, second, settings)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]

        if reference is not None:
            live.moment = "reference"
            _forward(reference, live, settings, batch_of_a_pass)
            if settings.reference != "moving copy":
                reference = None  # of another model only the log-probabilities stay
                gc.collect()  # as modules refer to each other

        states = [_optimizer_state(live, parameter, options["optim"]) for parameter in trained]
        live.moment = "evaluation"
        _forward(policy, live, settings, batch_of_a_pass)

        live.moment = "step"
        _count_gradients(live, trained, waiting=settings.accumulation > 1)
        if options["gradient_checkpointing"]:
            policy.activation_checkpointing_enable(options.get("gradient_checkpointing_kwargs"))
            if recipe.adapter:
                policy.enable_input_require_grads()
        logps = _forward(policy, live, settings, batch, grad=True)
        if batch.row is not None:  # which is compared once with what it stands for
            _forward(policy, live, settings, batch._replace(row=None))
        logps.sum().backward()
        del states


def _can_share(skeleton: Any) -> bool:
    # Imported here: it brings bitsandbytes, which announces at import what the session has silenced by now.
    from ..shared_prefix.forward import why_not

    return why_not(_causal(skeleton)) is None


def _map_files(live: Live, skeleton: Any, settings: Settings) -> None:
    """On a CPU the files of the weights are mapped into memory while they are read, and count as the process's own.

    A weight that keeps the type it has in its file is a view of it. As long as there is one, such as the embedding over
    4-bit layers, the file stays mapped. A GPU's memory knows nothing of this.
    """
    if settings.device == "cuda":
        return
    causal = _causal(skeleton)
    dtype_of_files = causal.dtype_of_files
    in_files, viewed = 0, 0  # bytes
    for name, parameter in causal.named_parameters():
        if ".lora_" in name:
            continue
        is_packed = hasattr(parameter, "quant_state")  # two numbers in a byte
        in_files += parameter.numel() * (2 if is_packed else 1) * dtype_of_files.itemsize
        if parameter.dtype == dtype_of_files and not is_packed:
            viewed += parameter.nbytes

    if viewed:
        live.now["files"] += in_files - viewed
        live.look()
        return
    mapped_before = live.now["files"]
    live.now["files"] += in_files
    live.look()
    live.now["files"] = mapped_before


class Batch(NamedTuple):
    """The largest batch: 2 x pairs rows of so many tokens, or the same pairs in one row."""

    rows: int
    tokens: int
    row: Row | None  # of which only the shapes count

    @classmethod
    def of_largest(cls, pairs: list[PairLength], count: int, shares: bool) -> Batch:
        longest = max(pair.longer_row for pair in pairs)
        if not shares:
            return cls(2 * count, longest, None)
        most_to_read = sorted(pairs, key=lambda pair: pair.read_once, reverse=True)[:count]
        most_to_read += most_to_read[-1:] * (count - len(most_to_read))
        return cls(2 * count, longest, _row(most_to_read))


def _row(pairs: list[PairLength]) -> Row:
    """Pairs in one row, as `shared_prefix` lays them out; the tokens themselves are all the same."""
    lengths = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, (pair, length) in enumerate(zip(pairs * 2, lengths, strict=True)):
        labels[number, pair.prompt : length] = 0
    return Row(ids, labels, lengths, common=[pair.prompt for pair in pairs])


def _optimizer_state(live: Live, parameter: torch.Tensor, optimizer: str) -> torch.Tensor:
    """What an optimiser keeps for a parameter, as bytes."""
    size = parameter.numel() * 2 * parameter.itemsize
    for name, bytes_per_number in STATES.items():
        if name in optimizer:
            size = parameter.numel() * bytes_per_number
            break
    return live.add(torch.empty(size, dtype=torch.uint8), "optimizer")


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
        for tensor in quantization_figures(parameter):
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


def quantization_figures(parameter: torch.Tensor) -> list[torch.Tensor]:
    """What a 4-bit parameter holds beside its numbers: scales and codes, which may be quantised once more."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    values = [*vars(state).values()]
    if state.state2 is not None:
        values += vars(state.state2).values()
    return [value for value in values if isinstance(value, torch.Tensor)]


def _causal(model: Any) -> Any:
    """The causal model, which an adapter may wrap."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward(model: Any, live: Live, settings: Settings, batch: Batch, grad: bool = False) -> torch.Tensor:
    """A forward as TRL's: padded rows through the backbone, every position but the last through the head.

    Or, where the batch has a row, that row, and those of its positions that predict a scored token.
    """
    autocast_dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    autocast = autocast_dtypes.get(str(settings.autocast))
    causal = _causal(model)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", autocast, enabled=autocast is not None):
        # Of the four tensors in TRL's batch the completion mask and the labels are only held.
        input_ids, attention_mask, *_held = torch.zeros(4, batch.rows, batch.tokens, dtype=torch.long)
        if batch.row is None:
            output = causal.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            hidden = output.last_hidden_state[:, :-1]
        else:
            hidden = _read_once(causal, batch.row)
        weights = causal.get_output_embeddings().parameters()  # with a bias in some models
        return Head.apply(live, settings.device == "cuda", hidden.reshape(-1, hidden.shape[-1]), *weights)


def _read_once(causal: Any, row: Row) -> torch.Tensor:
    """The hidden states (1, S, width) that predict a scored token, from pairs in one row."""
    from transformers import AttentionInterface  # here for the same reason
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = causal.config._attn_implementation
    kernel = ALL_ATTENTION_FUNCTIONS[name]
    if not hasattr(kernel, "reads_pairs"):
        AttentionInterface.register(name, split_attention(kernel, flash=False))
    output = causal.base_model(
        input_ids=torch.zeros(row.tokens.shape, dtype=torch.long),
        position_ids=torch.zeros(row.positions.shape, dtype=torch.long),
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool),
        use_cache=False,
        pair_row=row,
    )
    return output.last_hidden_state.index_select(1, torch.zeros(row.predictors.shape, dtype=torch.long))


# ------------------------------------------------------------------------------------------------------- for a recipe


def largest_pairs(session: Session, report: dict[str, Any]) -> list[PairLength]:
    """The pairs of either split that need most, as many as a batch may take. Unplannable where nothing tells.

    Where the pairs are not known, such as those of a stream, one that fills max_length and shares nothing.
    """
    recipe = session.recipe
    if "tokens" not in report.get("train", {}):
        if recipe.max_length is None:
            raise Unplannable("Neither the pairs nor max_length say how long a pair can be.")
        return [PairLength(prompt=1, chosen=recipe.max_length - 1, rejected=recipe.max_length - 1)]

    lengths = []
    for split in (session.train, session.eval):
        lengths += [pair.cut(recipe.max_length) for pair in pair_lengths(split)]
    if not lengths:
        lengths = [PairLength(1, 1, 1)]
    batch = max(session.settings.micro_batch_size, *(recipe.trl.get(name) or 0 for name in BATCHES_OF_A_PASS))
    longest = heapq.nlargest(batch, lengths, key=lambda pair: pair.longer_row)
    most_to_read = heapq.nlargest(batch, lengths, key=lambda pair: pair.read_once)
    return [*longest, *most_to_read]


BATCHES_OF_A_PASS = ("per_device_eval_batch_size", "precompute_ref_batch_size")


def pair_lengths(split: Any) -> list[PairLength]:
    """The lengths of every pair of a tokenised split, read off without its tokens."""
    columns = []
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        table = split.select_columns([name]).with_format("arrow")[:]
        columns.append(pyarrow.compute.list_value_length(table[name]).to_pylist())
    return [PairLength(*lengths) for lengths in zip(*columns, strict=True)]


def longest_pair(pairs: list[PairLength]) -> int:
    """Tokens of the longest side of any pair, with its prompt."""
    return max(pair.longer_row for pair in pairs)


def plan_for(
    session: Session,
    device: Device,
    pairs: list[PairLength],
    recipe: Recipe,
    divided_by: Mapping[str, int] | None = None,
) -> Plan:
    """The plan of a recipe, the session's own or a changed one, on a device, for the largest pairs."""
    settings = resolve(recipe, device)
    policy, second = skeletons(session, recipe, settings)
    return plan(
        policy,
        recipe,
        settings,
        pairs=[pair.cut(recipe.max_length) for pair in pairs],
        second=second,
        process=0 if device.kind == "cuda" else resident(),
        divided_by=divided_by,
    )


def skeletons(session: Session, recipe: Recipe, settings: Settings) -> tuple[Any, Any]:
    """Policy and, where it is a model of its own, reference; their shapes alone."""
    from ..models.skeleton import skeleton

    policy = skeleton(recipe, settings, session.model_path)
    second = None
    if settings.reference in ("other model", "moving copy"):
        second = skeleton(recipe, settings, session.reference_path or session.model_path, trainable=False)
    return policy, second


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

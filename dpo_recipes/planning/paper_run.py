"""A run on paper: loading, a pass of the reference, an evaluation and a step, once each, on fake tensors.

Leans on TRL 1.16: which positions its head scores, what of a batch it holds, that gradient checkpointing is on, and
dropout off.
Leans on Transformers 5.23: the files of the weights are mapped into memory until all of them are read.
"""

from __future__ import annotations

import copy
import gc
import heapq
import logging
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..models.base_model import without_adapters
from ..recipe.dpo_arguments import dpo_arguments
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings
from ..shared_prefix.layout import Row
from ..shared_prefix.products import wants_round_numbers
from .bound import TRLS_TILE_WORDS
from .head import CPUHeadOnPaper, Head
from .live_bytes import Live
from .needs import bytes_of_states
from .packed_weights import count_numbers, is_packed, quantization_figures
from .pair_lengths import PairLength, longest_pair, pairs_a_pass

logging.getLogger("torch._subclasses.fake_tensor").disabled = True  # what does not run is said once, by us


def run_on_paper(
    live: Live,
    skeleton: Any,
    second: Any,
    recipe: Recipe,
    settings: Settings,
    pairs: list[PairLength],
    reads_weights: bool,
) -> None:
    """What a run does, once each, in its order: loading, the pass of another reference, an evaluation, a step.

    `reads_weights`: whether a layer's weights may be read without their modules, as ours do that compute at once.
    """
    options: dict[str, Any] = {"gradient_checkpointing": True, "optim": "adamw"} | dpo_arguments(recipe, settings, "")
    pairs_a_step = settings.micro_batch_size
    shares = recipe.pair_sharing != "off" and _can_share(skeleton)
    in_round_numbers = wants_round_numbers(settings)
    batch = Batch.of_largest(pairs, pairs_a_step, shares, in_round_numbers)
    batch_of_a_pass = Batch.of_largest(pairs, pairs_a_pass(options, pairs_a_step), shares, in_round_numbers)

    with FakeTensorMode():
        live.moment = "loading"
        policy = _on_fake_tensors(skeleton, live).train()
        _map_files(live, skeleton, settings)
        reference = None
        if second is not None:
            reference = _on_fake_tensors(second, live, "reference")
            _map_files(live, second, settings)
        for each in filter(None, (policy, reference)):
            _as_trl_and_sharing_leave_it(each, options, shares, reads_weights)
        del each  # or the reference would be held beyond its pass
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]

        if reference is not None:
            live.moment = "reference"
            _pass(reference, live, settings, batch_of_a_pass)
            if settings.precompute:
                reference = None  # of another model only the log-probabilities stay
                gc.collect()  # as modules refer to each other

        states = [_optimizer_state(live, parameter, options["optim"]) for parameter in trained]
        live.moment = "evaluation"
        _pass(policy, live, settings, batch_of_a_pass)

        live.moment = "step"
        if options["gradient_checkpointing"]:
            policy.activation_checkpointing_enable(options.get("gradient_checkpointing_kwargs"))
            if recipe.adapter:
                policy.enable_input_require_grads()
        if batch.row is not None:
            # The first row is compared with what it stands for, before there are gradients or an optimiser's states.
            del states
            logps = _forward(policy, live, settings, batch, grad=True)
            _forward(policy, live, settings, batch._replace(row=None))
            del logps
            states = [_optimizer_state(live, parameter, options["optim"]) for parameter in trained]
        _count_gradients(live, trained, waiting=settings.accumulation > 1)
        logps = _forward(policy, live, settings, batch, grad=True)
        logps.sum().backward()
        del states


def _can_share(skeleton: Any) -> bool:
    # Imported here: it brings bitsandbytes, which announces at import what the session has silenced by now.
    from ..shared_prefix.forward import why_not

    return why_not(without_adapters(skeleton)) is None


def _as_trl_and_sharing_leave_it(model: Any, options: dict[str, Any], shares: bool, reads_weights: bool) -> None:
    """Without dropout, as TRL trains a real model, and as `shared_prefix.share` leaves it where pairs are read once."""
    from ..shared_prefix.at_once import compute_at_once
    from ..shared_prefix.last_layer import skip_unread_tokens

    if options.get("disable_dropout", True):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0
    if shares:
        skip_unread_tokens(without_adapters(model))
    if shares and reads_weights:
        compute_at_once(without_adapters(model))


def _map_files(live: Live, skeleton: Any, settings: Settings) -> None:
    """On a CPU the files of the weights are mapped into memory while they are read, and count as the process's own.

    A weight that keeps the type it has in its file is a view of it. As long as there is one, such as the embedding over
    4-bit layers, the file stays mapped. A GPU's memory knows nothing of this.
    """
    if settings.device == "cuda":
        return
    causal = without_adapters(skeleton)
    dtype_of_files = causal.dtype_of_files
    in_files, viewed = 0, 0  # bytes
    for name, parameter in causal.named_parameters():
        if ".lora_" in name:
            continue
        in_files += count_numbers(parameter) * dtype_of_files.itemsize
        if parameter.dtype == dtype_of_files and not is_packed(parameter):
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
    def of_largest(cls, pairs: list[PairLength], count: int, shares: bool, in_round_numbers: bool) -> Batch:
        longest = longest_pair(pairs)
        if not shares:
            return cls(2 * count, longest, None)

        most_to_read = heapq.nlargest(count, pairs, key=lambda pair: pair.read_once)
        last = most_to_read[-1]
        while len(most_to_read) < count:
            most_to_read.append(last)
        return cls(2 * count, longest, _row(most_to_read, in_round_numbers))


def _row(pairs: list[PairLength], in_round_numbers: bool) -> Row:
    """Pairs in one row, as `shared_prefix` lays them out; the tokens themselves are all the same."""
    lengths = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, (pair, length) in enumerate(zip(pairs * 2, lengths, strict=True)):
        labels[number, pair.prompt : length] = 0
    prompts = [pair.prompt for pair in pairs]
    first = [max(prompt - 1, 0) for prompt in prompts * 2]
    return Row(ids, labels, lengths, prompts, first, in_round_numbers=in_round_numbers)


def _optimizer_state(live: Live, parameter: torch.Tensor, optimizer: str) -> torch.Tensor:
    """What an optimiser keeps for a parameter, as bytes."""
    size = parameter.numel() * bytes_of_states(optimizer, parameter.itemsize)
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
        fake_parameter: Any = torch.nn.Parameter(fake(parameter, own_part), parameter.requires_grad)
        copies[id(parameter)] = fake_parameter
        for tensor in quantization_figures(parameter):
            fake(tensor, own_part)
        fake_parameter.quant_state = copy.deepcopy(getattr(parameter, "quant_state", None), copies)
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


def _pass(model: Any, live: Live, settings: Settings, batch: Batch) -> None:
    """A forward without gradients. The first row is compared with what it stands for, as TRL reads that."""
    logps = _forward(model, live, settings, batch)
    if batch.row is not None:
        _forward(model, live, settings, batch._replace(row=None))
    del logps


def _forward(model: Any, live: Live, settings: Settings, batch: Batch, grad: bool = False) -> torch.Tensor:
    """A forward as TRL's: padded rows through the backbone, every position but the last through the head.

    Or, where the batch has a row, that row, and those of its positions that predict a scored token.
    """
    autocast_dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    autocast = autocast_dtypes.get(str(settings.autocast))
    causal = without_adapters(model)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", autocast, enabled=autocast is not None):
        # Of the four tensors in TRL's batch the completion mask and the labels are only held.
        input_ids, attention_mask, *_held = torch.zeros(4, batch.rows, batch.tokens, dtype=torch.long)
        if batch.row is None:
            output = causal.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            hidden = output.last_hidden_state[:, :-1]
        else:
            hidden = _read_once(causal, batch.row)
        return _head(causal, live, settings, batch, hidden.reshape(-1, hidden.shape[-1]))


def _head(causal: Any, live: Live, settings: Settings, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
    """The head that the batch meets, on hidden states (positions, width)."""
    # Imported here for the same reason as `why_not` above.
    from ..shared_prefix.cpu_head import TILE_POSITIONS, TILE_WORDS

    weights = list(causal.get_output_embeddings().parameters())  # with a bias in some models
    on_cuda = settings.device == "cuda"
    if batch.row is None or on_cuda:
        return Head.apply(live, on_cuda, TRLS_TILE_WORDS, hidden, *weights)
    caps_logits = getattr(causal.config.get_text_config(), "final_logit_softcapping", None) is not None
    if len(weights) > 1 or caps_logits:
        return Head.apply(live, False, TILE_WORDS, hidden, *weights)
    return CPUHeadOnPaper.apply(live, TILE_POSITIONS, TILE_WORDS, hidden, *weights)


def _read_once(causal: Any, row: Row) -> torch.Tensor:
    """The hidden states (1, S, width) that predict a scored token, from pairs in one row."""
    # Imported here for the same reason as `why_not` above.
    from ..shared_prefix.forward import split_attention_of

    split_attention_of(causal)
    row.ending_places = torch.zeros(row.ending_places.shape, dtype=torch.long)  # no content, as all tensors here
    output = causal.base_model(
        input_ids=torch.zeros(row.tokens.shape, dtype=torch.long),
        position_ids=torch.zeros(row.positions.shape, dtype=torch.long),
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool),
        use_cache=False,
        pair_row=row,
    )
    return output.last_hidden_state.index_select(1, torch.zeros(row.predictors.shape, dtype=torch.long))

"""Reads each pair once: in one row without padding, in which what chosen and rejected begin with stands once.

TRL calls a model in one way (`labels=..., fused_lm_head=True`), with 2B padded rows of T tokens: B chosen, B rejected.
`share` answers that call from one row of N tokens, `[prefix chosen][rejected] [prefix chosen][rejected] ...`, in which
a rejected answer sees its prefix and not the chosen one (prefix sharing for preference pairs: 2410.20305). The prefix
is the longest that the two rows have in common. Only positions that predict a scored token reach the head, which is
TRL's own, and what it returns goes back to (2B, T - 1). Every other call stays TRL's.

The maths is TRL's, in another order of summation. It is not believed: the first batches are read in both ways.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import RecipeError

varlen: Any = None
with contextlib.suppress(ImportError):  # new in torch 2.10; to go when the oldest torch that is allowed has it
    from torch.nn.attention.varlen import varlen_attn as varlen

# Nats that a scored token may differ by from TRL's own forward: the largest, the mean. Single tokens differ by tenths
# of a nat in 16 bits, whichever way they are read; what is wrong shows in the mean, at 0.1 and more.
EXACT, HALF = (1e-3, 1e-3), (1.0, 5e-2)
ROUTER = "the router's balancing loss counts the prompts of both rows"


class Stretch(NamedTuple):
    """Neighbours in the row, which see the `shared` tokens from `prefix` on and, causally, themselves."""

    start: int
    stop: int
    prefix: int
    shared: int


class Row:
    """A padded batch as one row: tokens, positions (1, N); scored (2B, T - 1); predictors (S,), targets (1, S)."""

    def __init__(self, ids: Tensor, labels: Tensor, lengths: list[int], common: list[int]):
        (rows, width), pairs, end = ids.shape, len(common), 0
        place = torch.zeros(rows, width, dtype=torch.long)  # of a batch's token in the row
        self.stretches: list[Stretch] = []
        for pair, shared in enumerate(common):
            start, split = end, end + lengths[pair]
            end = split + lengths[pairs + pair] - shared
            place[pair, : split - start] = torch.arange(start, split)
            place[pairs + pair, :shared] = torch.arange(start, start + shared)
            place[pairs + pair, shared : shared + end - split] = torch.arange(split, end)
            self.stretches += [Stretch(start, split, start, 0), Stretch(split, end, start, shared)]
        self.stretches = [stretch for stretch in self.stretches if stretch.start < stretch.stop]
        held = torch.arange(width) < torch.tensor(lengths)[:, None]
        source = torch.empty(end, dtype=torch.long)  # place turned round; for a prefix, either row has the same tokens
        source[place[held]] = torch.arange(rows * width).view(rows, width)[held]
        source, place = source.to(ids.device), place.to(ids.device)
        self.tokens, self.positions = ids.flatten()[source][None], (source % width)[None]
        self.scored = labels[:, 1:] != -100
        self.predictors, self.targets = place[:, :-1][self.scored], labels[:, 1:][self.scored][None]
        self.kind = torch.is_grad_enabled(), any(common)  # what must have been seen to be right before it is used
        self.windows: dict[int, int | None] = {}  # attention layer -> its sliding window
        self.half = False  # whether a layer computed in 16 bits
        self._masks: dict[tuple[int, int, int], Tensor] = {}

    @classmethod
    def of(cls, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, fused_lm_head: bool = False,
           use_cache: bool = False, **other: Any) -> Row | None:  # fmt: skip
        """The row of TRL's call for pairs that are padded on the right; None for every other call."""
        given = (input_ids, attention_mask, labels)
        if not fused_lm_head or use_cache or any(value is not None for value in other.values()):
            return None
        if any(x is None or x.dim() != 2 or x.shape != input_ids.shape for x in given) or len(input_ids) % 2:
            return None
        held, counts = attention_mask.bool(), attention_mask.long().sum(1)
        packed = held == (torch.arange(held.size(1), device=held.device) < counts[:, None])
        usual = (packed & (held | (labels == -100))).all().long()
        same = (input_ids == input_ids.roll(len(held) // 2, 0)) & held & held.roll(len(held) // 2, 0)
        common = same[: len(held) // 2].long().cumprod(1).sum(1)
        *numbers, right = torch.cat([counts, common, usual[None]]).tolist()  # the one wait for a GPU
        return cls(input_ids, labels, numbers[: len(held)], numbers[len(held) :]) if right and any(numbers) else None

    def mask(self, stretch: Stretch, window: int | None, device: torch.device) -> Tensor | None:
        """(1, 1, queries, keys), true where a query sees a key; None where plain causal attention does the same."""
        keys = stretch.shared + stretch.stop - stretch.start
        kind = stretch.shared, keys, min(window or keys, keys)
        if kind not in self._masks and kind != (0, keys, keys):
            ahead = torch.arange(keys, device=device) - torch.arange(stretch.shared, keys, device=device)[:, None]
            self._masks[kind] = ((ahead <= 0) & (ahead > -kind[2]))[None, None]
        return self._masks.get(kind)

    @functools.cached_property
    def ragged(self) -> tuple[Tensor, list[Any]]:
        """For varlen kernels: places of every stretch's keys; borders of queries and of keys, the most of either."""
        queries, device = [s.stop - s.start for s in self.stretches], self.tokens.device
        keys = [n + s.shared for n, s in zip(queries, self.stretches, strict=True)]
        places = [torch.arange(a, b) for s in self.stretches for a, b in ((s.prefix, s.prefix + s.shared), s[:2])]
        borders = [torch.tensor([0, *n], device=device).cumsum(0, dtype=torch.int32) for n in (queries, keys)]
        return torch.cat(places).to(device), [*borders, max(queries), max(keys)]


def _split(kernel: Callable[..., Any], flash: bool) -> Callable[..., Any]:
    """A registered attention function that takes a `pair_row`, and without one is what it was.

    As an argument, the row is there again when a checkpointed layer is computed a second time.
    """

    @functools.wraps(kernel)
    def attention(*args: Any, pair_row: Row | None = None, **given: Any) -> Any:
        return kernel(*args, **given) if pair_row is None else _attend(kernel, flash, pair_row, *args, **given)

    attention.reads_pairs = True  # type: ignore[attr-defined]
    return attention


def _attend(kernel: Callable[..., Any], flash: bool, row: Row, module: Any, query: Tensor, key: Tensor, value: Tensor,
            attention_mask: Tensor | None = None, **given: Any) -> tuple[Tensor, None]:  # fmt: skip
    """Every stretch on its own: query, key, value (1, heads, N, size) -> (1, N, heads, size)."""
    if given.get("position_bias") is not None or attention_mask is not None and attention_mask.numel() > 1:
        raise ValueError("a layer has a mask or a bias of its own")
    if given.get("dropout"):
        raise ValueError("attention dropout is on")
    window = row.windows[id(module)] = given.get("sliding_window")
    # Seen from inside, as accelerate puts autocast between `share` and the model when it prepared that before.
    row.half |= value.dtype.itemsize < 4 or torch.is_autocast_enabled(value.device.type)
    if flash or _varlen_can(query, key, value, given):  # one call, causal from the bottom right
        places, ragged = row.ragged
        key, value = key.index_select(2, places), value.index_select(2, places)
        if flash:
            names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
            return kernel(module, query, key, value, None, **given | dict(zip(names, ragged, strict=True)))
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        left, gqa = window - 1 if window else -1, q.size(1) != k.size(1)
        return varlen(q, k, v, *ragged, scale=given.get("scaling"), window_size=(left, 0), enable_gqa=gqa)[None], None
    outputs = []
    for stretch in row.stretches:
        start, stop, prefix, shared = stretch
        own = [x[:, :, start:stop] for x in (query, key, value)]
        before = [x[:, :, prefix : prefix + shared] for x in (key, value)]
        seen = [torch.cat(x, 2) for x in zip(before, own[1:], strict=True)] if shared else own[1:]
        outputs.append(kernel(module, own[0], *seen, row.mask(stretch, window, query.device), **given)[0])
    return torch.cat(outputs, 1), None


def _varlen_can(query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]) -> bool:
    """Whether torch's own varlen kernel, FlashAttention 2, can stand in for SDPA's loop."""
    if not (query.is_cuda and varlen and query.dtype in (torch.float16, torch.bfloat16)):
        return False
    alike = len({(x.dtype, x.size(-1)) for x in (query, key, value)}) == 1 and query.size(-1) in range(8, 257, 8)
    return alike and given.get("s_aux") is None and torch.cuda.get_device_capability(query.device) >= (8, 0)


def why_not(model: Any) -> str | None:
    """Why a causal LM cannot read pairs once, as far as it shows before the first batch; None when nothing does."""
    config, kernel = model.config.get_text_config(), str(model.config._attn_implementation)
    kinds = sorted({*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"})
    refusals = {
        "it is a multimodal model": config is not model.config,
        "it has recurrent layers": model._is_stateful,
        f"it has layers of type {', '.join(kinds)}": kinds,
        "it has attention classes of its own": not model._can_set_attn_implementation(),
        "Transformers runs it on padded rows only": not model._supports_flash_attn,
        f"{kernel!r} attention cannot be split, 'sdpa' can": kernel != "sdpa" and "flash" not in kernel,
        ROUTER: getattr(config, "output_router_logits", False),
    }
    return next((reason for reason, holds in refusals.items() if holds), None)


def share(model: Any, *, require: bool, say: Callable[[str], None]) -> str | None:
    """Let an unwrapped causal LM with TRL's fused head read pairs once. Returns why not; a RecipeError if required.

    What only a batch can show (a layer that the row did not reach, log-probabilities that differ) is said when it does,
    and every forward is TRL's own from there on.
    """
    if hasattr(model, "_reads_pairs"):
        return None
    if reason := why_not(model) or _drops(model):
        return _refuse(reason, require)
    name, fused = model.config._attn_implementation, model.forward.__func__
    if not hasattr(ALL_ATTENTION_FUNCTIONS[name], "reads_pairs"):
        AttentionInterface.register(name, _split(ALL_ATTENTION_FUNCTIONS[name], flash=name != "sdpa"))
    trusted, stopped = set[tuple[bool, bool]](), list[str]()

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, **given: Any) -> Any:
        plain = functools.partial(fused, self, *args, **given)
        row = None if stopped or args else Row.of(**given)
        if row and row.kind in trusted:
            return _read(self, fused, row)
        router = not stopped and given.get("fused_lm_head") and given.get("output_router_logits")
        output, gap, reason = _try(self, fused, row, plain) if row else (None, "", ROUTER if router else "")
        if row and not reason:
            if not trusted:
                count = f"{row.tokens.numel():,} of {given['input_ids'].numel():,} padded tokens"
                differ = f"log-probabilities differ by {gap} nats per token from TRL's own forward"
                say(f"Each pair is read once: {count}; {differ}.")
            trusted.add(row.kind)
            return output
        if reason:
            stopped.append(_refuse(reason, require))
            say(f"Each pair is read twice and padded, as in TRL: {reason}.")
        return plain()

    model.base_model.register_forward_hook(_keep_predictors, with_kwargs=True)
    model.forward, model._reads_pairs = types.MethodType(forward, model), True
    return None


def _refuse(reason: str, require: bool) -> str:
    if require:
        raise RecipeError(f"Pairs cannot be read once: {reason}. pair_sharing='auto' reads them as TRL does.")
    return reason


def _drops(model: Any) -> str | None:
    """TRL turns dropout modules off; some layers hold the share to drop as a number, which it leaves as it is."""
    held = {(n, v) for m in model.modules() for n, v in vars(m).items() if isinstance(v, float) and "drop" in n}
    held |= {("p", m.p) for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    return "dropout is on, and both answers would share it" if any(v > 0 for _, v in held) else None


def _read(model: Any, fused: Callable[..., Any], row: Row) -> Any:
    """TRL's fused forward on the row; per-token outputs back in TRL's layout, zero where nothing is scored."""
    unused = row.tokens.new_zeros(1, 1, 1, 1, dtype=torch.bool)  # of four dimensions, so that no (N, N) mask is built
    output = fused(model, input_ids=row.tokens, position_ids=row.positions, attention_mask=unused, use_cache=False,
                   shift_labels=row.targets, fused_lm_head=True, pair_row=row)  # fmt: skip
    for name, x in list(output.items()):
        if isinstance(x, Tensor) and x.shape == row.targets.shape:
            output[name] = x.new_zeros(row.scored.shape).masked_scatter(row.scored.to(x.device), x)
    return output


def _keep_predictors(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
    """Behind the backbone, (1, N, hidden) -> (1, S, hidden): the last token of a prompt predicts twice."""
    if (row := given.get("pair_row")) is not None:
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden.index_select(1, row.predictors.to(hidden.device))


def _try(model: Any, fused: Callable[..., Any], row: Row, plain: Callable[[], Any]) -> tuple[Any, str, str]:
    """(the output, its largest difference to TRL's own in nats per token, why it is not to be trusted or nothing)."""
    try:
        output = _read(model, fused, row)
        with torch.no_grad():
            gaps = (output.log_probs.double() - plain().log_probs.double()).abs()[output.label_mask]
    except Exception as error:
        return None, "", f"{type(error).__name__}: {[*str(error).strip().splitlines(), 'no message'][0]}"
    config, split = model.config.get_text_config(), len(row.windows)
    layers, kinds = config.num_hidden_layers, getattr(config, "layer_types", None)
    sliding = kinds.count("sliding_attention") if kinds else layers * bool(getattr(config, "sliding_window", None))
    named = sum(bool(window) for window in row.windows.values())
    largest, mean = (gaps.max().item(), gaps.mean().item()) if len(gaps) else (0.0, 0.0)
    whole = not row.half and {p.dtype for p in model.parameters()} <= {torch.float32, torch.float64}
    limits = EXACT if whole and torch.get_float32_matmul_precision() == "highest" else HALF
    differ = f"log-probabilities differ from TRL's own by up to {largest:.1g}, on average {mean:.1g} nats per token"
    reasons = {
        f"{split} of {layers} layers split their attention": split != layers,
        # The others rely on a mask, which would show only in rows that are longer than the window.
        f"{named} of {sliding} layers with a sliding window name it": named < sliding,
        differ: not (largest <= limits[0] and mean <= limits[1]),
    }
    return output, f"{largest:.1g}".replace("e-0", "e-"), next((r for r, holds in reasons.items() if holds), "")

"""Reads each pair once: in one row without padding, in which what chosen and rejected begin with stands once.

Leans on TRL 1.16: its one call of the model (`labels=..., fused_lm_head=True`), its fused head, which takes
`shift_labels` in place of labels, and the per-token outputs that this head returns.

TRL calls a model with 2B padded rows of T tokens: B chosen, B rejected. `share` answers that call from one row of N
tokens, `[prefix chosen][rejected] [prefix chosen][rejected] ...`, in which a rejected answer sees its prefix and not
the chosen one (prefix sharing for preference pairs: 2410.20305). The prefix is the longest that the two rows have in
common. Only positions that predict a scored token reach the head, which is TRL's own, and what it returns goes back to
(2B, T - 1). Every other call stays TRL's.

The maths is TRL's, in another order of summation. It is not believed: the first batches are read in both ways.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import RecipeError
from .at_once import compute_at_once
from .attention import split_attention
from .cpu_head import cpu_head
from .last_layer import skip_unread_tokens
from .layout import Row


class Tolerance(NamedTuple):
    """Nats that a scored token may differ by from TRL's own forward."""

    largest: float
    mean: float


EXACT = Tolerance(largest=1e-3, mean=1e-3)
# Single tokens differ by tenths of a nat in 16 bits, whichever way they are read; what is wrong shows in the mean, at
# 0.1 and more.
HALF = Tolerance(largest=1.0, mean=5e-2)

# What every file of Transformers that has attention calls its own computation of it.
EAGER = "eager_attention_forward"


# ------------------------------------------------------------------------------------------------------------- install


def why_not(model: Any) -> str | None:
    """Why a causal LM cannot read pairs once, as far as it shows before the first batch; None when nothing does."""
    config = model.config.get_text_config()
    if any(getattr(part, "_is_stateful", False) for part in model.modules()):
        return "it has recurrent layers"

    layer_types = set(getattr(config, "layer_types", None) or ())
    others = sorted(layer_types - {"full_attention", "sliding_attention"})
    if others:
        return f"it has layers of type {', '.join(others)}"

    if not model._can_set_attn_implementation():
        return "it has attention classes of its own"
    if not model._supports_flash_attn:
        return "Transformers runs it on padded rows only"
    kernel = str(config._attn_implementation)
    if kernel == "eager":
        if not _files_with_eager_attention(model):
            return "its 'eager' attention is no function that could be split, 'sdpa' is one"
    elif kernel != "sdpa" and "flash" not in kernel:
        return f"{kernel!r} attention cannot be split, 'sdpa' can"
    return None


def _files_with_eager_attention(model: Any) -> list[types.ModuleType]:
    """The files of Transformers that a model's layers are from, and that have a function for what they compute."""
    files = []
    for layer_class in {type(module) for module in model.modules()}:
        for ancestor in layer_class.__mro__:  # FSDP2 gives a module a class of its own, below the one it had
            file = sys.modules.get(ancestor.__module__)
            if file is not None and file not in files and callable(getattr(file, EAGER, None)):
                files.append(file)
    return files


def split_attention_of(model: Any) -> None:
    """Let the attention function of a model take a row; for all others it stays what it is.

    A model that computes attention itself does it by a function of its own file, which is not registered anywhere.
    """
    name = model.config.get_text_config()._attn_implementation  # which may be another than that of images
    if name == "eager":
        for file in _files_with_eager_attention(model):
            kernel = getattr(file, EAGER)
            if not hasattr(kernel, "reads_pairs"):
                setattr(file, EAGER, split_attention(kernel, "eager"))
        return

    kernel = ALL_ATTENTION_FUNCTIONS[name]
    if not hasattr(kernel, "reads_pairs"):
        AttentionInterface.register(name, split_attention(kernel, "sdpa" if name == "sdpa" else "flash"))


def _why_not_dropout(model: Any) -> str | None:
    """TRL turns dropout modules off; some layers hold the share to drop as a number, which it leaves as it is."""
    shares = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            shares.append(module.p)
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                shares.append(value)
    if any(share > 0 for share in shares):
        return "dropout is on, and both answers would share it"
    return None


@dataclass
class Trust:
    """What the batches so far have shown of a model: what a run leaves as its receipt."""

    kinds: set[tuple[bool, bool] | None] = field(default_factory=set)  # of rows that were right: see `Row.kind`
    why_lost: str | None = None  # if not None, every forward is TRL's own from there on
    # Of the batches that were read both ways
    largest: float = 0.0  # difference of a scored token's log-probability, in nats
    mean: float = 0.0  # the largest mean of a batch
    tokens: int = 0  # that were read
    padded_tokens: int = 0  # that TRL reads of the same batches

    def news(self, row: Row | None) -> set[tuple[bool, bool] | None]:
        """The kinds of rows that now come for the first time, in this process or in another; None: no row.

        All processes look, or none does: where weights are divided over them, a forward of one waits for the others'.
        """
        kind = None if row is None else row.kind
        if (torch.is_grad_enabled(), True) in self.kinds:  # what has a prefix has stretches without one, too
            return {kind} - self.kinds - {(torch.is_grad_enabled(), False)}
        return set(_of_all_processes(kind)) - self.kinds

    def note(self, row: Row, findings: list[_Finding]) -> None:
        """Keep what a row has shown that was right, in every process."""
        self.largest = max(self.largest, *(finding.largest for finding in findings))
        self.mean = max(self.mean, *(finding.mean for finding in findings))
        self.tokens += row.tokens.numel()
        self.padded_tokens += row.padded_tokens


def _of_all_processes(value: Any) -> list[Any]:
    """The values that the processes of a run have, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share(
    model: Any, *, require: bool, say: Callable[[str], None], cost: str = "", in_round_numbers: bool = False
) -> str | None:
    """Let an unwrapped causal LM with TRL's fused head read pairs once. Returns why not; a RecipeError if required.

    What only a batch can show (a layer that the row did not reach, log-probabilities that differ) is said when it does,
    with what it costs, a sentence; and every forward is TRL's own from there on.
    `in_round_numbers`: of tokens, in each row.
    """
    if hasattr(model, "_reads_pairs"):
        return None
    reason = why_not(model) or _why_not_dropout(model)
    if reason:
        return _refuse(reason, require)

    split_attention_of(model)
    undo_at_once = compute_at_once(model)
    fused = model.forward.__func__
    trust = Trust()

    def stop(reason: str) -> None:
        _refuse(reason, require)
        trust.why_lost = reason
        say(read_twice(reason, cost))

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, **given: Any) -> Any:
        def plain() -> Any:
            # Not before gradients are taken: a checkpointed graph may wait to be computed again.
            if trust.why_lost is not None and torch.is_grad_enabled():
                undo_at_once()
            return fused(self, *args, **given)

        if trust.why_lost is not None or not given.get("fused_lm_head"):
            return plain()

        row = None if args else Row.of(**given, in_round_numbers=in_round_numbers)
        news = trust.news(row)
        if row is None or None in news:
            stop("a batch is not made of token ids alone, in pairs that are padded on the right")
            return plain()
        read = functools.partial(_read, self, fused, row, given)
        if not news:
            return read()

        output, finding = _compare(self, row, read, plain)
        findings = _of_all_processes(finding)
        reasons = [finding.distrust for finding in findings if finding.distrust]
        if reasons:
            stop(reasons[0])
            return plain()
        if not trust.kinds:
            say(
                f"Each pair is read once: {row.tokens.numel():,} of {row.padded_tokens:,} padded tokens; "
                f"log-probabilities differ by {_difference_in_words(findings, _tolerance(self, row))}."
            )
        trust.kinds |= news
        trust.note(row, findings)
        return output

    skip_unread_tokens(model)
    model.base_model.register_forward_pre_hook(_take_mask_away, with_kwargs=True)
    model.base_model.register_forward_hook(_keep_what_is_used, with_kwargs=True)
    model.forward = types.MethodType(forward, model)
    model._reads_pairs = trust
    return None


def trust_in(model: Any) -> Trust | None:
    """What has been seen so far of a causal LM that was asked to read pairs once; None where it never did."""
    return getattr(model, "_reads_pairs", None)


def read_twice(reason: str, cost: str = "") -> str:
    """The sentence about a model that reads pairs as TRL does, and, behind it, the one that says what that costs."""
    return " ".join(filter(None, [f"Each pair is read twice and padded, as in TRL: {reason}.", cost]))


def _refuse(reason: str, require: bool) -> str:
    if require:
        raise RecipeError(f"Pairs cannot be read once: {reason}. pair_sharing='auto' reads them as TRL does.")
    return reason


def _short(nats: float) -> str:
    """'3e-6' rather than '3e-06'."""
    return f"{nats:.1g}".replace("e-0", "e-")


# ---------------------------------------------------------------------------------------------------------------- read


def _read(model: Any, fused: Callable[..., Any], row: Row, given: dict[str, Any]) -> Any:
    """TRL's fused forward on the row; per-token outputs back in TRL's layout, zero where nothing is scored."""
    of_routers = {name: given[name] for name in ("output_router_logits",) if name in given}
    config = model.config.get_text_config()
    routers_count_all_tokens = given.get("output_router_logits") or getattr(config, "output_router_logits", False)
    row.skips_unread = not routers_count_all_tokens
    with cpu_head(row.tokens.device):
        output = fused(
            model,
            input_ids=row.tokens,
            position_ids=row.positions,
            attention_mask=given["attention_mask"],  # (2B, T): TRL takes the mean of routers' logits over it
            use_cache=False,
            shift_labels=row.targets,
            fused_lm_head=True,
            pair_row=row,
            **of_routers,
        )
    put_back(output, row.targets, row.scored)
    return output


def put_back(output: Any, targets: Tensor, scored: Tensor) -> None:
    """Give a head's outputs of S targets, (1, S), their places in TRL's layout (2B, T - 1): where `scored` is true."""
    for name, values in list(output.items()):
        if isinstance(values, Tensor) and values.shape == targets.shape:
            empty = values.new_zeros(scored.shape)
            output[name] = empty.masked_scatter(scored.to(values.device), values)


def _take_mask_away(module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Before the backbone: the mask of the batch is not that of the row."""
    row = given.get("pair_row")
    if row is None:
        return None
    # Transformers hands a mask of four dimensions on as it is, and builds none of (N, N) beside it.
    unused_mask = row.tokens.new_zeros(1, 1, 1, 1, dtype=torch.bool)
    return args, {**given, "attention_mask": unused_mask}


def _keep_what_is_used(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
    """Behind the backbone, (1, N, hidden) -> (1, S, hidden): the last token of a prompt predicts twice.

    Where the balancing loss of routers is on, theirs go back to TRL's layout, as it counts prompts in both rows:
    (N, experts) -> (2B * T, experts) for each layer.
    """
    row = given.get("pair_row")
    if row is None:
        return
    hidden = output.last_hidden_state
    output.last_hidden_state = hidden.index_select(1, row.predictors.to(hidden.device))
    if output.get("router_logits") is not None:
        in_the_batch = row.place.flatten()
        output.router_logits = tuple(
            logits.index_select(0, in_the_batch.to(logits.device)) for logits in output.router_logits
        )


# -------------------------------------------------------------------------------------------------------------- verify


class _Finding(NamedTuple):
    """What a row showed that was read beside TRL's own forward."""

    largest: float  # difference of a scored token's log-probability, in nats
    mean: float  # of all scored tokens
    distrust: str | None  # why its output is not to be used


def _compare(model: Any, row: Row, read: Callable[[], Any], plain: Callable[[], Any]) -> tuple[Any, _Finding]:
    """Read a row, and the same batch as TRL does. Whatever breaks in a library is a reason, and no crash."""
    try:
        output = read()
        with torch.no_grad():
            theirs = plain()
            differences = (output.log_probs.double() - theirs.log_probs.double()).abs()
    except Exception as error:
        lines = str(error).strip().splitlines()
        message = lines[0] if lines else "no message"
        return None, _Finding(0.0, 0.0, f"{type(error).__name__}: {message}")

    scored = differences[output.label_mask]
    largest, mean = 0.0, 0.0
    if len(scored) > 0:
        largest, mean = scored.max().item(), scored.mean().item()
    distrust = _distrust(model, row, largest, mean) or _distrust_of_routers(model, row, output, theirs)
    return output, _Finding(largest, mean, distrust)


def _distrust(model: Any, row: Row, largest: float, mean: float) -> str | None:
    """Why what a row gave is not to be used: a layer that did not see it, a window that was lost, other numbers."""
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    split = len(row.windows)
    if split != layers:
        return f"{split} of {layers} layers split their attention"

    # The others rely on a mask, which would show only in rows that are longer than the window.
    sliding = _sliding_layers(config)
    named = sum(1 for window in row.windows.values() if window)
    if named < sliding:
        return f"{named} of {sliding} layers with a sliding window name it"

    tolerance = _tolerance(model, row)
    within = largest <= tolerance.largest and mean <= tolerance.mean  # which not-a-number is not
    if not within:
        return f"log-probabilities differ from TRL's own by up to {largest:.1g}, on average {mean:.1g} nats per token"
    return None


def _distrust_of_routers(model: Any, row: Row, output: Any, theirs: Any) -> str | None:
    """Why the balancing loss of routers is not to be used, where it is on."""
    if theirs.aux_loss is None:
        return None
    difference = abs(output.aux_loss.item() - theirs.aux_loss.item())
    within = difference <= _tolerance(model, row).mean * abs(theirs.aux_loss.item())
    if not within:
        return f"the routers' balancing loss differs by {difference:.1g} from TRL's own"
    return None


def _sliding_layers(config: Any) -> int:
    """How many layers have a sliding window, by the model's configuration."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return layer_types.count("sliding_attention")
    if getattr(config, "sliding_window", None):
        return config.num_hidden_layers
    return 0


def _difference_in_words(findings: list[_Finding], tolerance: Tolerance) -> str:
    """In 16 bits the mean comes first: the largest is a single token that both forwards have rounded badly."""
    largest = _short(max(finding.largest for finding in findings))
    if tolerance is EXACT:
        return f"{largest} nats per token from TRL's own forward"
    mean = _short(max(finding.mean for finding in findings))
    return f"{mean} nats per token on average, {largest} at most, from TRL's own forward, as 16 bits round"


def _tolerance(model: Any, row: Row) -> Tolerance:
    """EXACT where all of the arithmetic has 32 bits or more; TF32 matrix products have fewer."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    in_full = not row.half and dtypes <= {torch.float32, torch.float64}
    if in_full and torch.get_float32_matmul_precision() == "highest":
        return EXACT
    return HALF

"""Every causal language model of the installed Transformers, made tiny and read in both ways.

Run it with `python tests/shared_prefix/census_architectures.py [NAME ...]`; all of them take about two minutes. A model
is shown two short pairs, as a first batch, and then compared with TRL's own forward on longer ones, which reach past
every window: log-probabilities, gradients, the balancing loss of routers, and the same again with attention that
Transformers computes without a kernel. Out of it comes one line a model:

    exact       the largest difference of a token's log-probability in nats, and that of all gradients, relative
    refused     before the first batch, with the reason
    fell back   at the first batch, with the reason; every number is TRL's own
    not built   no tiny model of it can be made, or TRL's own head does not run on it
    WRONG       other numbers than TRL's; the program then ends with 1
    CRASH       an error that TRL alone does not have; likewise
"""

from __future__ import annotations

import copy
import itertools
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from reading_pairs import SMALL_SIZES, batch, draw, gradients, off
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from dpo_recipes.shared_prefix.forward import share, why_not

NATS = 1e-3  # what a log-probability may differ by, as the first batch is judged by; and a gradient, relative
MANY_PARAMETERS = 1e8  # more, and some size was not made small; parts that see or hear stay as they are

SIZES = SMALL_SIZES | {
    "head_dim": 8,
    "is_decoder": True,
    # Windows and chunks that are shorter than the longer pairs
    "sliding_window": 8,
    "window_size": 8,
    "attention_chunk_size": 8,
    # Mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "router_jitter_noise": 0.0,
    "input_jitter_noise": 0.0,
    # What single families have
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "rotary_dim": 8,
    "embedding_size": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
}
# Attention through low-rank latents, as DeepSeek has it.
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
# What a family needs beyond that.
OF_FAMILY: dict[str, dict[str, Any]] = {
    "bart": {"encoder_layers": 2},
    "cohere_compass_text": {
        "layer_types": ["full_attention", "full_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 16},
        "d_model": 32,
    },
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 8, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {
        **LATENT,
        "head_dim": 8,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2,
        "num_layers": 2,
    },
    "plbart": {"d_model": 32},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "local"]},
    "whisper": {"d_model": 32, "max_target_positions": 128},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
}


class Result(NamedTuple):
    """What became of one architecture."""

    name: str
    outcome: str
    words: str
    nats: float = 0.0
    gradient: float = 0.0


# --------------------------------------------------------------------------------------------------------------- pairs


def pairs(*lengths: tuple[int, int, int]) -> dict[str, Any]:
    """TRL's call for pairs of random tokens, by the lengths of prompt, chosen and rejected."""
    tokens = draw(*itertools.chain(*lengths), seed=5, words=range(3, 94))
    return batch(*zip(tokens[0::3], tokens[1::3], tokens[2::3], strict=True))


FIRST = pairs((3, 2, 3), (2, 3, 1))  # within every window
LONGER = pairs((21, 12, 17), (9, 26, 4), (30, 3, 7))


# -------------------------------------------------------------------------------------------------------------- models


def tiny_configs(name: str) -> Iterator[Any]:
    """Configurations of an architecture with every size that it knows made small, the more general ones first."""
    default = AutoConfig.for_model(name)
    text = default.get_text_config()
    known = text.to_dict().keys() | text.attribute_map.keys()
    still = {key: 0.0 for key, value in text.to_dict().items() if "drop" in key and isinstance(value, float)}
    layer_types = getattr(text, "layer_types", None)
    mixed = []
    if layer_types:  # two layers, of two kinds where it has two
        others = [kind for kind in layer_types if kind != layer_types[0]]
        mixed = [{"layer_types": [layer_types[0], (others or layer_types)[0]]}]

    for sizes in (SIZES, SIZES | LATENT):
        for layers in [*mixed, {}]:
            values = sizes | still | layers
            values = {key: value for key, value in values.items() if key in known and value is not None}
            values |= OF_FAMILY.get(name, {})
            yield _config(name, default, text, values)
    yield lambda: AutoConfig.for_model(name)  # to be refused on paper; it is too large to be made


def _config(name: str, default: Any, text: Any, values: dict[str, Any]) -> Callable[[], Any]:
    if text is default:
        return lambda: AutoConfig.for_model(name, **values)
    return lambda: AutoConfig.for_model(name, text_config={"model_type": text.model_type, **values})


def tiny_model(name: str, **options: Any) -> Any:
    """A random model with TRL's head, after TRL's own forward has run on it; or a Result where there is none."""
    why = ""
    try:
        configs = list(tiny_configs(name))
    except Exception as error:
        return Result(name, "not built", _short(error))
    for make in configs:
        try:
            config = make()
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, **options)
            reason = why_not(model)
            if reason:
                return Result(name, "refused", reason)
            size = sum(parameter.numel() for parameter in model.parameters())
            if size > MANY_PARAMETERS:
                raise ValueError(f"{size:,} parameters")
            return _with_head(AutoModelForCausalLM.from_config(config, **options))
        except Exception as error:
            why = why or _short(error)
    return Result(name, "not built", why)


def _with_head(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():  # sharper than an initialised model, so that differences show
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.12)
    model.train()
    disable_dropout_in_model(model)
    add_fused_lm_head(model)
    with torch.no_grad():
        for batch in (FIRST, LONGER):
            if not model(**batch).log_probs.isfinite().all():
                raise ValueError("TRL's own log-probabilities are not finite")
    return model


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:80]}"


# ------------------------------------------------------------------------------------------------------------- compare


def look_at(name: str) -> Result:
    """Read an architecture in both ways."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny_model(name)
        if isinstance(model, Result):
            return model
        try:
            result = _compare(name, model)
        except Exception as error:
            return Result(name, "CRASH", _short(error))
        if result.outcome != "exact" or model.config._attn_implementation == "eager":
            return result
        return _also_without_a_kernel(result)


def _compare(name: str, bare: Any) -> Result:
    mine = copy.deepcopy(bare)
    said: list[str] = []
    reason = share(mine, require=False, say=said.append)
    if reason:
        return Result(name, "refused", reason)

    mine(**FIRST)
    if "read once" not in said[0]:
        words = said[0].partition("as in TRL: ")[2].rstrip(".")
        nats, gradient = _differences(bare, mine, LONGER)
        return Result(name, "fell back" if nats == gradient == 0 else "WRONG", words, nats, gradient)

    nats, gradient = _differences(bare, mine, LONGER)
    words = ""
    if len(said) > 1:
        return Result(name, "WRONG", said[1], nats, gradient)
    if hasattr(bare.config.get_text_config(), "output_router_logits"):
        given = LONGER | {"output_router_logits": True}
        if _runs(bare, given):
            of_routers = _differences(bare, mine, given)
            nats, gradient = max(nats, of_routers[0]), max(gradient, of_routers[1])
            words = "with its router's loss too"
    outcome = "exact" if nats <= NATS and gradient <= NATS else "WRONG"
    return Result(name, outcome, words, nats, gradient)


def _also_without_a_kernel(result: Result) -> Result:
    """The same with eager attention, where Transformers makes the model with it."""
    model = tiny_model(result.name, attn_implementation="eager")
    if isinstance(model, Result):
        return result
    try:
        other = _compare(result.name, model)
    except Exception as error:
        return Result(result.name, "CRASH", f"eager: {_short(error)}")
    if other.outcome != "exact":
        return other._replace(words=f"eager: {other.words}")
    return result._replace(nats=max(result.nats, other.nats), gradient=max(result.gradient, other.gradient))


def _runs(model: Any, given: dict[str, Any]) -> bool:
    """Whether TRL's own forward does: not every family gives its router's logits in the form that TRL takes."""
    try:
        with torch.no_grad():
            return model(**given).aux_loss is not None
    except Exception:
        return False


def _differences(bare: Any, mine: Any, given: dict[str, Any]) -> tuple[float, float]:
    """(the largest of a token in nats, that of all gradients relative to their norm)."""
    outputs, steps = [], []
    for model in (bare, mine):
        output = model(**given)
        total = output.log_probs.square().sum()
        if output.aux_loss is not None:
            total = total + 100 * output.aux_loss
        total.backward()
        steps.append(gradients(model))
        outputs.append(output)
    theirs, ours = outputs
    nats = (ours.log_probs - theirs.log_probs).abs().max().item()
    if theirs.aux_loss is not None:
        nats = max(nats, (ours.aux_loss - theirs.aux_loss).abs().item())
    gradient = off(steps[1], steps[0])
    return nats, gradient


# ---------------------------------------------------------------------------------------------------------------- show


def line(result: Result) -> str:
    words = result.words
    if result.outcome == "exact":
        numbers = f"{result.nats:.0e} nats, gradients {result.gradient:.0e}"
        words = f"{numbers}; {words}" if words else numbers
    if result.outcome == "WRONG":
        words = f"{result.nats:.0e} nats, gradients {result.gradient:.0e}; {words}"
    return f"{result.name:26} {result.outcome:10} {words}"


def quiet() -> None:
    """Transformers has much to say about configurations so small."""
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.CRITICAL)


def main(names: list[str]) -> int:
    quiet()
    torch.set_num_threads(1)
    results = []
    for number, name in enumerate(names, start=1):
        result = look_at(name)
        results.append(result)
        print(f"{number:3}/{len(names)}  {line(result)}", flush=True)

    counts = Counter(result.outcome for result in results)
    print()
    for outcome in ("exact", "refused", "fell back", "not built", "WRONG", "CRASH"):
        print(f"{outcome:10} {counts[outcome]:4}")
    exact = [result for result in results if result.outcome == "exact"]
    if exact:
        worst = max(exact, key=lambda result: result.nats)
        steepest = max(exact, key=lambda result: result.gradient)
        print(f"worst of the exact: {worst.nats:.0e} nats ({worst.name}), {steepest.gradient:.0e} ({steepest.name})")
    return 1 if counts["WRONG"] or counts["CRASH"] else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:] or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))

"""What a model's configuration allows: how long a sequence, how many tokens, which attention; and that it is causal.

Leans on Transformers 5.23: the names of configuration fields, and of its attention functions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..errors import RecipeError, nearest

# Their configurations have a max_position_embeddings, and their layers no positions that could run out.
WITHOUT_POSITIONS = ("jamba", "kimi_linear", "inkling_text", "inkling2_text", "nemotron_h", "rwkv", "xlstm", "zamba")

# Attention -> the package that it needs. Transformers may fetch a kernel from the hub instead, with `kernels`.
ATTENTION_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def longest_usable(config: Any) -> int | None:
    """How many tokens the positions of a model reach, scaled rotary ones included; None where nothing limits them.

    A sliding window is no limit: each layer sees less, and the positions go on.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if text.model_type in WITHOUT_POSITIONS or getattr(text, "alibi", False):
        return None

    longest = positions
    for rope in _rotary_parameters(text):
        factor = rope.get("factor")
        if rope.get("rope_type", "default") == "default" or not factor:
            continue
        # Some configurations count the scaling in max_position_embeddings already, and name what it was before.
        before_scaling = rope.get("original_max_position_embeddings") or positions
        longest = max(longest, int(factor * before_scaling))
    return longest


def _rotary_parameters(text: Any) -> list[dict[str, Any]]:
    """The parameters of rotary positions: one set, or one for each type of layer."""
    parameters = getattr(text, "rope_parameters", None) or {}
    return [parameters, *(value for value in parameters.values() if isinstance(value, dict))]


def refuse_absent_router(trl: Mapping[str, Any], config: Any, path: str) -> None:
    """RecipeError where an option is about the loss of a router, and the model has none."""
    text = config.get_text_config()
    has_router = hasattr(text, "output_router_logits")
    given = trl.get("router_aux_loss_coef")
    weight = getattr(text, "router_aux_loss_coef", 0.0) if given is None else given
    if given and not has_router:
        raise RecipeError(
            f"trl.router_aux_loss_coef={given!r} weights the loss of a router, and {path!r} is no mixture of experts "
            "that has one. Delete it."
        )

    metric = trl.get("metric_for_best_model")
    if metric in ("aux_loss", "eval_aux_loss") and not (has_router and weight):
        reason = "the loss of its router weighs nothing" if has_router else "it is no mixture of experts"
        raise RecipeError(
            f"trl.metric_for_best_model={metric!r}: evaluations of {path!r} have no such number, as {reason}. It can "
            "be loss, say."
        )


def refuse_longer_pairs(tokens: int, written: str, config: Any, path: str) -> None:
    """RecipeError where pairs of so many tokens reach past the positions; `written` says where the number stands.

    Rotary positions go on without a word, far from all that the model was trained on; others end in an IndexError.
    """
    longest = longest_usable(config)
    if longest is not None and tokens > longest:
        raise RecipeError(
            f"{written} is beyond the {longest:,} positions of {path!r} (max_position_embeddings in its config.json). "
            f"The longest that works: max_length={longest}"
        )


def refuse_encoder(config: Any, path: str) -> None:
    """An encoder sees the whole answer when it predicts a token of it, so that its log-probabilities mean nothing."""
    is_encoder = getattr(config, "is_decoder", True) is False
    if is_encoder and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise RecipeError(
            f"{path!r} is an encoder ({config.model_type}): it fills gaps, seeing what follows, and is no causal "
            "language model. Take one that writes from left to right, such as a Llama, Qwen or SmolLM."
        )


def refuse_absent_attention(name: str | None) -> None:
    """RecipeError where there is no attention of this name in Transformers, or its package is not installed."""
    if name is None or "/" in name:  # of the hub, which says itself what is wrong
        return
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if name not in known:
        raise RecipeError(
            f"attn_implementation={name!r} is none that Transformers has.{nearest(name, known)} "
            "The usual ones: sdpa, eager, flash_attention_2."
        )
    package = ATTENTION_PACKAGES.get(name)
    if package and not (_is_installed(package) or _is_installed("kernels")):
        raise RecipeError(
            f"attn_implementation={name!r} needs the package {package.replace('_', '-')}, which is not installed here. "
            "Install it, or use attn_implementation=sdpa."
        )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None

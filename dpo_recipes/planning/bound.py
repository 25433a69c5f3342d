"""More memory than a step can need, by a formula, from what a model's config.json says and nothing else.

A plan on fake tensors takes from half a second to many. Where a device has more memory than this, none is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..recipe.recipe import Recipe
from .pair_lengths import PairLength, longest_pair, pairs_a_pass

# Of TRL's head, which makes logits tile by tile: `TOKEN_CHUNK_SIZE` and `_CHUNKED_LOGPROB_CHUNK_SIZE`.
TILE_POSITIONS = 4096
TRLS_TILE_WORDS = 32768

# Decoders of attention and an MLP, all layers alike, for which the formula is compared with the plan. The memory of any
# other, such as one with recurrent layers, may grow with something that the formula does not know.
KNOWN = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)

# What a CPU's process holds besides the tensors of the model: the libraries, and what they keep.
PROCESS = 2_000_000_000  # bytes
# Numbers of 32 bits for each weight: itself, the type it has in its file, its gradient, and two states of AdamW.
NUMBERS_OF_A_WEIGHT = 5
# Vectors of a layer's width, and of its MLP's, that a token leaves for the backward, a lot: a Llama leaves 13 and 4.
WIDTHS_OF_A_TOKEN = 32
MLPS_OF_A_TOKEN = 8
# Copies of a tile of logits, forward and backward: TRL's head has eight and a quarter.
COPIES_OF_A_TILE = 10


class Shape(NamedTuple):
    """The numbers of a config.json that decide what a model holds."""

    layers: int
    width: int  # of the hidden states, or of all heads together, whichever is more
    heads: int
    mlp: int
    vocabulary: int


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape of a model that the formula knows; None for any other."""
    if config.get("model_type") not in KNOWN:
        return None
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    layers, hidden, heads, mlp, vocabulary = (config.get(name) for name in names)
    if not (layers and hidden and heads and mlp and vocabulary):
        return None
    head_width = config.get("head_dim") or hidden // heads
    return Shape(layers, max(hidden, heads * head_width), heads, mlp, vocabulary)


def at_most(shape: Shape, recipe: Recipe, pairs: list[PairLength], size: int, on_cpu: bool) -> int | None:
    """More bytes than a step of `size` pairs can need, in 32 bits and with all activations kept.

    `pairs`: the largest ones. None where there is more in memory than a policy: a second model, whose shape is another.
    """
    if recipe.reference is not None or recipe.trl.get("sync_ref_model"):
        return None
    of_a_layer = 4 * shape.width**2 + 3 * shape.width * shape.mlp + 4 * shape.width
    weights = 2 * shape.vocabulary * shape.width + shape.layers * of_a_layer
    if recipe.adapter is not None:
        if recipe.adapter.continue_from or recipe.adapter.use_dora:
            return None
        # Two matrices beside each of seven.
        weights += shape.layers * recipe.adapter.r * (11 * shape.width + 3 * shape.mlp)

    longest = longest_pair(pairs)
    tokens = 2 * size * longest
    scores = 2 * shape.heads * longest  # a mask or scores, where they are held
    of_a_token = WIDTHS_OF_A_TOKEN * shape.width + MLPS_OF_A_TOKEN * shape.mlp + scores
    tokens_of_a_pass = 2 * pairs_a_pass(recipe.trl, size) * longest  # of which one layer is held at a time
    activations = max(shape.layers * tokens, tokens_of_a_pass) * of_a_token
    tile = min(tokens_of_a_pass, TILE_POSITIONS) * TRLS_TILE_WORDS  # however few words there are
    head = COPIES_OF_A_TILE * tile + 2 * shape.vocabulary * shape.width
    numbers = NUMBERS_OF_A_WEIGHT * weights + activations + head
    return 4 * numbers + (PROCESS if on_cpu else 0)

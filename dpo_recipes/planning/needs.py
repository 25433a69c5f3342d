"""Between how much and how much memory a recipe needs on a GPU, by arithmetic: for a list, where no plan is made.

A plan on fake tensors takes up to half a minute for a large model. Here are two bounds in no time: what every step
holds, whatever the pairs, and more than a step of the smallest micro-batch can take on top of it.
"""

from __future__ import annotations

from typing import NamedTuple

from ..recipe.adapters import LoRA, QLoRA
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, resolve
from .bound import TILE_POSITIONS, TRLS_TILE_WORDS
from .pair_lengths import pairs_a_pass
from .shapes import Shape, config_of, shape_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Part of an optimiser's name -> bytes that it keeps per number; the first that fits counts, so that the longer names
# come first. Any other is taken for AdamW, with two numbers of the parameter's own size.
BYTES_OF_STATES = {
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

# Of 4-bit weights: a scale for so many numbers, and where scales are quantised too, one for so many scales.
NUMBERS_A_SCALE = 64
SCALES_A_SCALE = 256

# Vectors of a layer's width, and of its MLP's, that a token leaves for the backward of one layer, a lot: a Llama leaves
# 13 and 4.
WIDTHS_OF_A_TOKEN = 20
MLPS_OF_A_TOKEN = 6
BYTES_OF_ACTIVATION = 4
BYTES_OF_ACTIVATION_BESIDE_ADAPTER = 3  # whose base is in 16 bits, so that only some of them have 32

# What torch's allocator keeps on top of what is in use: up to 15 % in plans of real models.
KEPT_BY_ALLOCATOR = 1.15
KEPT_AT_LEAST = 100_000_000  # bytes


class Needs(NamedTuple):
    """Bytes, from what every step holds to more than one can take with the smallest micro-batch."""

    least: int
    most: int


def bytes_of_states(optimizer: str, bytes_of_number: int) -> int:
    """What an optimiser keeps for one number that it trains."""
    for name, size in BYTES_OF_STATES.items():
        if name in optimizer:
            return size
    return 2 * bytes_of_number


def needs(recipe: Recipe) -> Needs | None:
    """What the recipe needs on a GPU with bf16; None where its model's shape, or what else it holds, is not known.

    With the micro-batch that it sets, else with one pair at a time, and with gradient checkpointing unless it is set.
    """
    config = config_of(recipe.model, recipe.revision)
    shape = shape_of(config) if config else None
    if shape is None or recipe.max_length is None:
        return None
    if recipe.reference is not None or recipe.trl.get("sync_ref_model"):  # a second model
        return None
    adapter = recipe.adapter
    if adapter is not None and (adapter.continue_from or adapter.use_dora):
        return None

    settings = resolve(recipe, Device("cuda", bf16=True, processes=1))
    adapted = None if adapter is None else _in_adapter(shape, adapter)
    least = _held(recipe, shape, BYTES[settings.weights], adapted)
    if adapter is not None and _is_pattern(adapter):  # which maps it means is not looked up here
        least = _held(recipe, shape, BYTES[settings.weights], 0)

    passing = _passing(recipe, shape, recipe.max_length, settings.in_16_bits)
    most = _held(recipe, shape, BYTES[settings.weights], adapted) + passing
    return Needs(least, int(KEPT_BY_ALLOCATOR * most) + KEPT_AT_LEAST)


def _is_pattern(adapter: LoRA) -> bool:
    return isinstance(adapter.target_modules, str) and adapter.target_modules != "all-linear"


def _in_adapter(shape: Shape, adapter: LoRA) -> int:
    """Numbers of an adapter; of a pattern, as if it meant every map."""
    names = adapter.target_modules
    chosen = [
        size
        for name, size in shape.maps.items()
        if isinstance(names, str) or any(name == target or name.endswith(f".{target}") for target in names)
    ]
    return shape.layers * sum(adapter.r * (inputs + outputs) for inputs, outputs in chosen)


def _held(recipe: Recipe, shape: Shape, bytes_of_weight: int, adapted: int | None) -> int:
    """Weights, and of what trains gradients and the optimiser's states, which each step holds."""
    optimizer = str(recipe.trl.get("optim", "adamw"))
    if adapted is None:
        return shape.total * (2 * bytes_of_weight + bytes_of_states(optimizer, bytes_of_weight))

    if isinstance(recipe.adapter, QLoRA):
        scales = shape.in_maps // NUMBERS_A_SCALE
        bytes_of_scales = scales + 4 * (scales // SCALES_A_SCALE) if recipe.adapter.double_quant else 4 * scales
        weights = shape.in_maps // 2 + bytes_of_scales + (shape.total - shape.in_maps) * 2
        bytes_of_adapter = 2
    else:
        weights = shape.total * bytes_of_weight
        bytes_of_adapter = 4
    return weights + adapted * (2 * bytes_of_adapter + bytes_of_states(optimizer, bytes_of_adapter))


def _passing(recipe: Recipe, shape: Shape, length: int, in_16_bits: bool) -> int:
    """More than comes and goes in a step: activations, copies of weights in 16 bits, and the head."""
    size = recipe.micro_batch_size or 1
    tokens = 2 * size * length
    tokens_of_a_pass = 2 * pairs_a_pass(recipe.trl, size) * length
    of_a_token = WIDTHS_OF_A_TOKEN * max(shape.width, shape.heads_width) + MLPS_OF_A_TOKEN * shape.mlp
    layers_at_once = 1 if recipe.trl.get("gradient_checkpointing", True) else shape.layers
    kept = shape.layers * tokens * shape.width  # the input of each layer
    activations = kept + max(tokens * layers_at_once, tokens_of_a_pass) * of_a_token

    # A tile of logits, and what its product is made of.
    positions = min(tokens_of_a_pass, TILE_POSITIONS)
    head = positions * TRLS_TILE_WORDS + (positions + 2 * TRLS_TILE_WORDS) * shape.width
    bytes_of_logit = 2 if in_16_bits else 4
    bytes_of_activation = BYTES_OF_ACTIVATION if recipe.adapter is None else BYTES_OF_ACTIVATION_BESIDE_ADAPTER
    in_bytes = bytes_of_activation * activations + bytes_of_logit * head
    if recipe.adapter is None:
        # Autocast keeps a copy of each weight in 16 bits; the gradients of embeddings and head are made whole in 32
        # bits before they are added.
        in_bytes += 2 * shape.total + 8 * shape.words * shape.width
    return in_bytes

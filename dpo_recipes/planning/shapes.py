"""The numbers of a model by what its config.json says: its linear maps, and how many numbers it has beside them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

# Decoders whose layers have a gated MLP and no biases -> widths of the hidden state, and of a head, in a layer's norms.
NORMS = {
    "llama": (2, 0),
    "mistral": (2, 0),
    "smollm3": (2, 0),
    "gemma": (2, 0),
    "qwen3": (2, 2),
    "gemma3_text": (4, 2),
}


class Shape(NamedTuple):
    """What a model holds, in numbers."""

    layers: int
    width: int  # of the hidden states
    heads_width: int  # of all heads together, where that is more
    mlp: int
    words: int
    maps: dict[str, tuple[int, int]]  # linear maps of one layer: name -> inputs, outputs
    rest_of_layer: int  # norms and biases
    outside: int  # embeddings, positions and the last norm
    head: int  # 0 where it is the embeddings

    @property
    def in_maps(self) -> int:
        """Numbers in the linear maps of all layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.maps.values())

    @property
    def total(self) -> int:
        return self.in_maps + self.layers * self.rest_of_layer + self.outside + self.head


def published_config(model: str) -> dict[str, Any] | None:
    """What the config.json of a published model says of its shape, where it is known here."""
    text = resources.files(__package__).joinpath("published_shapes.toml").read_text(encoding="utf-8")
    shapes = tomllib.loads(text)
    config = shapes.get(model)
    if config is not None and "same_as" in config:
        return shapes[config["same_as"]]
    return config


def config_of(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """The config.json of a model's folder, of the cache of the hub, or what is known of a published one. No network."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _read(folder / "config.json")
    published = published_config(model)
    if published is not None:
        return published
    if model.count("/") != 1 or model.startswith((".", "/", "~", "{")):  # no name on the hub
        return None

    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    return _read(Path(cached)) if isinstance(cached, str) else None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json describes; None for a family that is not known, or where a number is missing."""
    kind = config.get("model_type")
    try:
        if kind in NORMS:
            return _gated(config, *NORMS[kind])
        if kind == "gpt_neox":
            return _gpt_neox(config)
        if kind == "gptj":
            return _gptj(config)
        if kind == "gpt2":
            return _gpt2(config)
    except (KeyError, TypeError):
        return None
    return None


def _gated(config: Mapping[str, Any], norm_widths: int, norm_heads: int) -> Shape | None:
    if config.get("attention_bias") or config.get("mlp_bias"):
        return None
    width, heads, mlp, words = (
        config[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    )
    head_width = config.get("head_dim") or width // heads
    queries = heads * head_width
    keys = (config.get("num_key_value_heads") or heads) * head_width
    tied = config.get("tie_word_embeddings", config["model_type"].startswith("gemma"))
    return Shape(
        layers=config["num_hidden_layers"],
        width=width,
        heads_width=queries,
        mlp=mlp,
        words=words,
        maps={
            "q_proj": (width, queries),
            "k_proj": (width, keys),
            "v_proj": (width, keys),
            "o_proj": (queries, width),
            "gate_proj": (width, mlp),
            "up_proj": (width, mlp),
            "down_proj": (mlp, width),
        },
        rest_of_layer=norm_widths * width + norm_heads * head_width,
        outside=words * width + width,
        head=0 if tied else words * width,
    )


class _Ungated(NamedTuple):
    """The sizes of a GPT: its MLP has no gate, its heads together are as wide as its hidden states, its last norm has
    a bias.
    """

    layers: int
    width: int
    mlp: int
    words: int

    @classmethod
    def named_as_in_gpt2(cls, config: Mapping[str, Any]) -> _Ungated:
        width = config["n_embd"]
        return cls(
            layers=config["n_layer"],
            width=width,
            mlp=config.get("n_inner") or 4 * width,
            words=config["vocab_size"],
        )

    def shape(
        self, maps: dict[str, tuple[int, int]], *, rest_of_layer: int, positions: int = 0, head: int = 0
    ) -> Shape:
        """`positions`: how many have an embedding of their own."""
        return Shape(
            layers=self.layers,
            width=self.width,
            heads_width=self.width,
            mlp=self.mlp,
            words=self.words,
            maps=maps,
            rest_of_layer=rest_of_layer,
            outside=(self.words + positions + 2) * self.width,
            head=head,
        )


def _gpt_neox(config: Mapping[str, Any]) -> Shape:
    sizes = _Ungated(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        mlp=config["intermediate_size"],
        words=config["vocab_size"],
    )
    width, mlp = sizes.width, sizes.mlp
    maps = {
        "query_key_value": (width, 3 * width),
        "dense": (width, width),
        "dense_h_to_4h": (width, mlp),
        "dense_4h_to_h": (mlp, width),
    }
    head = 0 if config.get("tie_word_embeddings") else sizes.words * width
    return sizes.shape(maps, rest_of_layer=9 * width + mlp, head=head)


def _gptj(config: Mapping[str, Any]) -> Shape:
    sizes = _Ungated.named_as_in_gpt2(config)
    width, mlp = sizes.width, sizes.mlp
    maps = {
        "q_proj": (width, width),
        "k_proj": (width, width),
        "v_proj": (width, width),
        "out_proj": (width, width),
        "fc_in": (width, mlp),
        "fc_out": (mlp, width),
    }
    head = sizes.words * width + sizes.words  # with a bias
    return sizes.shape(maps, rest_of_layer=3 * width + mlp, head=head)


def _gpt2(config: Mapping[str, Any]) -> Shape:
    sizes = _Ungated.named_as_in_gpt2(config)
    width, mlp = sizes.width, sizes.mlp
    maps = {
        "c_attn": (width, 3 * width),
        "c_proj": (width, width),
        "c_fc": (width, mlp),
        "mlp.c_proj": (mlp, width),
    }
    positions = config.get("n_positions", 1024)
    return sizes.shape(maps, rest_of_layer=9 * width + mlp, positions=positions)

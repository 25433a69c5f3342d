"""Llamas of random weights in five sizes: a step takes as long as with trained ones, and nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Size(NamedTuple):
    """The shape of a Llama; head and embeddings are tied or not."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    mlp: int
    vocabulary: int
    tied: bool


# The larger ones have the shapes of SmolLM2-135M, Qwen2.5-0.5B, Qwen2.5-1.5B and Llama-2-7B.
SIZES = {
    "7M": Size(hidden=256, layers=4, heads=4, key_value_heads=4, mlp=688, vocabulary=8192, tied=False),
    "135M": Size(hidden=576, layers=30, heads=9, key_value_heads=3, mlp=1536, vocabulary=49152, tied=True),
    "0.5B": Size(hidden=896, layers=24, heads=14, key_value_heads=2, mlp=4864, vocabulary=151936, tied=True),
    "1.5B": Size(hidden=1536, layers=28, heads=12, key_value_heads=2, mlp=8960, vocabulary=151936, tied=True),
    "7B": Size(hidden=4096, layers=32, heads=32, key_value_heads=32, mlp=11008, vocabulary=32000, tied=False),
}


def make(size: Size, folder: Path) -> None:
    """Write a model folder: weights from a seed, in 16 bits, and a tokenizer of as many words as the model has."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        intermediate_size=size.mlp,
        vocab_size=size.vocabulary,
        tie_word_embeddings=size.tied,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)

    words = {f"w{number}": number for number in range(size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", pad_token="w1").save_pretrained(folder)

"""Tiny models made from configs, and pairs made from code: no network, no weights, no files but these."""

from __future__ import annotations

import json
from pathlib import Path

CHATML = (
    "{%- for m in messages -%}{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\n<|im_start|>assistant\\n' }}{%- endif -%}"
)
# As SmolLM3's: the day is printed, and thinking is on unless it is switched off.
DATED = (
    "{{ '<|im_start|>system\\nToday Date: ' + strftime_now('%d %B %Y') + '\\nReasoning Mode: ' "
    "+ ('/think' if enable_thinking is not defined or enable_thinking else '/no_think') + '<|im_end|>\\n' }}" + CHATML
)


def make_tokenizer(template: str | None = CHATML):
    """A byte-level tokenizer of 256 bytes and four control tokens; nothing is out of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<think>"]})
    fast.chat_template = template
    return fast


SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "vocab_size": 264,
}  # fmt: skip


def make_model(
    folder: Path, model_type: str = "llama", template: str | None = CHATML, seed: int = 0, **changes
) -> Path:
    """A random two-layer model of an architecture with its tokenizer, saved as a model folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(template)
    sizes = {**SIZES, **changes}
    if model_type == "gpt_neox":
        sizes.pop("num_key_value_heads")
    config = AutoConfig.for_model(
        model_type, **sizes, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # sharper than an initialised model, so that differences show
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


WORDS = ["red", "blue", "green", "lamp", "table", "kettle", "attic", "kitchen", "five", "six", "coins", "good", "bad"]


def make_pairs(n: int = 24, seed: int = 0) -> list[dict]:
    """Explicit preference rows as message lists; the chosen side ends politely."""
    import random

    draw = random.Random(seed)
    rows = []
    for i in range(n):
        words = [draw.choice(WORDS) for _ in range(draw.randint(2, 5))]
        rows.append({
            "prompt": [{"role": "user", "content": f"Question {i}: where is the {draw.choice(WORDS)}?"}],
            "chosen": [{"role": "assistant", "content": " ".join(words) + " thanks"}],
            "rejected": [{"role": "assistant", "content": " ".join(words[: draw.randint(1, len(words))]) + " no"}],
        })  # fmt: skip
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


RECIPE_IMPORTS = "from dpo_recipes import Data, LoRA, QLoRA, Recipe\n"
RECIPE = 'recipe = Recipe(model="m", data=Data("d"))\n'


def write_recipe(path: Path, body: str = RECIPE, head: str = RECIPE_IMPORTS) -> Path:
    """A recipe file: what it imports, then its body."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + body, encoding="utf-8")
    return path

"""Tiny models made from configs, and pairs made from code: no network, no weights, no files but these."""

from __future__ import annotations

import io
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


def make_tokenizer(template: str | None = CHATML, end: str = "<|im_end|>", start: str | None = None):
    """A byte-level tokenizer of 256 bytes and a few control tokens; nothing is out of its vocabulary.

    `start` is there for templates that write it; text gets none.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token="<|pad|>", bos_token=start)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<think>"]})
    fast.chat_template = template
    return fast


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 264,
}


def make_model(
    folder: Path,
    model_type: str = "llama",
    template: str | None = CHATML,
    seed: int = 0,
    end: str = "<|im_end|>",
    start: str | None = None,
    **changes,
) -> Path:
    """A random two-layer model of an architecture with its tokenizer, saved as a model folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if model_type in ("idefics3", "llava"):
        return make_vision_model(folder, model_type, str(template), end)
    tokenizer = make_tokenizer(template, end, start)
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


# As CHATML, of content in blocks.
IN_BLOCKS = (
    "{%- for m in messages -%}{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{%- if m['content'] is string -%}{{ m['content'] }}{%- else -%}{%- for part in m['content'] -%}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\n<|im_start|>assistant\\n' }}{%- endif -%}"
)


def make_vision_model(
    folder: Path, model_type: str = "idefics3", template: str = IN_BLOCKS, end: str = "<|im_end|>", **changes
) -> Path:
    """A random vision-language model of two layers on each side, with its processor: "idefics3" or "llava".

    Idefics3 cuts an image in tiles, as SmolVLM does, so that a larger one makes more tokens; for LLaVA all are alike.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, Idefics3Processor, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = make_tokenizer(template, end)
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    control_tokens = ["<|im_start|>", "<think>", "<image>", "<fake_token_around_image>", "<global-img>", *tiles]
    tokenizer.add_special_tokens({"additional_special_tokens": control_tokens})
    text = {**SIZES, "model_type": "llama", "vocab_size": 288, "pad_token_id": tokenizer.pad_token_id, **changes}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    options: dict = {"text_config": text, "image_token_id": image_token, "pad_token_id": tokenizer.pad_token_id}
    if model_type == "idefics3":
        options |= {"vision_config": {**vision, "image_size": 32, "patch_size": 8}, "scale_factor": 2}
        images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
        processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    else:
        vision |= {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 4, "projection_dim": 32}
        options |= {"vision_config": vision, "image_seq_length": 16}
        images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        processor = LlavaProcessor(
            images, tokenizer, 4, "default", chat_template=template, num_additional_image_tokens=1
        )
    config = AutoConfig.for_model(model_type, **options, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_image(path: Path, width: int = 40, height: int = 24, seed: int = 0, mode: str = "RGB") -> Path:
    """An image of random pixels."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def make_image_pairs(folder: Path, n: int = 24, **more) -> Path:
    """`make_pairs` as a jsonl file, each with an image of its own, of one of three sizes, in the folder beside it."""
    rows = make_pairs(n)
    for number, row in enumerate(rows):
        width, height = ((40, 24), (30, 60), (20, 20))[number % 3]
        make_image(folder / "pictures" / f"{number}.png", width, height, seed=number)
        row |= {"images": [f"pictures/{number}.png"], **more}
    return write_jsonl(folder / "pairs.jsonl", rows)


def make_reward_model(folder: Path, template: str | None = CHATML, labels: int = 1, **changes) -> Path:
    """A random sequence classifier of two layers, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = make_tokenizer(template)
    tokenizer.save_pretrained(folder)
    values = {"pad_token_id": tokenizer.pad_token_id, "num_labels": labels} | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(LlamaConfig(**{**SIZES, **values}))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    model.save_pretrained(folder)
    return folder


def make_start_pair_logps(chosen_gap: float = 0.0, rejected_gap: float = 0.0, tokens: int = 10, n: int = 4):
    """PairLogps of n pairs with `tokens` tokens on each side, policy and reference equal.

    The gaps, in nats, are what the policy is above its reference in the last pair.
    """
    import torch

    from dpo_recipes import PairLogps

    reference = torch.linspace(-40, -20, n)
    last = torch.zeros(n)
    last[-1] = 1
    return PairLogps(
        policy_chosen=reference + chosen_gap * last,
        policy_rejected=reference - 5 + rejected_gap * last,
        reference_chosen=reference,
        reference_rejected=reference - 5,
        chosen_tokens=torch.full((n,), tokens),
        rejected_tokens=torch.full((n,), tokens),
    )


WORDS = ["red", "blue", "green", "lamp", "table", "kettle", "attic", "kitchen", "five", "six", "coins", "good", "bad"]


def make_pairs(n: int = 24, seed: int = 0) -> list[dict]:
    """Explicit preference rows as message lists; the chosen side ends politely."""
    import random

    draw = random.Random(seed)
    rows = []
    for i in range(n):
        words = [draw.choice(WORDS) for _ in range(draw.randint(2, 5))]
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"Question {i}: where is the {draw.choice(WORDS)}?"}],
                "chosen": [{"role": "assistant", "content": " ".join(words) + " thanks"}],
                "rejected": [{"role": "assistant", "content": " ".join(words[: draw.randint(1, len(words))]) + " no"}],
            }
        )
    return rows


# Before an answer this template opens a thought, which the answers of the pairs do not.
THINKING = CHATML.replace("<|im_start|>assistant\\n'", "<|im_start|>assistant\\n<think>\\n'")


def make_tokenizer_with_start(template: str | None = CHATML):
    """A tokenizer that puts the start token <s> before text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(template)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def message(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


def user(text: str) -> dict:
    return message("user", text)


def said(text: str, **more) -> dict:
    return message("assistant", text, **more)


def system(text: str) -> dict:
    return message("system", text)


def make_pair(prompt: str, chosen: str, rejected: str, **more) -> dict:
    """One pair of single messages."""
    return {
        "prompt": [user(prompt)],
        "chosen": [said(chosen)],
        "rejected": [said(rejected)],
        **more,
    }


def make_text_pairs(*rows: tuple[str, str, str]) -> list[dict]:
    """Pairs of plain strings: prompt, chosen, rejected."""
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in rows]


def make_dataset(rows: list[dict], text: bool = False):
    """Pairs as they come from reading: Json columns, or strings, and the name of each row."""
    from datasets import Dataset, Features, Json, Value

    rows = [{"row": f"file:{number}", **row} for number, row in enumerate(rows)]
    kind = Value("string") if text else Json()
    features = Features({name: Value("string") if name == "row" else kind for name in rows[0]})
    return Dataset.from_list(rows, features=features)


def tokenize_pairs(rows, tokenizer=None, text: bool = False, **changes):
    """`prepare` of rows, or of a data set, with a tiny tokenizer: (tokenised pairs, their part of the data report)."""
    from dpo_recipes.data.tokenize import prepare

    tokenizer = tokenizer or make_tokenizer()
    options = {"max_length": None, "ends": {tokenizer.eos_token_id}, "drop_truncated": False, "num_proc": None}
    pairs = rows if hasattr(rows, "map") else make_dataset(rows, text)
    return prepare(pairs, tokenizer, text=text, **options | changes)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_splits(folder: Path, train: list[dict], held_out: list[dict], **changes):
    """Data of two files: rows to train on, and rows to evaluate with, unless `changes` name others."""
    from dpo_recipes import Data

    own = write_jsonl(folder / "train.jsonl", train)
    others = write_jsonl(folder / "eval.jsonl", held_out)
    return Data(str(own), **{"eval": str(others), **changes})


RECIPE_IMPORTS = "from dpo_recipes import Data, LoRA, QLoRA, Recipe\n"
RECIPE = 'recipe = Recipe(model="m", data=Data("d"))\n'


def write_recipe(path: Path, body: str = RECIPE, head: str = RECIPE_IMPORTS) -> Path:
    """A recipe file: what it imports, then its body."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + body, encoding="utf-8")
    return path


def make_recipe(**changes):
    """A recipe whose model m and data d are never looked at."""
    from dpo_recipes import Data, Recipe

    return Recipe(**{"model": "m", "data": Data("d"), **changes})


def recipe_for(folder: Path | str, **changes):
    """A recipe on a model folder whose data are never read."""
    from dpo_recipes import Data, Recipe

    return Recipe(model=str(folder), **{"data": Data("unused"), **changes})


def short_recipe(folder: Path, pairs: Path | None = None, **changes):
    """A recipe of an adapter and three steps of six pairs; of the pairs of a file, a quarter are held out."""
    from dpo_recipes import Data, LoRA

    given = {
        "data": Data(str(pairs), eval=0.25),
        "adapter": LoRA(r=4),
        "learning_rate": 1e-3,
        "global_batch_size": 6,
        "max_length": 112,
        "trl": {"gradient_checkpointing": False, "max_steps": 3},
    }
    return recipe_for(folder, **{**given, **changes})


def quiet():
    """A console that nobody sees."""
    from rich.console import Console

    return Console(file=io.StringIO(), width=300)


def train_in(folder: Path, recipe):
    """The run of a recipe that is trained in a folder."""
    from dpo_recipes import train

    return train(recipe, runs=folder / "runs", console=quiet())


def load_policy(folder: Path | str, **changes):
    """The weights that a recipe on this model folder starts from, on the CPU."""
    from dpo_recipes.models.weights import load_weights
    from dpo_recipes.recipe.resolve import Device, resolve

    recipe = recipe_for(folder, **changes)
    return load_weights(recipe, resolve(recipe, Device()), str(folder))


def make_adapter(folder: Path, base: Path, seed: int = 1) -> Path:
    """A saved LoRA adapter of rank 4 that already changes its base."""
    import torch
    from peft import get_peft_model

    from dpo_recipes import LoRA
    from dpo_recipes.models.adapter import peft_config

    model = get_peft_model(load_policy(base), peft_config(LoRA(r=4)))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


def trainer_of(recipe, train, held_out, output: Path, *, device=None, options=None, cls=None, **more):
    """The trainer of a recipe on a model folder, as training makes it, or bare TRL's on the very same arguments.

    `train` and `held_out` are rows, or a data set; `options` are attributes of its DPOConfig that no recipe can set;
    `more` goes to our trainer.
    """
    from datasets import Dataset

    from dpo_recipes.models.adapter import peft_config
    from dpo_recipes.models.tokenizer import load_tokenizer
    from dpo_recipes.models.weights import load_weights
    from dpo_recipes.recipe.dpo_arguments import dpo_arguments
    from dpo_recipes.recipe.resolve import Device, resolve
    from dpo_recipes.training.trainer import RecipeTrainer, config

    settings = resolve(recipe, device or Device())
    arguments = {
        "model": load_weights(recipe, settings, recipe.model),
        "args": config(dpo_arguments(recipe, settings, str(output))),
        "train_dataset": Dataset.from_list(train) if isinstance(train, list) else train,
        "eval_dataset": Dataset.from_list(held_out) if held_out else None,
        "processing_class": load_tokenizer(recipe, recipe.model).tokenizer,
        "peft_config": peft_config(recipe.adapter),
    }
    vars(arguments["args"]).update(options or {})
    if settings.reference in ("other model", "moving copy"):
        arguments["ref_model"] = load_weights(recipe, settings, recipe.reference or recipe.model, trainable=False)
    if cls:
        return cls(**arguments)
    return RecipeTrainer(recipe=recipe, settings=settings, **arguments, **more)


SHORT_ANSWER = 24  # tokens

REFERENCES = ["adapter off", "frozen adapter", "start weights", "other model"]


def make_trainer(reference: str, base: Path, other: Path, adapter: Path, output: Path):
    """(trainer, its Reference, a reference loaded freshly from disk), one of REFERENCES, as training makes them."""
    from dpo_recipes import LoRA
    from dpo_recipes.models.reference import Reference
    from dpo_recipes.models.weights import load_weights
    from dpo_recipes.recipe.resolve import Device, resolve

    changes: dict = {"max_length": 96, "trl": {"gradient_checkpointing": False}}
    if reference == "adapter off":
        changes["adapter"] = LoRA(r=4)
    if reference == "frozen adapter":
        changes["adapter"] = LoRA(continue_from=str(adapter))
    if reference == "other model":
        changes["reference"] = str(other)
    recipe = recipe_for(base, **changes)
    settings = resolve(recipe, Device())
    assert settings.reference == reference

    def load_reference():
        path = recipe.reference or str(base)
        return load_weights(recipe, settings, path, trainable=reference == "frozen adapter")

    trainer = trainer_of(recipe, make_pairs(4), None, output)
    return trainer, Reference(trainer.model, settings, load_reference), load_reference().eval()


def perturb(model, size: float = 0.3) -> None:
    """What training does, faster: every trainable tensor moves."""
    import torch

    draw = torch.Generator().manual_seed(2)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            scale = size * parameter.abs().mean().clamp(min=0.1)
            parameter.data += scale * torch.randn(parameter.shape, generator=draw)


def model_state(model) -> list:
    """All that lending a model out could leave changed: numbers, what trains, the adapter in use, the mode."""
    parameters = [(name, p.requires_grad, p.sum().item()) for name, p in model.named_parameters()]
    adapters = [
        (name, module.disable_adapters, module.training)
        for name, module in model.named_modules()
        if hasattr(module, "disable_adapters")
    ]
    return [parameters, getattr(model, "active_adapters", None), model.training, adapters]


def make_random_pair_logps(n: int = 256, seed: int = 3):
    """PairLogps of random float64 log-probabilities and lengths."""
    import torch

    from dpo_recipes.losses.pair_logps import PairLogps

    draw = torch.Generator().manual_seed(seed)
    logps = -150 * torch.rand(4, n, generator=draw, dtype=torch.float64)
    tokens = torch.randint(1, 90, (2, n), generator=draw)
    return PairLogps(
        policy_chosen=logps[0],
        policy_rejected=logps[1],
        reference_chosen=logps[2],
        reference_rejected=logps[3],
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
    )

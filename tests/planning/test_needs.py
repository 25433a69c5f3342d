"""The two bounds of a recipe's memory: the plan lies between them, whatever is trained and however."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import make_recipe

from dpo_recipes import LoRA, QLoRA
from dpo_recipes.models.skeleton import skeleton
from dpo_recipes.planning.memory import plan
from dpo_recipes.planning.needs import needs
from dpo_recipes.planning.pair_lengths import PairLength
from dpo_recipes.planning.shapes import config_of, published_config, shape_of
from dpo_recipes.recipe.catalogue import load, shipped_names
from dpo_recipes.recipe.resolve import Device, resolve

GPU = Device("cuda", bf16=True, processes=1)
GATED = {
    "num_hidden_layers": 3,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1024,
    "vocab_size": 40000,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "pad_token_id": 0,
}
GPT = {"n_layer": 3, "n_embd": 384, "n_head": 6, "rotary_dim": 32, "vocab_size": 40000, "dtype": "bfloat16"}
LENGTH = 768


def model(folder: Path, kind: str, **changes) -> str:
    sizes = GPT if kind in ("gpt2", "gptj") else GATED
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **sizes, **changes}))
    return str(folder)


def bounds_and_plan(recipe) -> tuple[int, int, int]:
    """(lower bound, peak of the plan for pairs that fill max_length, upper bound)."""
    settings = resolve(recipe, GPU)
    pairs = [PairLength(1, recipe.max_length - 1, recipe.max_length - 1)]
    planned = plan(skeleton(recipe, settings, recipe.model), recipe, settings, pairs=pairs)
    least, most = needs(recipe)
    return least, planned.peak, most


def assert_between(recipe) -> None:
    least, planned, most = bounds_and_plan(recipe)
    assert least <= planned <= most


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen3", "gpt2", "gptj", "gpt_neox"])
def test_the_plan_of_each_family_lies_between(tmp_path, kind):
    assert_between(make_recipe(model=model(tmp_path, kind), max_length=LENGTH, micro_batch_size=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": LoRA(r=8, target_modules=["q_proj", "down_proj"])},
        {"adapter": LoRA(r=8, target_modules=r".*\.(q|up)_proj")},
        {"adapter": QLoRA(r=8)},
        {"adapter": QLoRA(r=8, double_quant=False)},
        {"micro_batch_size": 4},
        {"trl": {"gradient_checkpointing": False}},
        {"trl": {"optim": "rmsprop"}, "pair_sharing": "off"},
        {"adapter": LoRA(r=8), "trl": {"optim": "paged_adamw_8bit"}},
    ],
    ids=str,
)
def test_so_it_does_however_a_llama_is_trained(tmp_path, changes):
    given = {"model": model(tmp_path, "llama"), "max_length": LENGTH, "micro_batch_size": 1}
    assert_between(make_recipe(**given | changes))


PUBLISHED = sorted({load(name).model for name in shipped_names()})


@pytest.mark.slow
def test_a_published_shape_has_as_many_numbers_as_the_model(tmp_path):
    known = {name: published_config(name) for name in PUBLISHED if published_config(name)}
    assert len(known) >= 17
    for number, config in enumerate(known.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 0}))
        recipe = make_recipe(model=str(folder))
        made = skeleton(recipe, resolve(recipe, GPU), str(folder))
        assert shape_of(config).total == sum(parameter.numel() for parameter in made.parameters())


def test_what_every_step_holds_of_a_zephyr_is_sixteen_bytes_a_number():
    """32-bit weights and gradients, and two states of AdamW; the model has 7,241,732,096 numbers."""
    assert needs(load("zephyr_7b_full")).least == 16 * 7_241_732_096


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "no/such-model"},
        {"model": "{prepared}/model", "prepare": lambda folder, seed: None},
        {"max_length": None},
        {"reference": "another/model"},
        {"adapter": LoRA(continue_from="folder")},
        {"adapter": LoRA(r=8, use_dora=True)},
    ],
    ids=["no such model", "a model that is made", "no max_length", "another reference", "a continued adapter", "DoRA"],
)
def test_what_cannot_be_known_is_none(changes):
    assert needs(make_recipe(**{"model": "Qwen/Qwen3-8B", **changes})) is None


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"model_type": "mamba"}', '{"model_type": "llama"}'])
def test_a_config_that_tells_nothing_is_no_shape(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert needs(make_recipe(model=str(tmp_path))) is None
    assert needs(make_recipe(model=str(tmp_path / "nothing"))) is None


def test_a_folder_goes_before_what_is_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen/Qwen3-8B").mkdir(parents=True)
    model(tmp_path / "Qwen/Qwen3-8B", "llama")
    assert config_of("Qwen/Qwen3-8B")["model_type"] == "llama"

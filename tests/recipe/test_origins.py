"""Every resolved value with its origin: default, mode default, recipe file or command line."""

from __future__ import annotations

import json
from typing import Any

from making import make_recipe

from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.recipe.origins import origin, values_with_origins
from dpo_recipes.recipe.overrides import apply
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.recipe.validation import field_types

GPU = Device("cuda", bf16=True, processes=1)


def resolved(recipe: Recipe) -> dict[str, tuple[Any, str]]:
    return values_with_origins(recipe, resolve(recipe, GPU))


def test_every_value_knows_its_origin():
    recipe = make_recipe(
        data=Data("d", train="train_prefs", chat_template_kwargs={"enable_thinking": False, "tone": "dry"}),
        adapter=LoRA(r=32),
        trl={"lr_scheduler_type": "cosine"},
    )
    once = apply(recipe, ["beta=0.3", "loss=cdpo", "loss_args={'label_smoothing': 0.2}"])
    twice = apply(once, ["adapter=qlora", "adapter.alpha=8", "trl.save_steps=5", "data.chat_template_kwargs.tone=warm"])
    origins = {
        "model": "recipe file",
        "beta": "command line",
        "seed": "default",
        "loss": "command line",
        "loss_args.label_smoothing": "command line",
        "adapter": "command line",
        "adapter.alpha": "command line",
        "adapter.r": "recipe file",
        "adapter.dropout": "default",
        "trl.save_steps": "command line",
        "trl.lr_scheduler_type": "recipe file",
        "data.train": "recipe file",
        "data.chat_template_kwargs": "command line",
        "data.eval": "default",
    }
    assert {key: origin(twice, key) for key in origins} == origins


def test_the_parts_of_a_dictionary_set_as_a_whole_are_the_command_lines():
    changed = apply(
        make_recipe(trl={"lr_scheduler_type": "cosine"}), ["trl={'max_grad_norm': 0.5}", "trl.save_steps=5"]
    )
    assert {origin(changed, f"trl.{name}") for name in changed.trl} == {"command line"}


def test_a_path_that_takes_the_place_of_a_mix_leaves_it_at_its_default():
    mixed = apply(make_recipe(data=Data("d", train="train_prefs")), ["data.mix={'a.jsonl': 1, 'b.jsonl': 0.5}"])
    assert origin(mixed, "data.mix") == "command line"
    assert origin(mixed, "data.path") == "default"
    assert origin(mixed, "data.train") == "default"  # the name of a split of "d", which single files do not have


def test_a_number_of_the_loss_that_nobody_gave_is_its_default():
    assert origin(make_recipe(loss="cdpo"), "loss_args.label_smoothing") == "default"


def test_every_field_has_one_entry():
    recipe = make_recipe(adapter=LoRA(r=8), loss="cdpo", trl={"max_grad_norm": 0.5}, rules={"over_fitting": "stop"})
    expected = [
        *(name for name in field_types(Recipe) if name not in ("data", "trl", "rules", "loss_args")),
        *(f"data.{name}" for name in field_types(Data)),
        *(f"adapter.{name}" for name in field_types(LoRA)),
        "loss_args.label_smoothing",
        "trl.max_grad_norm",
        "rules.over_fitting",
    ]
    assert sorted(resolved(recipe)) == sorted(expected)


def test_every_value_stands_beside_its_origin():
    recipe = apply(make_recipe(adapter=LoRA(r=8), loss="cdpo"), ["beta=0.3"])
    values = resolved(recipe)
    assert values["beta"] == (0.3, "command line")
    assert values["adapter.r"] == (8, "recipe file")
    assert values["seed"] == (42, "default")
    assert values["loss_args.label_smoothing"] == (0.1, "default")


def test_what_the_mode_decided_says_so():
    values = resolved(make_recipe(adapter=LoRA(r=8)))
    assert {key: value for key, (value, where) in values.items() if where == "mode default"} == {
        "adapter.alpha": 16,
        "learning_rate": 5e-6,
        "micro_batch_size": 4,
        "reference": "adapter off",
        "dtype": "bfloat16 weights, bf16 autocast",
    }


def test_where_the_pairs_come_from_is_shown_as_json_can_hold_it():
    def mine(row):
        return row

    values = resolved(make_recipe(data=Data(mix={"a.jsonl": 1.0, "org/set": 0.5}, reader=mine, allow=["border"])))
    assert values["data.mix"] == ({"a.jsonl": 1.0, "org/set": 0.5}, "recipe file")
    assert values["data.path"] == (None, "default")
    assert values["data.reader"] == ("mine", "recipe file")
    assert values["data.allow"] == (["border"], "recipe file")
    assert values["data.streaming"] == (False, "default")
    assert values["data.drop_truncated"] == (False, "default")
    assert json.dumps(values)


def test_a_continued_adapter_does_not_pretend_to_know_its_rank():
    shown = {key for key in resolved(make_recipe(adapter=QLoRA(continue_from="x"))) if key.startswith("adapter.")}
    assert shown == {"adapter.continue_from", "adapter.double_quant"}

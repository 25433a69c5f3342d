"""`show`: every value with its origin as JSON, the step in words, and what differs from TRL's defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from making import SIZES, make_recipe

from dpo_recipes import LoRA, apply, show
from dpo_recipes.recipe.resolve import Device

GPU = Device("cuda", bf16=True, processes=1)


def test_show_leaves_out_what_is_trls_own():
    recipe = make_recipe(
        learning_rate=1e-6, num_train_epochs=3, micro_batch_size=8, global_batch_size=8, trl={"logging_steps": 10}
    )
    values = {name: (shown["value"], shown["default"]) for name, shown in show(recipe, GPU)["trl"].items()}
    assert values == {
        "precompute_ref_log_probs": (True, False),
        "disable_tqdm": (True, False),
        # Checkpoints are written in time, and not by TRL
        "save_strategy": ("no", "steps"),
        "save_total_limit": (2, None),
    }


def test_changed_leaves_out_what_nobody_has_set():
    recipe = apply(make_recipe(adapter=LoRA(r=8), trl={"logging_steps": 10}), ["beta=0.3", "trl.save_steps=5"])
    shown = show(recipe, GPU, changed=True)
    assert {key: entry["value"] for key, entry in shown["recipe"].items()} == {
        "model": "m",
        "data.path": "d",
        "adapter": "LoRA",
        "adapter.r": 8,
        "beta": 0.3,
        "trl.logging_steps": 10,
        "trl.save_steps": 5,
    }
    assert "trl" not in shown and shown["step"] == show(recipe, GPU)["step"]


def test_show_is_json_and_tells_the_step():
    def mine(pairs, *, beta):
        return pairs.h

    shown = json.loads(json.dumps(show(make_recipe(loss={mine: 1.0, "sigmoid": 0.5}), GPU)))
    assert shown["recipe"]["loss"] == {"value": {"mine": 1.0, "sigmoid": 0.5}, "origin": "recipe file"}
    assert shown["recipe"]["adapter"] == {"value": None, "origin": "default"}
    assert shown["trl"]["loss_weights"] == {"value": [0.5], "default": None}
    assert (shown["name"], shown["device"], shown["step"]) == (
        "recipe",
        "cuda",
        "16 pairs a step = 4 pairs x 4 accumulation",
    )
    eight = show(make_recipe(), Device("cuda", True, 8))
    assert eight["step"] == "16 pairs a step = 2 pairs x 1 accumulation x 8 processes"
    assert show(make_recipe(trl={"use_cpu": True}))["device"] == "cpu"


def folder_with(config: dict[str, Any], path: Path) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_what_is_chosen_is_shown_with_its_reason_where_config_json_tells_enough(tmp_path):
    small = folder_with({"model_type": "llama", **SIZES}, tmp_path / "small")
    shown = show(make_recipe(model=small, adapter=LoRA(r=8), max_length=64), Device("cpu"))
    entry = shown["recipe"]["trl.gradient_checkpointing"]
    assert (entry["value"], entry["origin"]) == (False, "chosen")
    assert entry["reason"].startswith("activations are kept, and not computed twice: by a formula, a step needs far")
    assert shown["left_open"] == "" and shown["trl"]["gradient_checkpointing"] == {"value": False, "default": True}

    set_by_hand = show(make_recipe(model=small, trl={"gradient_checkpointing": True}), Device("cpu"))
    assert set_by_hand["recipe"]["trl.gradient_checkpointing"] == {"value": True, "origin": "recipe file"}


def test_what_is_chosen_later_is_said(tmp_path):
    huge = folder_with({"model_type": "llama", **SIZES, "num_hidden_layers": 10**9}, tmp_path / "huge")
    for recipe in (make_recipe(model=huge), make_recipe()):
        shown = show(recipe, Device("cpu"))
        assert "trl.gradient_checkpointing" not in shown["recipe"]
        assert shown["left_open"] == (
            "trl.gradient_checkpointing: decided when the pairs are known, as `check` and `train` tell."
        )
    assert show(make_recipe(), GPU)["left_open"].startswith(
        "micro_batch_size and trl.gradient_checkpointing: decided when"
    )

"""The one translation to DPOConfig: its names, the losses and weights, and who has the last word."""

from __future__ import annotations

import pytest
from making import make_recipe

from dpo_recipes.recipe import trl_options
from dpo_recipes.recipe.dpo_arguments import dpo_arguments
from dpo_recipes.recipe.resolve import Device, resolve

CPU = Device("cpu", processes=1)
GPU = Device("cuda", bf16=True, processes=1)


def test_the_table_names_dpoconfig_fields_only_and_all_that_are_ours():
    config = dpo_arguments(make_recipe(), resolve(make_recipe(), GPU), "out")
    assert config.keys() <= trl_options.options().keys() and config["output_dir"] == "out"
    assert trl_options.OURS.keys() - {"auto_find_batch_size", "model_init_kwargs"} <= config.keys()


@pytest.mark.parametrize(
    ("loss", "types", "weights"),
    [
        ("hinge", ["hinge"], None),
        ({"sigmoid": 1.0}, ["sigmoid"], None),
        ({"sigmoid": 1.0, "hinge": 0.2}, ["sigmoid", "hinge"], [1.0, 0.2]),
        ("cdpo", [], None),
        ({"hinge": 0.5, "cdpo": 1.0}, ["hinge"], [0.5]),
    ],
)
def test_trl_gets_its_own_losses_and_weights(loss, types, weights):
    recipe = make_recipe(loss=loss)
    config = dpo_arguments(recipe, resolve(recipe, GPU), "")
    assert (config["loss_type"], config["loss_weights"]) == (types, weights)


@pytest.mark.parametrize(
    ("loss", "types", "weights"),
    [
        ("hinge", ["hinge", "sft"], [1.0, 0.2]),
        ({"sigmoid": 0.5, "ipo": 1.0}, ["sigmoid", "ipo", "sft"], [0.5, 1.0, 0.2]),
        ("cdpo", ["sft"], [0.2]),
    ],
)
def test_sft_weight_adds_trls_own_term_to_whatever_loss(loss, types, weights):
    recipe = make_recipe(loss=loss, sft_weight=0.2)
    config = dpo_arguments(recipe, resolve(recipe, GPU), "")
    assert (config["loss_type"], config["loss_weights"]) == (types, weights)


def test_trl_options_have_the_last_word():
    recipe = make_recipe(trl={"logging_steps": 5, "per_device_eval_batch_size": 2, "use_cpu": True})
    config = dpo_arguments(recipe, resolve(recipe, GPU), "")
    assert (config["logging_steps"], config["per_device_eval_batch_size"], config["use_cpu"]) == (5, 2, True)


def test_dpoconfig_accepts_the_table(tmp_path):
    from trl import DPOConfig

    recipe = make_recipe(loss={"sigmoid": 1.0, "hinge": 0.5}, trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1})
    config = dpo_arguments(recipe, resolve(recipe, CPU), str(tmp_path))
    accepted = DPOConfig(**config)
    assert (accepted.loss_type, accepted.loss_weights) == (["sigmoid", "hinge"], [1.0, 0.5])
    assert accepted.beta == 0.1
    assert accepted.learning_rate == 5e-7
    assert accepted.per_device_train_batch_size == 4
    assert accepted.gradient_accumulation_steps == 4
    assert not accepted.bf16

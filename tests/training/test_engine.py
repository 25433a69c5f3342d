"""Engines that a launcher has chosen, and the recipes that they cannot train."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from making import recipe_for

from dpo_recipes import LoRA, QLoRA, RecipeError
from dpo_recipes.planning.engines import ENGINES
from dpo_recipes.recipe.data import Data
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.training.engine import (
    OF_GPUS,
    clip_as_asked,
    divides_weights,
    engine_here,
    prepare_again,
    reads_before_training,
    refuse_engine,
    refuse_fsdp_on_a_cpu,
    refuse_lost_processes,
    refuse_other_precision,
    refuse_training_apart,
)

RECIPE = recipe_for("model")
STREAM = {"data": Data("pairs", eval="pairs", streaming=True), "adapter": LoRA(), "trl": {"max_steps": 3}}


@pytest.mark.parametrize(
    ("variables", "engine"),
    [
        ({}, "ddp"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ({"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ddp"),
    ],
)
def test_the_variables_of_the_launcher_say_which_engine_it_is(monkeypatch, variables, engine):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert engine_here(RECIPE) == engine


def test_a_configuration_of_deepspeed_says_which_stage_it_is(monkeypatch, tmp_path):
    stage_3 = {"zero_optimization": {"stage": 3}}
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(stage_3))
    for configuration in (stage_3, json.dumps(stage_3), str(file)):
        assert engine_here(recipe_for("model", trl={"deepspeed": configuration})) == "zero3"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    assert engine_here(RECIPE) == "zero3"


@pytest.mark.parametrize(
    ("changes", "engine", "device", "words"),
    [
        ({}, "fsdp1", "cuda", "fsdp1, with which nothing has been tried here. Choose one of ddp, fsdp2, zero2, zero3"),
        ({}, "fsdp2", "cpu", "accelerate would start it as DDP there, with nothing divided"),
        ({}, "zero2", "cpu", "knows no way to start DeepSpeed there. On a CPU: dpo-recipes train recipe --launch ddp"),
        ({}, "ddp", "mps", "Apple's GPU is one device"),
        ({"adapter": QLoRA()}, "fsdp2", "cuda", "floating-point storage alone (bnb_4bit_quant_storage)"),
        ({"adapter": QLoRA()}, "zero3", "cuda", "Transformers reads them whole into each process. Take ddp"),
        ({"adapter": None, "trl": {"sync_ref_model": True}}, "zero3", "cuda", "trl.sync_ref_model moves a second copy"),
        ({"reference": "other"}, "zero2", "cuda", "Leave reference= out, or take ddp"),
        (STREAM, "ddp", "cpu", "A stream of pairs is read in one process"),
    ],
)
def test_what_an_engine_cannot_train_is_refused_with_what_can(monkeypatch, changes, engine, device, words):
    monkeypatch.setattr("dpo_recipes.training.engine.find_spec", lambda name: object())
    with pytest.raises(RecipeError) as refusal:
        refuse_engine(recipe_for("model", **changes), engine, device)
    assert words in str(refusal.value)


def test_what_works_is_let_through(monkeypatch):
    monkeypatch.setattr("dpo_recipes.training.engine.find_spec", lambda name: object())
    for engine in ENGINES:
        refuse_engine(RECIPE, engine, "cuda")
    for device in ("cpu", "cuda"):
        refuse_engine(recipe_for("model", adapter=QLoRA()), "ddp", device)
    refuse_engine(recipe_for("model", adapter=QLoRA()), "zero2", "cuda")
    assert set(ENGINES) == {"ddp", *OF_GPUS}


def test_deepspeed_that_is_not_installed_is_said_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr("dpo_recipes.training.engine.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install deepspeed"):
        refuse_engine(RECIPE, "zero2", "cuda")


def test_a_precision_of_the_launcher_that_is_not_the_recipes_is_refused(monkeypatch):
    """TRL's Trainer computes in the launcher's where its own options ask for none."""
    full = resolve(recipe_for("model", dtype="float32"), Device(processes=2))
    half = resolve(recipe_for("model", adapter=LoRA(), dtype="bfloat16"), Device(processes=2))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    refuse_other_precision(half)
    with pytest.raises(RecipeError, match="mixed_precision=bf16, .* Give the launcher --mixed_precision no, or"):
        refuse_other_precision(full)
    for of_launcher in ("no", None):
        if of_launcher is None:
            monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
        else:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", of_launcher)
        refuse_other_precision(half)
        refuse_other_precision(full)


@pytest.fixture
def launched(monkeypatch):
    """launched(options): as if accelerate's launcher had been given these, and had started this process."""

    def launch(*options, cpu="True"):
        command = [sys.executable, "accelerate", "launch", *options, "-m", "dpo_recipes", "train", "quickstart"]
        monkeypatch.setattr(psutil.Process, "parent", lambda self: SimpleNamespace(cmdline=lambda: command))
        if cpu is not None:
            monkeypatch.setenv("ACCELERATE_USE_CPU", cpu)

    return launch


@pytest.mark.parametrize(
    ("options", "cpu"),
    [
        (["--cpu", "--num_processes", "2"], "True"),
        (["--cpu", "--num_processes=2"], "True"),
        (["--num_processes", "2"], "False"),  # on a machine with one GPU
        (["--config_file", "several_cpus.yaml"], "True"),
    ],
)
def test_one_process_in_the_place_of_several_is_refused(launched, here, options, cpu):
    (here / "several_cpus.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    launched(*options, cpu=None)
    refuse_lost_processes()  # nobody has launched anything
    launched(*options, cpu=cpu)
    with pytest.raises(
        RecipeError, match="one process, and not the 2 that were asked for. .* --num-processes 2; or: torch"
    ):
        refuse_lost_processes()


@pytest.mark.parametrize(
    "options",
    [
        ["--cpu"],
        ["--config_file", "single_gpu.yaml"],
        ["--config_file", "several_cpus.yaml", "--num_processes", "1"],
        ["--config_file", "absent.yaml"],
    ],
)
def test_one_process_where_one_was_asked_for_is_not(launched, here, options):
    (here / "several_cpus.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    (here / "single_gpu.yaml").write_text("distributed_type: 'NO'\nnum_processes: 8\n")  # as TRL ships one
    launched(*options)
    refuse_lost_processes()


def test_fsdp_in_one_process_is_refused_on_a_cpu_where_nothing_would_come_of_it(monkeypatch):
    refuse_fsdp_on_a_cpu(RECIPE, "cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    refuse_fsdp_on_a_cpu(RECIPE, "cuda")
    with pytest.raises(RecipeError, match="fsdp2 needs GPUs, .* train there without it. Use: dpo-recipes train recipe"):
        refuse_fsdp_on_a_cpu(RECIPE, "cpu")


def test_deepspeed_clips_where_the_recipe_does_and_not_at_its_own_default():
    def clipped(configuration):
        plugin = SimpleNamespace(deepspeed_config=configuration)
        accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
        clip_as_asked(SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(max_grad_norm=0.2)))
        return configuration["gradient_clipping"]

    assert clipped({}) == 0.2
    assert clipped({"gradient_clipping": 0.3}) == 0.3  # which Transformers compares with max_grad_norm


def _trainer(world_size=1, deepspeed=None, fsdp=False):
    plugin = SimpleNamespace(zero_stage=deepspeed)
    return SimpleNamespace(
        args=SimpleNamespace(world_size=world_size),
        model=SimpleNamespace(_is_accelerate_prepared=True),
        is_deepspeed_enabled=deepspeed is not None,
        is_fsdp_enabled=fsdp,
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
    )


def test_a_model_that_no_wrapper_shares_trains_in_one_process_alone():
    alone, one_of_two = _trainer(), _trainer(world_size=2)
    for trainer in (alone, one_of_two):
        prepare_again(trainer)
    assert alone.model._is_accelerate_prepared and not one_of_two.model._is_accelerate_prepared
    refuse_training_apart(alone, torch.nn.Linear(2, 2))
    refuse_training_apart(_trainer(world_size=2, deepspeed=2), torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="a policy of its own"):
        refuse_training_apart(one_of_two, torch.nn.Linear(2, 2))


def test_which_engines_divide_weights_and_which_let_a_policy_be_read_before():
    assert [divides_weights(t) for t in (_trainer(), _trainer(deepspeed=2), _trainer(deepspeed=3))] == [
        False,
        False,
        True,
    ]
    assert divides_weights(_trainer(fsdp=True)) and not reads_before_training(_trainer(fsdp=True))
    assert reads_before_training(_trainer(world_size=2)) and not reads_before_training(_trainer(deepspeed=2))

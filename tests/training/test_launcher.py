"""`train --launch`: what accelerate's launcher is given, and what is refused before it."""

from __future__ import annotations

import os
import signal

import pytest
from making import recipe_for

from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.planning.engines import ENGINES
from dpo_recipes.recipe.resolve import Device
from dpo_recipes.training import launcher
from dpo_recipes.training.launcher import CONFIGURATIONS, launch

RECIPE = recipe_for("model", global_batch_size=16)


@pytest.fixture
def started(monkeypatch):
    """The command lines that would have been given to accelerate, with how many processes are on this machine."""
    commands: list[tuple[list[str], int]] = []
    monkeypatch.setattr(launcher, "_started", lambda command, count: commands.append((command, count)) or 0)
    monkeypatch.setattr(launcher, "refuse_engine", lambda recipe, engine, device: None)
    monkeypatch.delenv("DPO_RECIPES_LAUNCHED_WITH", raising=False)
    yield commands
    os.environ.pop("DPO_RECIPES_LAUNCHED_WITH", None)


def _value(command, option):
    return command[command.index(option) + 1]


@pytest.mark.parametrize("engine", CONFIGURATIONS)
def test_the_configuration_is_trls_and_the_arguments_go_on_as_they_were_typed(started, engine):
    assert launch(RECIPE, engine, ["mine", "beta=0.5", "--runs", "a b;c"], num_processes=4) == 0
    [(command, count)] = started
    assert count == 4 and _value(command, "--num_processes") == "4"
    file = _value(command, "--config_file")
    assert file.endswith(f"trl/accelerate_configs/{CONFIGURATIONS[engine]}.yaml") and os.path.isfile(file)
    assert _value(command, "--mixed_precision") == "no"  # the recipe decides
    assert command[-7:] == ["-m", "dpo_recipes", "train", "mine", "beta=0.5", "--runs", "a b;c"]
    assert os.environ["DPO_RECIPES_LAUNCHED_WITH"] == f"--launch {engine} --num-processes 4"


def test_every_engine_that_is_planned_can_be_launched():
    assert list(CONFIGURATIONS) == list(ENGINES) == list(launcher.CHANGED)


def test_several_machines_meet_at_the_first(started):
    machines = {"num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 29500}
    launch(RECIPE, "ddp", ["mine"], num_processes=8, **machines)
    [(command, count)] = started
    assert count == 4
    for option, value in machines.items():
        assert _value(command, f"--{option}") == str(value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "on a CPU say how many processes, as in --num-processes 2"),
        ({"num_processes": 1}, "with one process is a run without it"),
        ({"num_processes": 0}, "on 1 it can be 1, 2"),
        ({"num_processes": 5}, "do not divide over 5 processes. Nearest: 15 and 20"),
        ({"num_processes": 2, "machine_rank": 0}, "add --num-machines"),
        ({"num_processes": 4, "num_machines": 1}, "leave it out for one machine"),
        ({"num_processes": 4, "num_machines": 2}, "with --machine-rank, from 0 to 1"),
        ({"num_processes": 4, "num_machines": 2, "machine_rank": 2}, "with --machine-rank, from 0 to 1"),
        ({"num_processes": 4, "num_machines": 2, "machine_rank": 0}, "find each other at the first one"),
        (
            {
                "num_processes": 3,
                "num_machines": 2,
                "machine_rank": 0,
                "main_process_ip": "10.0.0.1",
                "main_process_port": 29500,
            },
            "on 2 it can be 2, 4",
        ),
    ],
)
def test_what_cannot_be_launched_is_refused_before_anything_starts(started, options, words):
    with pytest.raises(UsageError) as refusal:
        launch(RECIPE, "ddp", ["mine"], **options)
    assert words in str(refusal.value) and started == []


def test_an_engine_that_there_is_not_a_second_engine_and_a_second_launcher_are_refused(started, monkeypatch):
    with pytest.raises(UsageError, match="--launch zero4 is not one of ddp, fsdp2, zero2, zero3. Did you mean"):
        launch(RECIPE, "zero4", ["mine"], num_processes=2)
    with pytest.raises(UsageError, match="both choose an engine"):
        launch(
            recipe_for("model", trl={"deepspeed": {"zero_optimization": {"stage": 2}}}),
            "zero2",
            ["mine"],
            num_processes=2,
        )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="A launcher has started 2 processes"):
        launch(RECIPE, "ddp", ["mine"], num_processes=2)


def test_each_process_gets_a_gpu_of_its_own(started, monkeypatch):
    import torch

    monkeypatch.setattr(launcher, "here", lambda: Device("cuda", bf16=True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    launch(RECIPE, "ddp", ["mine"])
    assert _value(started[0][0], "--num_processes") == "4"
    with pytest.raises(UsageError, match="--num-processes 8: each process needs a GPU of its own, and 4 are visible"):
        launch(RECIPE, "ddp", ["mine"], num_processes=8)


def test_a_process_that_was_killed_is_told_of_as_it_could_not_say_so_itself():
    assert launcher._exit_code(1) == 1 and launcher._exit_code(-signal.SIGTERM) == 128 + signal.SIGTERM
    with pytest.raises(RecipeError, match="killed by SIGKILL"):
        launcher._exit_code(-signal.SIGKILL)

"""What training/engine.py expects of Transformers, accelerate and DeepSpeed.

Read again: `evaluation_loop` of Transformers' Trainer, `prepare_model` of accelerate, `prepare_deepspeed_cmd_env` and
`prepare_multi_gpu_env` of its utils/launch.py, and `GRADIENT_CLIPPING_DEFAULT` of DeepSpeed.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from making import recipe_for
from reading_trl import leaning
from transformers import Trainer

from dpo_recipes.training.engine import engine_here
from dpo_recipes.training.launcher import CONFIGURATIONS, Machines, _command


@pytest.mark.parametrize("engine", CONFIGURATIONS)
def test_the_variables_that_accelerate_sets_name_the_engine(engine, monkeypatch):
    command = _command(engine, 2, Machines(1, 0, None, None), ["quickstart"])
    options, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    if engine.startswith("zero"):
        options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(options)
    else:
        environment = prepare_multi_gpu_env(options)
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    assert engine_here(recipe_for("model")) == engine, leaning("training/engine.py", f"how a process knows {engine}")


def test_a_model_that_is_prepared_is_not_prepared_again_until_the_mark_is_gone():
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare_model(torch.nn.Linear(2, 2), evaluation_mode=True)
    assert model._is_accelerate_prepared, leaning("training/engine.py", "the mark of a prepared model")
    source = inspect.getsource(Trainer.evaluation_loop)
    assert "prepare_model(model, evaluation_mode=True)" in source, leaning(
        "training/engine.py", "how a policy is read before training"
    )


def test_deepspeed_clips_at_one_where_nobody_says_at_what():
    constants = pytest.importorskip("deepspeed.runtime.constants", reason="pip install deepspeed")
    assert constants.GRADIENT_CLIPPING_DEFAULT == 1.0, leaning(
        "training/engine.py", "why DeepSpeed is told where to clip"
    )

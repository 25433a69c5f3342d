"""What training/launcher.py expects of TRL's accelerate configurations and of the launchers of accelerate and torch.

Read again: `trl/accelerate_configs`, `_validate_launch_command` and `launch_command` of accelerate's
commands/launch.py, `_filter_args` of its utils/launch.py, and `get_args_parser` of torch.distributed.run.
"""

from __future__ import annotations

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import _filter_args
from reading_trl import leaning
from torch.distributed import run

from dpo_recipes.training.launcher import CONFIGURATIONS, Machines, _command

OF_ENGINE = {
    "ddp": {"multi_gpu": True, "use_fsdp": False, "use_deepspeed": False},
    "fsdp2": {"use_fsdp": True, "fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": "false"},
    "zero2": {"use_deepspeed": True, "zero_stage": 2},
    "zero3": {"use_deepspeed": True, "zero_stage": 3, "zero3_init_flag": "false", "zero3_save_16bit_model": True},
}


@pytest.mark.parametrize("engine", CONFIGURATIONS)
def test_a_configuration_of_trls_gives_its_engine_and_the_command_line_goes_before_it(engine):
    command = _command(engine, 2, Machines(1, 0, None, None), ["quickstart", "--runs", "x"])
    options, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    expected = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no", "main_process_port": 0, "cpu": False}
    expected |= {"module": True, "training_script": "dpo_recipes", "training_script_args": command[-4:]}
    for name, value in (expected | OF_ENGINE[engine]).items():
        assert getattr(options, name) == value, leaning("training/launcher.py", f"{name} under {engine}")


def test_what_torchs_launcher_knows_is_handed_on_to_it():
    options = launch_command_parser().parse_args(["-m", "dpo_recipes"])
    options.shutdown_timeout = 77
    handed_on = _filter_args(options, run.get_args_parser(), ["--training_script", "x"])
    assert handed_on.shutdown_timeout == 77, leaning("training/launcher.py", "how long processes get to stop")

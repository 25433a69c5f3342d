"""`train --launch ENGINE`: the processes of a run, started by accelerate's own launcher from this one.

Leans on TRL 1.16: the accelerate configurations in its wheel, `trl/accelerate_configs`. On accelerate 1.15:
`launch_command_parser` and `launch_command`, that what the command line names goes before the configuration, and that
what torch's launcher knows is handed on to it. And on torch 2.13: that launcher's errors, and what it does at a signal:
it hands it on to all processes, waits as long as `shutdown_timeout` says, and at a second one sends it again.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RecipeError, UsageError, nearest
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, here, processes, resolve
from ..runs.resumption import LAUNCHED_WITH
from ..signals import Stopped
from .engine import refuse_engine

# Engine -> the configuration that TRL ships for it
CONFIGURATIONS = {"ddp": "multi_gpu", "fsdp2": "fsdp2", "zero2": "zero2", "zero3": "zero3"}

# What a run needs otherwise than these configurations have it. Each process reads and checks all weights, so that none
# may begin with empty ones.
CHANGED = {
    "ddp": [],
    "fsdp2": ["--fsdp_cpu_ram_efficient_loading", "false"],
    "zero2": [],
    "zero3": ["--zero3_init_flag", "false"],
}

# Seconds that the processes get for the step, and its checkpoint, when a signal has asked them to stop.
TO_STOP = 1800
FREE_PORT = 0  # whichever is free, so that two runs on one machine do not meet


class Machines(NamedTuple):
    """Several machines, on each of which the same command is given with another rank."""

    num_machines: int
    rank: int
    main_ip: str | None
    main_port: int | None


def launch(
    recipe: Recipe,
    engine: str,
    arguments: Sequence[str],
    *,
    num_processes: int | None = None,
    num_machines: int | None = None,
    machine_rank: int | None = None,
    main_process_ip: str | None = None,
    main_process_port: int | None = None,
) -> int:
    """Train a recipe in several processes; `arguments` are those of `dpo-recipes train` for each. Gives the exit code.

    `num_processes`: of all machines together; None: one for each GPU. Where a process fails it has said why. UsageError
    and RecipeError for what cannot work, before anything is started.
    """
    if engine not in CONFIGURATIONS:
        names = ", ".join(CONFIGURATIONS)
        raise UsageError(f"--launch {engine} is not one of {names}.{nearest(engine, CONFIGURATIONS)}")
    if processes() > 1:
        raise UsageError(
            f"A launcher has started {processes()} processes, and --launch would start more in each. Leave one out."
        )
    if recipe.trl.get("deepspeed"):
        raise UsageError(f"--launch {engine} and trl.deepspeed both choose an engine. Leave one of them out.")
    machines = _machines(num_machines, machine_rank, main_process_ip, main_process_port)
    device = here()
    if recipe.trl.get("use_cpu"):
        device = Device()
    count = _processes(engine, num_processes, machines, device.kind)
    refuse_engine(recipe, engine, device.kind)
    resolve(recipe, replace(device, processes=count))  # which raises where the batch does not divide
    os.environ[LAUNCHED_WITH] = shlex.join(_as_typed(engine, count, machines))
    return _started(_command(engine, count, machines, arguments), count // machines.num_machines)


def _machines(count: int | None, rank: int | None, main_ip: str | None, main_port: int | None) -> Machines:
    """The machines of a run; UsageError where not all is said that they must know, or what one alone has no use for."""
    if count is None:
        if rank is not None or main_ip is not None:
            raise UsageError("--machine-rank and --main-process-ip are of several machines: add --num-machines M.")
        return Machines(1, 0, None, main_port)
    if count < 2:
        raise UsageError(f"--num-machines {count}: leave it out for one machine; several are 2 or more.")
    if rank is None or not 0 <= rank < count:
        raise UsageError(
            f"--num-machines {count}: on each of them say which it is with --machine-rank, from 0 to {count - 1}."
        )
    if main_ip is None or main_port is None:
        raise UsageError(
            f"--num-machines {count}: the machines find each other at the first one. Give each of them the same "
            "--main-process-ip ADDRESS and --main-process-port PORT."
        )
    return Machines(count, rank, main_ip, main_port)


def _processes(engine: str, asked: int | None, machines: Machines, device: str) -> int:
    """How many processes there are to be; UsageError where that cannot be."""
    gpus = 0
    if device == "cuda":
        import torch

        gpus = torch.cuda.device_count()
    if asked is None:
        if not gpus:
            raise UsageError(
                f"--launch {engine}: on a CPU say how many processes, as in --num-processes 2. They share its cores."
            )
        asked = gpus * machines.num_machines
    if asked < 1 or asked % machines.num_machines:
        raise UsageError(
            f"--num-processes {asked} is the number on all machines together: on {machines.num_machines} it can be "
            f"{machines.num_machines}, {2 * machines.num_machines} and so on."
        )
    on_this_machine = asked // machines.num_machines
    if gpus and on_this_machine > gpus:
        raise UsageError(
            f"--num-processes {asked}: each process needs a GPU of its own, and {gpus} are visible on this machine."
        )
    if asked == 1 and engine == "ddp":
        raise UsageError("--launch ddp with one process is a run without it: leave --launch out.")
    return asked


def _command(engine: str, count: int, machines: Machines, arguments: Sequence[str]) -> list[str]:
    """The arguments of `accelerate launch`. Of the precision the recipe decides, in each process."""
    command = ["--config_file", str(_configuration(engine)), *CHANGED[engine]]
    command += ["--num_processes", str(count), "--mixed_precision", "no"]
    command += ["--num_machines", str(machines.num_machines), "--machine_rank", str(machines.rank)]
    if machines.main_ip is not None:
        command += ["--main_process_ip", machines.main_ip]
    port = FREE_PORT if machines.main_port is None else machines.main_port
    command += ["--main_process_port", str(port)]
    return [*command, "-m", "dpo_recipes", "train", *arguments]


def _as_typed(engine: str, count: int, machines: Machines) -> list[str]:
    """What a user types for these processes, on the first machine."""
    words = ["--launch", engine, "--num-processes", str(count)]
    if machines.main_ip is not None:
        words += ["--num-machines", str(machines.num_machines), "--machine-rank", str(machines.rank)]
        words += ["--main-process-ip", machines.main_ip, "--main-process-port", str(machines.main_port)]
    return words


def _configuration(engine: str) -> Path:
    """The file that TRL ships, found without importing TRL."""
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        raise RecipeError("TRL is not installed: pip install -e .")
    file = Path(spec.origin).parent / "accelerate_configs" / f"{CONFIGURATIONS[engine]}.yaml"
    if not file.is_file():
        raise RecipeError(f"The installed TRL has no accelerate configuration {file.name} in {file.parent}.")
    return file


def _started(command: list[str], on_this_machine: int) -> int:
    """Run accelerate's launcher until all processes have ended; the exit code of the one that failed first, or 0."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Whichever process fails says so itself, in one line; the launcher would add a page.
    logging.disable(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="accelerate")
    # Among them that DDP looks for unused parameters and finds none, as Transformers has it look.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Of a CPU's cores, those that each process gets: torch alone would give all of them to each.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // on_this_machine)))

    options: Any = launch_command_parser().parse_args(command)
    options.shutdown_timeout = TO_STOP
    try:
        launch_command(options)
    except ChildFailedError as error:
        _rank, failure = error.get_first_failure()
        return _exit_code(failure.exitcode)
    except SignalException as stopped:  # the processes have said what there is of the run
        raise Stopped(int(stopped.sigval), [], is_told=True) from None
    except ConnectionError as error:
        raise RecipeError(f"The processes could not find each other: {error}") from error
    return 0


def _exit_code(code: int) -> int:
    """A process's exit code; RecipeError where it was killed, and so has not said why."""
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    if -code in (signal.SIGINT, signal.SIGTERM):
        return 128 - code
    raise RecipeError(
        f"A process of the run was killed by {name}, and has said nothing. By SIGKILL the system frees memory that has "
        "run out: each process holds its own copy of what `dpo-recipes check` counts."
    )

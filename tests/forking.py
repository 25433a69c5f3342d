"""Programs in processes of their own that need not import the libraries first: copies of one process that has.

To import torch, Transformers and TRL takes some seven seconds of CPU, each time. A program has standard streams, a
folder, an environment and an exit code of its own; but what a library reads from the environment while it is imported
is what it was when the first of them was started.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

LIBRARIES = ["torch", "transformers", "datasets", "peft", "trl.trainer.dpo_trainer"]


def run(
    program: Callable[..., None], *arguments: str, cwd: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """What `subprocess.run` tells of a command, of a function that is called with these arguments."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "out", Path(folder) / "err"]
        process = context.Process(target=_start, args=(program, arguments, cwd, environment, files))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        out, err = (file.read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess(arguments, process.exitcode or 0, out, err)


def _start(program, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], files: list[Path]) -> None:
    for stream, path in enumerate(files, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    program(*arguments)


def command_line(*words: str) -> None:
    """dpo-recipes, as a shell starts it."""
    from dpo_recipes.__main__ import main

    sys.argv = list(words)
    main()


def python(code: str) -> None:
    """Code, as `python -c` runs it."""
    sys.argv = ["-c"]
    exec(code, {"__name__": "__main__"})

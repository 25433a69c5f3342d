"""The file of a job: a batch script for Slurm, a task for SkyPilot, a script that starts a job of Hugging Face Jobs.

Leans on the documented interfaces alone: the options and variables of sbatch and srun (Slurm 22.05 and newer), the
keys of SkyPilot's YAML and its SKYPILOT_* variables (0.14), and `hf jobs run` and `hf buckets` of huggingface_hub 2.4.
"""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from pathlib import Path

from .job import MINUTES_TO_STOP, Job, Task, bucket_of

PORT = 29500  # of the first machine, where the others find it; on clusters each job has its own
UV_IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"  # the one that `hf jobs uv run` takes
SECONDS_BETWEEN_COPIES = 300
KEPT = "/keep"  # where SkyPilot mounts the bucket

AGAIN = "Started once more, it goes on with its run where that was stopped, and leaves a finished one alone."


def job_file(task: Task, job: Job) -> str:
    """The text of the file, which ends in a line break."""
    lines = {"sbatch": _sbatch, "sky": _sky, "hf-jobs": _hf_jobs}[job.platform](task, job)
    return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------------------------- Slurm


def _sbatch(task: Task, job: Job) -> list[str]:
    folder = Path.cwd()
    keep = (folder / (job.keep or "jobs")).resolve()
    return [
        "#!/bin/bash",
        f"# {task.name}: {task.in_words()}. Submit it with: sbatch FILE",
        f"# {AGAIN}",
        *_slurm_options(task, job),
        "set -euo pipefail",
        "# Both folders must be on a disk that all nodes see.",
        f"cd {shlex.quote(str(folder))}",
        f"keep={shlex.quote(str(keep))}",
        'export XDG_CACHE_HOME="$keep/cache" HF_HOME="$keep/cache/huggingface"',
        f'env="$keep/{task.name}/env"',
        "# module load python/3.12    <- a Python of 3.11 or newer, where your cluster needs a word for it",
        'if [ ! -x "$env/bin/dpo-recipes" ]; then',
        '  python3 -m venv "$env"',
        f'  "$env/bin/pip" install --quiet {shlex.join(task.requirements)}',
        "fi",
        *_slurm_training(task),
    ]


def _slurm_options(task: Task, job: Job) -> list[str]:
    of_type = f"{job.gpu_type}:" if job.gpu_type else ""
    options = [f"#SBATCH --job-name={task.name}"]
    for name, value in (("account", job.account), ("partition", job.partition)):
        left_open = f"##SBATCH --{name}=NAME    <- yours, with one # less, where your cluster wants it"
        options.append(left_open if value is None else f"#SBATCH --{name}={value}")
    options += [
        f"#SBATCH --nodes={task.nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={of_type}{task.gpus_per_node}",
        "#SBATCH --cpus-per-gpu=4",
        "##SBATCH --mem=0    <- with one # less all memory of a node: each process reads the whole model into it",
    ]
    if task.minutes is not None:
        hours, minutes = divmod(task.minutes, 60)
        options.append(f"#SBATCH --time={hours // 24}-{hours % 24:02}:{minutes:02}:00")
    options += [
        f"#SBATCH --signal=TERM@{60 * MINUTES_TO_STOP}",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=%x.log",
    ]
    return options


def _slurm_training(task: Task) -> list[str]:
    runs = f'"$keep/{task.name}"'
    if task.nodes == 1:
        return [f'srun "$env/bin/dpo-recipes" {task.train(runs)}']
    # A node's rank is known in its own task alone, so that the last option is written there.
    meeting = '--main-process-ip "$main" --main-process-port "$port"'
    return [
        'read -r main < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "port=$((20000 + SLURM_JOB_ID % 10000))",
        "# shellcheck disable=SC2016  # the rank is that of each node, and not of this script",
        'srun --kill-on-bad-exit=1 bash -c \'exec "$@" --machine-rank "$SLURM_NODEID"\' job \\',
        f'  "$env/bin/dpo-recipes" {task.train(runs, meeting)}',
    ]


# -------------------------------------------------------------------------------------------------------- SkyPilot


def _sky(task: Task, job: Job) -> list[str]:
    meeting = (
        '--machine-rank "$SKYPILOT_NODE_RANK" --main-process-ip "$(head -n 1 <<< "$SKYPILOT_NODE_IPS")" '
        f"--main-process-port {PORT}"
    )
    command = f"{_soft_limit(task.minutes)}~/env/bin/dpo-recipes {task.train(f'{KEPT}/{task.name}', meeting)}"
    return [
        f"# {task.name}: {task.in_words()}. From this folder, which goes along: sky jobs launch FILE",
        f"# {AGAIN} A managed job is started again by itself where a machine is lost.",
        "# What .gitignore names stays behind; a .skyignore decides in its place. For gated models: --secret HF_TOKEN",
        f"name: {json.dumps(task.name.lower())}",
        f"num_nodes: {task.nodes}",
        "resources:",
        f"  accelerators: {json.dumps(f'{job.gpu_type}:{task.gpus_per_node}')}",
        "  # use_spot: true    <- cheaper machines, which may be taken away",
        "workdir: .",
        "file_mounts:",
        f"  {KEPT}:",
        f"    source: {json.dumps(job.keep)}",
        "    mode: MOUNT_CACHED",
        "setup: |",
        "  set -e",
        "  uv venv --allow-existing --python 3.12 ~/env",
        f"  uv pip install --python ~/env/bin/python {shlex.join(task.requirements)}",
        "run: |",
        f"  export XDG_CACHE_HOME={KEPT}/cache HF_HOME=~/huggingface",
        f"  {command}",
    ]


# ------------------------------------------------------------------------------------------------ Hugging Face Jobs


def _hf_jobs(task: Task, job: Job) -> list[str]:
    assert job.keep is not None and task.minutes is not None
    bucket = bucket_of(job.keep)
    there = f"there=hf://buckets/{bucket}/{task.name}"
    return [
        "#!/bin/bash",
        f"# {task.name}: {task.in_words()}, on {job.gpu_type} of Hugging Face Jobs, where it is paid for.",
        f"# Start it with: bash FILE. {AGAIN}",
        f"# To have what it has made: hf buckets sync hf://buckets/{bucket}/{task.name}/keep ./{task.name}",
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}",
        there,
        f"hf buckets create {bucket} --private --exist-ok",
        *([_sent(path) for path in task.travels] or ['date | hf buckets cp - "$there/started"  # so that it is there']),
        "script=$(cat <<'END_OF_SCRIPT'",
        "set -euo pipefail",
        there,
        "uv venv --quiet /env",
        f"uv pip install --quiet --python /env/bin/python huggingface_hub=={version('huggingface_hub')}",
        "mkdir -p /job/work /job/keep",
        '/env/bin/hf buckets sync "$there" /job',
        "cd /job/work",
        f"uv pip install --quiet --python /env/bin/python {shlex.join(task.requirements)}",
        "export PATH=/env/bin:$PATH XDG_CACHE_HOME=/job/keep/cache HF_HOME=/job/huggingface",
        "# The machine's disk goes with the job: what is on it is copied every few minutes, and at the end.",
        'copy() { hf buckets sync --delete /job/keep "$there/keep" > /dev/null; }',
        f"(while sleep {SECONDS_BETWEEN_COPIES}; do copy || true; done) &",
        "trap copy EXIT",
        f"{_soft_limit(task.minutes)}dpo-recipes {task.train('/job/keep/runs')}",
        "END_OF_SCRIPT",
        ")",
        f"hf jobs run --detach --name {task.name} --flavor {job.gpu_type} --timeout {task.minutes}m \\",
        f'  --secrets HF_TOKEN {UV_IMAGE} bash -c "$script"',
    ]


def _sent(path: Path) -> str:
    """The line that sends a file or a folder, to the place below the job's folder that it has below this one."""
    verb = "sync" if path.is_dir() else "cp"
    return f'hf buckets {verb} {shlex.quote(str(path))} "$there"/work/{shlex.quote(path.as_posix())}'


def _soft_limit(minutes: int | None) -> str:
    """What stands before a command that is to stop with a checkpoint, some minutes before the job is ended."""
    if minutes is None:
        return ""
    return f"timeout --foreground --signal=TERM {minutes - MINUTES_TO_STOP}m "

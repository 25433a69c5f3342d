"""The files of `export --to`, held against what reads them: shells, SkyPilot's keys, hf's parser, and our own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from making import make_pairs, write_jsonl, write_recipe

from dpo_recipes import Run, apply, load
from dpo_recipes.cli import app
from dpo_recipes.exports.job import Job, Task, task_of
from dpo_recipes.exports.job_files import PORT, job_file

# A model's folder that no shell may take apart
AWKWARD = 'it\'s $HOME `date` "m"'
PACKAGE = "dpo-recipes==0.1.0"
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
JOBS = {
    "sbatch, one GPU": Job("sbatch"),
    "sbatch, one node": Job("sbatch", gpus_per_node=8, account="me", partition="gpu", time="90m"),
    "sbatch, two nodes": Job(
        "sbatch", nodes=2, gpus_per_node=8, gpu_type="h100", launch="fsdp2", keep="a b", time="2d"
    ),
    "sky, one GPU": Job("sky", gpu_type="L4", keep="gs://mine", package=PACKAGE),
    "sky, two nodes": Job(
        "sky", nodes=2, gpus_per_node=8, gpu_type="H100", launch="zero3", keep="s3://a", time="24h", package=PACKAGE
    ),
    "hf-jobs, one GPU": Job("hf-jobs", gpu_type="l4x1", keep="me/mine", time="12h", package=PACKAGE),
    "hf-jobs, eight": Job(
        "hf-jobs", gpu_type="h200x8", launch="fsdp2", keep="hf://buckets/me/mine", time="2d", package=PACKAGE
    ),
}
# https://docs.skypilot.co/en/latest/reference/yaml-spec.html, and sky/utils/schemas.py of skypilot 0.14.1, which
# refuses any other
KEYS_OF_SKY = {
    "": {"name", "workdir", "num_nodes", "resources", "file_mounts", "setup", "run", "envs", "secrets", "volumes"},
    "resources": {"infra", "accelerators", "cpus", "memory", "disk_size", "use_spot", "job_recovery", "image_id"},
    "file_mounts": {"name", "source", "store", "persistent", "mode", "type", "config"},
}
MODES_OF_SKY = ("MOUNT", "COPY", "MOUNT_CACHED")
# Options of sbatch: https://slurm.schedmd.com/sbatch.html
OPTIONS_OF_SBATCH = {
    "job-name",
    "account",
    "partition",
    "nodes",
    "ntasks-per-node",
    "gpus-per-node",
    "cpus-per-gpu",
    "mem",
    "time",
    "signal",
    "requeue",
    "open-mode",
    "output",
}


@pytest.fixture
def written(here):
    """written(name of a job) -> (what it does, its file), for a recipe below this folder whose names are awkward."""
    Path(AWKWARD).mkdir()
    write_jsonl(Path("my pairs.jsonl"), make_pairs(4))
    write_recipe(
        Path("my recipe.py"),
        "recipe = Recipe(model='./x', data=Data('my pairs.jsonl'), adapter=LoRA(r=4), global_batch_size=64)\n",
        "from dpo_recipes import Data, LoRA, Recipe\n",
    )
    changes = [f"model=./{AWKWARD}", "beta=0.05"]

    def write(name: str) -> tuple[Task, str]:
        task = task_of(apply(load("./my recipe.py"), changes), changes, JOBS[name])
        return task, job_file(task, JOBS[name])

    return write


def scripts_of(text: str) -> list[str]:
    """The shell scripts in a job file, one in another apart from it."""
    if text.startswith("#!"):
        inside = re.findall(r"<<'END_OF_SCRIPT'\n(.*)^END_OF_SCRIPT$", text, re.S | re.M)
        return [text, *inside]
    task = yaml.safe_load(text)
    return [task["setup"], task["run"]]


def train_words(text: str) -> list[str]:
    """What `dpo-recipes` is given in a job file, as a shell hands it on."""
    [line] = [line for script in scripts_of(text)[-1:] for line in script.splitlines() if "--once" in line]
    words = shlex.split(line)
    return words[words.index("train") :]


def parsed_by_ours(words: list[str]) -> dict:
    """The same, by our own command line; what a variable of the shell stands for is a number here."""
    numbers = ["7" if word.startswith("$") and word.endswith(("RANK", "port")) else word for word in words]
    command = typer.main.get_command(app).get_command(None, "train")
    return command.make_context("train", numbers[1:]).params


@pytest.mark.parametrize("name", JOBS)
def test_what_is_trained_is_what_our_own_command_line_understands(written, name):
    task, text = written(name)
    given = parsed_by_ours(train_words(text))
    assert given["recipe"] == "my recipe.py" and given["changes"] == [f"model=./{AWKWARD}", "beta=0.05"]
    assert given["once"] is True and given["resume"] is None
    assert task.name in str(given["runs"]) or task.name in text and str(given["runs"]) == "/job/keep/runs"
    job = JOBS[name]
    several = task.processes > 1
    assert given["launch"] == ((job.launch or "ddp") if several else None)
    assert given["num_processes"] == (task.processes if several else None)
    assert given["num_machines"] == (job.nodes if job.nodes > 1 else None)
    if job.nodes > 1:
        assert given["main_process_ip"] in ("$main", "$(head -n 1 <<< $SKYPILOT_NODE_IPS)")
        assert given["main_process_port"] in (7, PORT)
        assert (given["machine_rank"] == 7) == (job.platform == "sky")


@pytest.mark.parametrize("name", JOBS)
def test_every_shell_script_is_one(written, name, tmp_path):
    task, text = written(name)
    assert text.count("\n") <= 45
    for number, script in enumerate(scripts_of(text)):
        file = tmp_path / f"{number}.sh"
        file.write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}")
        checked = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", JOBS)
def test_shellcheck_finds_nothing(written, name, tmp_path):
    _, text = written(name)
    for script in scripts_of(text):
        file = tmp_path / "script.sh"
        file.write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}")
        # SC2016 is that a single quote keeps a $ from being read, as it is meant to here
        command = [SHELLCHECK, "--exclude=SC2016", str(file)]
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_the_command_of_two_nodes_reaches_each_node_as_it_was_typed(written, tmp_path):
    """The batch script itself, run by bash with stand-ins for what Slurm and the environment would bring."""
    _, text = written("sbatch, two nodes")
    tools = tmp_path / "tools"
    tools.mkdir()
    stand_ins = {
        "scontrol": "printf 'node7\\nnode8\\n'",
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "python3": 'mkdir -p "$3/bin" && cp "$(dirname "$0")/pip" "$(dirname "$0")/dpo-recipes" "$3/bin"',
        "pip": "exit 0",
        "dpo-recipes": 'printf "%s\\0" "$@" > given; printf "%s" "$XDG_CACHE_HOME" > cache',
    }
    for name, body in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "123456"}
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given = parsed_by_ours(Path("given").read_text().split("\0")[:-1])
    assert given["changes"][0] == f"model=./{AWKWARD}"
    assert (given["machine_rank"], given["main_process_ip"]) == (1, "node7")
    assert given["main_process_port"] == 23456
    assert Path(given["runs"]).parent == Path.cwd() / "a b" and Path("cache").read_text() == str(
        Path.cwd() / "a b/cache"
    )


@pytest.mark.parametrize("name", [name for name in JOBS if name.startswith("sbatch")])
def test_the_options_of_sbatch_are_documented_ones_and_open_ones_are_comments(written, name):
    task, text = written(name)
    lines = text.splitlines()
    options = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH ")]
    assert {option.partition("=")[0] for option in options} <= OPTIONS_OF_SBATCH
    assert all(" " not in option for option in options)
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(number for number, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command
    job = JOBS[name]
    assert ("account=me" in options) == (job.account is not None) != ("##SBATCH --account=NAME" in text)
    assert f"nodes={job.nodes}" in options and "requeue" in options and "signal=TERM@600" in options
    times = {"90m": "time=0-01:30:00", "2d": "time=2-00:00:00"}
    assert [option for option in options if option.startswith("time=")] == ([times[job.time]] if job.time else [])
    assert f"gpus-per-node={'h100:' if job.gpu_type else ''}{task.gpus_per_node}" in options


@pytest.mark.parametrize("name", [name for name in JOBS if name.startswith("sky")])
def test_the_keys_of_sky_are_documented_ones(written, name):
    task, text = written(name)
    job = JOBS[name]
    values = yaml.safe_load(text)
    assert values.keys() <= KEYS_OF_SKY[""] and values["resources"].keys() <= KEYS_OF_SKY["resources"]
    [(place, mount)] = values["file_mounts"].items()
    assert mount.keys() <= KEYS_OF_SKY["file_mounts"] and mount["mode"] in MODES_OF_SKY
    assert mount["source"] == job.keep and f"--runs {place}/{task.name}" in values["run"]
    assert values["num_nodes"] == job.nodes and values["workdir"] == "."
    assert values["resources"]["accelerators"] == f"{job.gpu_type}:{task.gpus_per_node}"
    assert ("timeout --foreground --signal=TERM 1430m" in values["run"]) == (job.time is not None)
    assert PACKAGE in values["setup"]


@pytest.mark.parametrize("name", [name for name in JOBS if name.startswith("hf-jobs")])
def test_every_command_of_hf_is_what_its_own_parser_takes(written, name):
    from huggingface_hub.cli.hf import app as hf

    task, text = written(name)
    commands = []
    for script in scripts_of(text):
        outside = re.sub(r"script=\$\(cat <<.*?^END_OF_SCRIPT\n\)", "", script, flags=re.S | re.M)
        for line in outside.replace("\\\n", " ").splitlines():
            if line.startswith("#"):
                continue
            found = re.search(r"(?:^|/|\{ )(hf (?:buckets|jobs) .*)", line)
            if found:
                commands.append(shlex.split(found[1].removesuffix(" > /dev/null; }")))
    verbs = [" ".join(words[1:3]) for words in commands]
    assert sorted(verbs) == sorted(
        ["buckets create", "buckets cp", "buckets cp", "buckets sync", "jobs run", "buckets sync", "buckets sync"]
    )
    parsed = {}
    for words in commands:
        context, command = None, hf
        rest = words[1:]
        while hasattr(command, "get_command") and rest:
            context = command.make_context(rest[0], list(rest), parent=context, resilient_parsing=True)
            command, rest = command.get_command(context, rest[0]), rest[1:]
        parsed[" ".join(words[1:3])] = command.make_context(words[2], list(rest), parent=context).params
    job = parsed["jobs run"]
    assert job["flavor"] == JOBS[name].gpu_type and job["timeout"] == f"{task.minutes}m"
    assert list(job["secrets"]) == ["HF_TOKEN"] and job["detach"]
    assert list(job["command"]) == ["bash", "-c", "$script"]
    assert parsed["buckets create"]["exist_ok"] and parsed["buckets create"]["private"]
    assert f"{task.minutes - 10}m dpo-recipes train" in text


def test_a_run_is_trained_again_with_its_own_changes_and_versions(here):
    """The folder of a finished run, as far as a job reads it."""
    folder = Path("runs/mine-20261122-101500")
    folder.mkdir(parents=True)
    recipe = write_recipe(
        folder / "recipe.py",
        "recipe = Recipe(model='org/m', data=Data('org/d'), adapter=LoRA(r=4))\n",
        "from dpo_recipes import Data, LoRA, Recipe\n",
    )
    from dpo_recipes.recipe.origins import values_with_origins
    from dpo_recipes.recipe.resolve import here as this_device
    from dpo_recipes.recipe.resolve import resolve
    from dpo_recipes.runs.files import write_json

    changed = apply(load(recipe), ["beta=0.3"])
    values = values_with_origins(changed, resolve(changed, this_device())).items()
    write_json(folder / "recipe.json", {key: {"value": value, "origin": origin} for key, (value, origin) in values})
    write_json(folder / "environment.json", {"versions": {"dpo-recipes": "0.0.9", "torch": "2.12.1+cu130"}})
    job = Job("sbatch")
    text = job_file(task_of(Run(folder), (), job), job)
    words = train_words(text)
    assert words[:3] == ["train", f"{folder}/recipe.py", "beta=0.3"]
    assert "torch==2.12.1 " in text.replace("\n", " ") and "--job-name=mine-" in text

"""A run as a job for a cluster or a cloud: what is asked for, what it installs, what must travel, what it trains.

Nothing is submitted here. What each platform's own file looks like stands in `job_files.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from ..data.sources import is_path
from ..errors import RecipeError, UsageError, nearest
from ..planning.engines import ENGINES
from ..recipe.catalogue import SHIPPED, shipped_names
from ..recipe.judges import RewardModel
from ..recipe.recipe import PREPARED, Recipe
from ..recipe.resolve import Device, resolve
from ..runs.environment import installed
from ..runs.folder import Run
from ..runs.rebuilt import assignments, recipe_of
from ..training.engine import refuse_what_it_cannot_train

PLATFORMS = ("sbatch", "sky", "hf-jobs")
KEPT_ELSEWHERE = ("sky", "hf-jobs")  # what a job on these writes, and the files it reads, go through a bucket or copies

TIME = re.compile(r"(\d+)([mhd])")
MINUTES = {"m": 1, "h": 60, "d": 24 * 60}
MINUTES_TO_STOP = 10  # before the time limit: for the step that goes on, its checkpoint, and what is written at the end
LEAST_MINUTES = 30

A_WORD = re.compile(r"[\w.:@-]+")  # what an option of Slurm or a name of a GPU may be, without any quoting
A_BUCKET = re.compile(r"[\w.-]+/[\w.-]+")  # of the hub: who owns it, and its name
ADDRESS_OF_A_BUCKET = re.compile(r"(s3|gs|r2|cos|oci|nebius|https)://\S+")

# What TRL's Trainer needs for zero2 and zero3, where it is not installed here: what the tests of these ran with.
DEEPSPEED = "deepspeed>=0.19,<0.20"


@dataclass(frozen=True)
class Job:
    """Where a run is to go, and what it may use there; the names are those of the command line.

    `keep`: where run folder and caches survive the job: a folder that all nodes see, the address of a bucket for sky,
    `owner/name` of a bucket of the hub. `package`: what pip installs as dpo-recipes; None: as it is installed here.
    """

    platform: str
    nodes: int = 1
    gpus_per_node: int | None = None  # None: one, or what the flavor of hf-jobs has
    gpu_type: str | None = None
    launch: str | None = None
    time: str | None = None  # such as 90m, 24h, 2d
    keep: str | None = None
    account: str | None = None
    partition: str | None = None
    package: str | None = None


class Task(NamedTuple):
    """All that a job file says, whatever the platform."""

    name: str  # of the job, and of the folder that holds its run
    recipe: str  # as `train` is given it
    changes: list[str]
    requirements: list[str]  # what pip installs; a file among them is in `travels` where the job is elsewhere
    travels: list[Path]  # files and folders below this one that the job reads
    engine: str | None  # None: one process
    nodes: int
    gpus_per_node: int
    minutes: int | None

    @property
    def processes(self) -> int:
        return self.nodes * self.gpus_per_node

    def train(self, runs: str, several_machines: str = "") -> str:
        """The line that trains, for a shell. `runs` and `several_machines` are shell words already."""
        words = [shlex.join(["train", self.recipe, *self.changes]), "--runs", runs, "--once"]
        if self.engine is not None:
            words += ["--launch", self.engine, "--num-processes", str(self.processes)]
        if self.nodes > 1:
            words += ["--num-machines", str(self.nodes), several_machines]
        return " ".join(words)

    def in_words(self) -> str:
        """On what it trains, for a comment."""
        gpus = "1 GPU" if self.gpus_per_node == 1 else f"{self.gpus_per_node} GPUs"
        machines = "1 machine" if self.nodes == 1 else f"{self.nodes} machines, each"
        return f"{machines} with {gpus}" + (f", under {self.engine}" if self.engine else "")


def task_of(named: Run | Recipe, changes: Sequence[str], job: Job) -> Task:
    """What the job of a finished run, or of a recipe with `changes`, is to do. UsageError and RecipeError where it
    cannot, as far as that is known here.
    """
    refuse_job(job)
    if isinstance(named, Run):
        recipe = recipe_of(named)
        changes = assignments(named.recipe)
        versions: Mapping[str, str] = named.environment["versions"]
    else:
        recipe = named
        versions = installed()

    gpus = gpus_of(job)
    engine = job.launch
    if engine is None and job.nodes * gpus > 1:
        engine = "ddp"
    _refuse_recipe(recipe, engine, job.nodes * gpus)

    travels = []
    word = _recipe_word(recipe, job)
    if word.endswith(".py"):
        travels.append(Path(word))
    travels += _local_places(recipe, job)
    package = _package(job)
    if os.path.exists(package):
        travels.append(Path(package))
    stem = recipe.name if word.endswith(".py") or word == recipe.name else word
    task = Task(
        name=f"{re.sub(r'[^A-Za-z0-9]+', '-', stem).strip('-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        recipe=word,
        changes=list(changes),
        requirements=[package, *_pins(versions, engine)],
        travels=travels,
        engine=engine,
        nodes=job.nodes,
        gpus_per_node=gpus,
        minutes=minutes_of(job.time),
    )
    for text in (task.recipe, *task.changes, *map(str, travels)):
        if "\n" in text:
            raise RecipeError(f"{text!r} holds a line break, and what a job file says is lines: set it in the recipe.")
    return task


# ---------------------------------------------------------------------------------------------- what is asked for


def refuse_job(job: Job) -> None:
    """UsageError where a job is asked for that its platform cannot have, or where something it needs is missing."""
    if job.platform not in PLATFORMS:
        names = ", ".join(PLATFORMS)
        raise UsageError(f"--to {job.platform} is not one of {names}.{nearest(job.platform, PLATFORMS)}")
    if job.nodes < 1:
        raise UsageError(f"--nodes {job.nodes} is no number of machines: 1, 2, 4 and so on.")
    if job.gpus_per_node is not None and job.gpus_per_node < 1:
        raise UsageError(f"--gpus-per-node {job.gpus_per_node}: a job is for GPUs, 1 or more on each machine.")
    if job.launch is not None and job.launch not in ENGINES:
        names = ", ".join(ENGINES)
        raise UsageError(f"--launch {job.launch} is not one of {names}.{nearest(job.launch, ENGINES)}")
    for option, value in (("account", job.account), ("partition", job.partition), ("gpu-type", job.gpu_type)):
        if value is not None and not A_WORD.fullmatch(value):
            raise UsageError(f"--{option} {value!r} is no name: letters, digits, and any of . : @ _ -")
    if job.platform != "sbatch" and (job.account or job.partition):
        option = "--account" if job.account else "--partition"
        raise UsageError(f"{option} is of Slurm, --to sbatch: {job.platform} knows none.")
    minutes_of(job.time)
    {"sbatch": _refuse_sbatch, "sky": _refuse_sky, "hf-jobs": _refuse_hf_jobs}[job.platform](job)


def _refuse_sbatch(job: Job) -> None:
    if job.keep is not None and "://" in job.keep:
        raise UsageError(f"--keep {job.keep}: on a cluster it is a folder that all nodes see.")


def _refuse_sky(job: Job) -> None:
    if job.gpu_type is None:
        raise UsageError("--to sky: say which GPUs with --gpu-type, such as H100; `sky gpus list` has their names.")
    if job.keep is None or not ADDRESS_OF_A_BUCKET.fullmatch(job.keep):
        given = "" if job.keep is None else f" and not {job.keep}"
        raise UsageError(
            "--to sky: the machines are gone when the job ends. Name the bucket that keeps run and caches, "
            f"--keep s3://NAME or gs://NAME{given}."
        )


def _refuse_hf_jobs(job: Job) -> None:
    if job.nodes > 1:
        raise UsageError(
            f"--nodes {job.nodes}: a job of Hugging Face Jobs is one machine. Jobs of one network group can reach "
            "each other, but nothing starts and ends them together. Take larger hardware, such as --gpu-type h200x8, "
            "or sbatch or sky."
        )
    flavors = _flavors()
    if job.gpu_type not in flavors:
        given = "name the hardware" if job.gpu_type is None else f"{job.gpu_type} is no hardware of theirs. Name it"
        raise UsageError(
            f"--to hf-jobs: {given} with --gpu-type, one of {', '.join(flavors)}.{nearest(job.gpu_type or '', flavors)}"
        )
    if job.gpus_per_node not in (None, flavors[job.gpu_type]):
        raise UsageError(
            f"--gpus-per-node {job.gpus_per_node}: {job.gpu_type} has {flavors[job.gpu_type]}. Leave the option out, "
            "or take another --gpu-type."
        )
    if job.time is None:
        raise UsageError("--to hf-jobs: say how long it may take, such as --time 12h; without, it is ended early.")
    if job.keep is None or not A_BUCKET.fullmatch(bucket_of(job.keep)):
        given = "" if job.keep is None else f" and not {job.keep}"
        raise UsageError(
            "--to hf-jobs: the machine is gone when the job ends. Name the bucket of the hub that keeps run and "
            f"caches, --keep OWNER/NAME{given}. It is made, private, where there is none."
        )


def bucket_of(keep: str) -> str:
    """owner/name of a bucket of the hub, however it was written."""
    return keep.removeprefix("hf://buckets/").strip("/")


def _flavors() -> dict[str, int]:
    """The hardware of Hugging Face Jobs that has GPUs -> how many, as the installed huggingface_hub knows it."""
    from huggingface_hub import JobHardware

    flavors = {}
    for hardware in JobHardware:
        count = re.search(r"x(\d+)$", hardware.value)
        if not hardware.value.startswith("cpu-"):
            flavors[hardware.value] = int(count[1]) if count else 1
    return flavors


def gpus_of(job: Job) -> int:
    """How many GPUs each machine has."""
    if job.platform == "hf-jobs":
        return _flavors()[job.gpu_type or ""]
    return job.gpus_per_node or 1


def minutes_of(time: str | None) -> int | None:
    """A time limit in minutes; None where none is asked for."""
    if time is None:
        return None
    number = TIME.fullmatch(time)
    if number is None:
        raise UsageError(f"--time {time!r} is no time limit. Examples: 90m, 24h, 2d.")
    minutes = int(number[1]) * MINUTES[number[2]]
    if minutes < LEAST_MINUTES:
        raise UsageError(
            f"--time {time}: of a job, {MINUTES_TO_STOP} minutes are kept for the checkpoint at its end. It can be "
            f"{LEAST_MINUTES}m and more."
        )
    return minutes


def _refuse_recipe(recipe: Recipe, engine: str | None, processes: int) -> None:
    """What `train --launch` would refuse on these GPUs."""
    if processes == 1 and engine is not None:
        raise UsageError(
            f"--launch {engine} spreads a run over several GPUs, and this job has one: leave it out, or ask for more "
            "with --gpus-per-node and --nodes."
        )
    if recipe.trl.get("use_cpu"):
        raise UsageError("trl.use_cpu trains on a CPU, and a job is for GPUs: leave it out.")
    resolve(recipe, Device("cuda", bf16=True, processes=processes))  # which raises where the batch does not divide
    if engine is not None:
        if recipe.trl.get("deepspeed"):
            raise UsageError(f"--launch {engine} and trl.deepspeed both choose an engine. Leave one of them out.")
        refuse_what_it_cannot_train(recipe, engine)


# ------------------------------------------------------------------------------------------------- what must travel


def _recipe_word(recipe: Recipe, job: Job) -> str:
    """How `train` is given the recipe there: by its name where it is one of ours, else by its file."""
    if recipe.source is None:
        raise RecipeError("A recipe that is a value in Python has no file that a job could train: write it to one.")
    for name in shipped_names():
        if (SHIPPED / f"{name}.py").read_bytes() == recipe.source.read_bytes() and not Path(f"{name}.py").exists():
            return name
    return _below("The recipe's file", recipe.source, job)


def _local_places(recipe: Recipe, job: Job) -> list[Path]:
    """What the recipe names of this machine, as it names it; RecipeError for what a job elsewhere would not find."""
    data = recipe.data
    names: dict[str, str | None] = {
        "model": recipe.model,
        "reference": recipe.reference,
        "data.path": data.path,
        **{f"data.mix ({name})": name for name in data.mix},
        "data.eval": data.eval if isinstance(data.eval, str) and is_path(data.eval) else None,
        "data.reference": data.reference,
        "data.exclude": data.exclude,
        "adapter.continue_from": recipe.adapter.continue_from if recipe.adapter else None,
        "forgetting": recipe.forgetting,
        "reward": recipe.reward.path if isinstance(recipe.reward, RewardModel) else None,
    }
    places = []
    for key, name in names.items():
        if name is None or PREPARED in name or not (is_path(name) or os.path.exists(name)):
            continue
        if job.platform in KEPT_ELSEWHERE:
            _refuse_what_stays_behind(key, name, job)
        places.append(Path(name))
    return places


def _refuse_what_stays_behind(key: str, name: str, job: Job) -> None:
    if not os.path.exists(name):
        raise RecipeError(f"{key}={name!r}: there is no such file or folder here, for {job.platform} to take along.")
    is_below = not name.startswith(("/", "~")) and Path(name).resolve().is_relative_to(Path.cwd())
    if not is_below:
        raise RecipeError(
            f"{key}={name!r} is a place of this machine, and {job.platform} takes along what lies below this folder. "
            f"Put it there, and name it as it is named from here: {key}={Path(name).name}"
        )


def _below(what: str, file: Path, job: Job) -> str:
    """A file as it is named from this folder. RecipeError where it lies elsewhere and would have to travel."""
    if file.is_relative_to(Path.cwd()):
        return str(file.relative_to(Path.cwd()))
    if job.platform in KEPT_ELSEWHERE:
        raise RecipeError(
            f"{what}, {file}, lies outside of this folder, and {job.platform} takes along what lies below it. Copy it "
            "here."
        )
    return str(file)


# -------------------------------------------------------------------------------------------------- what is installed


def _package(job: Job) -> str:
    """What pip is to install as dpo-recipes: what was asked for, else what is installed here (PEP 610)."""
    if job.package is not None:
        is_here = os.path.exists(job.package)
        if not is_here and not re.search(r"==|://", job.package):
            raise UsageError(
                f"--package {job.package} is neither a file or folder here nor what pip takes, such as "
                "dpo-recipes==1.0 or git+https://HOST/REPOSITORY@COMMIT."
            )
        return _as_a_path(_below("--package", Path(job.package).resolve(), job)) if is_here else job.package

    installed_here = distribution("dpo-recipes")
    direct = json.loads(installed_here.read_text("direct_url.json") or "{}")
    if not direct:
        return f"dpo-recipes=={installed_here.version}"
    if "vcs_info" in direct:
        return f"{direct['vcs_info']['vcs']}+{direct['url']}@{direct['vcs_info']['commit_id']}"
    place = unquote(urlparse(direct["url"]).path)
    if job.platform not in KEPT_ELSEWHERE:
        return place
    raise UsageError(
        f"dpo-recipes is installed from {place} here, which {job.platform} does not see. Make a wheel of it below this "
        f"folder and name that: pip wheel --no-deps -w dist {shlex.quote(place)}, then --package dist/dpo_recipes-"
        f"{installed_here.version}-py3-none-any.whl"
    )


def _as_a_path(place: str) -> str:
    """With a mark by which pip does not take it for the name of a package."""
    return place if place.startswith("/") else f"./{place}"


def _pins(versions: Mapping[str, str], engine: str | None) -> list[str]:
    """The libraries that decide a run's numbers, in these versions; of torch whichever build fits the machine."""
    pins = [f"{name}=={number.split('+')[0]}" for name, number in versions.items() if name != "dpo-recipes"]
    if engine is not None and engine.startswith("zero"):
        try:
            pins.append(f"deepspeed=={version('deepspeed')}")
        except PackageNotFoundError:
            pins.append(DEEPSPEED)
    return pins

"""`export --to`: what is asked for, what travels, what is refused; the files are in test_job_files.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import recipe_for, write_recipe

from dpo_recipes import Data, LoRA, QLoRA, RewardModel, apply, export, load
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.exports import job as jobs
from dpo_recipes.exports.job import DEEPSPEED, Job, minutes_of, task_of

WHEEL = "dist/dpo_recipes-0.1.0-py3-none-any.whl"
SKY = {"gpu_type": "H100", "keep": "s3://mine", "package": "dpo-recipes==0.1.0"}
HUB = {"gpu_type": "a100x4", "keep": "me/mine", "time": "24h", "package": "dpo-recipes==0.1.0"}


@pytest.fixture
def mine(here, pairs_file) -> Path:
    """recipes/mine.py, whose model and pairs lie below the current folder."""
    Path("recipes").mkdir()
    Path("my_model").mkdir()
    Path("my_pairs.jsonl").write_text(pairs_file.read_text())
    return write_recipe(
        Path("recipes/mine.py"),
        "recipe = Recipe(model='./my_model', data=Data('my_pairs.jsonl'), adapter=LoRA(r=4), global_batch_size=16)\n",
        "from dpo_recipes import Data, LoRA, Recipe\n",
    )


def task(name="mine", changes=(), **job):
    asked = Job(**{"platform": "sbatch", **job})
    return task_of(apply(load(name), changes), changes, asked)


def refusal(name="mine", changes=(), **job) -> str:
    with pytest.raises(RecipeError) as refused:
        task(name, changes, **job)
    return str(refused.value)


# ------------------------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"platform": "slurm"}, "--to slurm is not one of sbatch, sky, hf-jobs."),
        ({"platform": "sbtach"}, "Did you mean 'sbatch'?"),
        ({"nodes": 0}, "--nodes 0 is no number of machines"),
        ({"gpus_per_node": 0}, "--gpus-per-node 0: a job is for GPUs"),
        ({"gpus_per_node": 2, "launch": "zero4"}, "--launch zero4 is not one of ddp, fsdp2, zero2, zero3."),
        ({"launch": "ddp"}, "--launch ddp spreads a run over several GPUs, and this job has one"),
        ({"account": "me; rm -rf"}, "--account 'me; rm -rf' is no name"),
        ({"partition": "a b"}, "--partition 'a b' is no name"),
        ({"gpu_type": "a100:8\n#SBATCH"}, "is no name"),
        ({"time": "24"}, "--time '24' is no time limit. Examples: 90m, 24h, 2d."),
        ({"time": "20m"}, "It can be 30m and more."),
        ({"keep": "s3://mine"}, "on a cluster it is a folder that all nodes see"),
        ({"platform": "sky", **SKY, "gpu_type": None}, "say which GPUs with --gpu-type, such as H100"),
        ({"platform": "sky", **SKY, "keep": None}, "Name the bucket that keeps run and caches, --keep s3://NAME"),
        ({"platform": "sky", **SKY, "keep": "jobs"}, "or gs://NAME and not jobs."),
        ({"platform": "sky", **SKY, "account": "me"}, "--account is of Slurm, --to sbatch: sky knows none."),
        ({"platform": "hf-jobs", **HUB, "partition": "gpu"}, "--partition is of Slurm"),
        ({"platform": "hf-jobs", **HUB, "nodes": 2}, "a job of Hugging Face Jobs is one machine"),
        ({"platform": "hf-jobs", **HUB, "gpu_type": "a100"}, "a100 is no hardware of theirs"),
        ({"platform": "hf-jobs", **HUB, "gpu_type": "cpu-xl"}, "cpu-xl is no hardware of theirs"),
        ({"platform": "hf-jobs", **HUB, "gpu_type": None}, "name the hardware with --gpu-type, one of t4-small,"),
        ({"platform": "hf-jobs", **HUB, "gpus_per_node": 8}, "--gpus-per-node 8: a100x4 has 4."),
        ({"platform": "hf-jobs", **HUB, "time": None}, "say how long it may take, such as --time 12h"),
        ({"platform": "hf-jobs", **HUB, "keep": None}, "Name the bucket of the hub that keeps run"),
        ({"platform": "hf-jobs", **HUB, "keep": "s3://mine"}, "--keep OWNER/NAME and not s3://mine."),
        ({"package": "no.whl"}, "--package no.whl is neither a file or folder here nor what pip takes"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_what_can(mine, job, words):
    assert words in refusal(**job)


def test_a_time_limit_is_read_in_minutes_hours_and_days():
    assert [minutes_of(time) for time in (None, "90m", "24h", "2d")] == [None, 90, 1440, 2880]


@pytest.mark.parametrize(
    ("changes", "job", "words"),
    [
        ([], {"gpus_per_node": 5}, "do not divide over 5 processes"),
        (["adapter=qlora"], {"gpus_per_node": 2, "launch": "fsdp2"}, "fsdp2 cannot divide 4-bit weights"),
        (
            ["data.streaming=true", "data.eval=x", "trl.max_steps=5"],
            {"gpus_per_node": 2},
            "A stream of pairs is read in one process",
        ),
        (["trl.use_cpu=true"], {}, "trl.use_cpu trains on a CPU, and a job is for GPUs"),
        (["model=./my_model", "beta=0.1\n"], {}, "holds a line break"),
    ],
)
def test_what_would_stop_on_those_gpus_is_refused_here(mine, changes, job, words):
    assert words in refusal(changes=changes, **job)


# ------------------------------------------------------------------------------------------------ what the job does


def test_several_gpus_are_ddp_unless_another_engine_is_named_and_one_is_none(mine):
    assert task().engine is None and task().processes == 1
    two = task(nodes=2, gpus_per_node=4)
    assert (two.engine, two.processes) == ("ddp", 8)
    assert task(gpus_per_node=4, launch="zero3").engine == "zero3"
    assert task(platform="hf-jobs", **HUB).processes == 4


def test_recipes_of_ours_go_by_name_and_others_by_their_file(mine, here):
    assert task("quickstart").recipe == "quickstart"
    assert task("mine").recipe == task("./recipes/mine.py").recipe == "recipes/mine.py"
    elsewhere = here.parent / "elsewhere.py"
    elsewhere.write_text(mine.read_text())
    assert task(str(elsewhere)).recipe == str(elsewhere)
    words = refusal(str(elsewhere), platform="sky", **SKY)
    assert f"{elsewhere}, lies outside of this folder, and sky takes along what lies below it" in words


def test_a_value_in_python_without_a_file_is_refused():
    with pytest.raises(RecipeError, match="has no file that a job could train"):
        task_of(recipe_for("model"), (), Job("sbatch"))


def test_what_the_recipe_names_here_travels(mine):
    Path("texts.txt").write_text("a text\n")
    Path("ranker").mkdir()
    there = task(changes=["forgetting=texts.txt"], platform="hf-jobs", **HUB)
    assert [str(path) for path in there.travels] == ["recipes/mine.py", "my_model", "my_pairs.jsonl", "texts.txt"]
    recipe = load("mine").evolve(reward=RewardModel("ranker"), adapter=LoRA(continue_from="./an_adapter"))
    with pytest.raises(RecipeError, match=r"adapter.continue_from='./an_adapter': there is no such file"):
        task_of(recipe, (), Job("hf-jobs", **HUB))
    Path("an_adapter").mkdir()
    assert {"an_adapter", "ranker"} <= {str(path) for path in task_of(recipe, (), Job("hf-jobs", **HUB)).travels}


@pytest.mark.parametrize("platform", ["sky", "hf-jobs"])
def test_what_lies_elsewhere_on_this_machine_is_refused_where_it_would_not_travel(mine, here, platform):
    job = {"platform": platform, **(SKY if platform == "sky" else HUB)}
    for place in (here / "my_pairs.jsonl", "../pairs.jsonl"):
        Path(place).write_text("{}\n")
        words = refusal(changes=[f"data.path={place}"], **job)
        assert f"data.path={str(place)!r} is a place of this machine" in words
    assert "there is no such file or folder here" in refusal(changes=["data.path=gone.jsonl"], **job)
    on_the_cluster = task(changes=["data.path=/scratch/pairs.jsonl"])  # which this machine need not see
    assert on_the_cluster.changes == ["data.path=/scratch/pairs.jsonl"]


# ---------------------------------------------------------------------------------------------- what is installed


class Distribution:
    version = "0.1.0"

    def __init__(self, direct_url):
        self.text = direct_url and json.dumps(direct_url)

    def read_text(self, name):
        return self.text if name == "direct_url.json" else None


@pytest.mark.parametrize(
    ("direct_url", "package"),
    [
        (None, "dpo-recipes==0.1.0"),
        (
            {"url": "https://host/it", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "git+https://host/it@abc",
        ),
        ({"url": "file:///a%20b/it", "dir_info": {"editable": True}}, "/a b/it"),
    ],
)
def test_the_package_is_what_is_installed_here(mine, monkeypatch, direct_url, package):
    monkeypatch.setattr(jobs, "distribution", lambda name: Distribution(direct_url))
    assert task().requirements[0] == package


def test_a_checkout_does_not_reach_another_cloud_and_a_wheel_does(mine, monkeypatch):
    monkeypatch.setattr(jobs, "distribution", lambda name: Distribution({"url": "file:///a%20b/it", "dir_info": {}}))
    sky = {"platform": "sky", **SKY, "package": None}
    assert f"pip wheel --no-deps -w dist '/a b/it', then --package {WHEEL}" in refusal(**sky)
    Path("dist").mkdir()
    Path(WHEEL).touch()
    with_wheel = task(**{**sky, "package": WHEEL})
    assert with_wheel.requirements[0] == f"./{WHEEL}" and Path(WHEEL) in with_wheel.travels


def test_versions_are_those_of_here_without_the_build(mine, monkeypatch):
    monkeypatch.setattr(jobs, "installed", lambda: {"dpo-recipes": "0.1.0", "torch": "2.13.0+cpu", "trl": "1.16.0"})
    assert task().requirements[1:] == ["torch==2.13.0", "trl==1.16.0"]
    of_zero = task(gpus_per_node=2, launch="zero2").requirements
    assert of_zero[-1] == DEEPSPEED or of_zero[-1].startswith("deepspeed==")


def test_adapters_of_4_bits_are_trained_under_ddp(mine):
    recipe = load("mine").evolve(adapter=QLoRA(r=4))
    assert task_of(recipe, (), Job("sbatch", gpus_per_node=2)).engine == "ddp"


def test_from_python_the_text_comes_back_and_a_file_is_never_overwritten(mine):
    result = export(load("mine"), job=Job("sbatch"))
    assert result["text"].startswith("#!/bin/bash\n") and result["file"] is None
    again = export("mine", job=Job("sbatch"), out="job.sh", changes=["beta=0.5"])
    assert Path("job.sh").read_text() == again["text"] and "beta=0.5" in again["text"]
    with pytest.raises(UsageError, match="job.sh is there already. Remove it, or name another: --out FILE"):
        export("mine", job=Job("sbatch"), out="job.sh")


def test_hub_ids_do_not_travel(here):
    recipe = apply(load("smollm3_ultrafeedback"), [])
    assert isinstance(recipe.data, Data) and task_of(recipe, (), Job("sky", **SKY)).travels == []

"""`dpo-recipes train --launch`, as it is typed: two processes on a CPU, beside one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dpo_recipes.cli import app
from dpo_recipes.errors import UsageError

FOUR_PAIRS_A_STEP = """
from dpo_recipes import Data, LoRA, Recipe

recipe = Recipe(
    model={model!r},
    data=Data({pairs!r}),
    adapter=LoRA(r=4),
    learning_rate=1e-2,
    global_batch_size=4,
    max_length=112,
    dtype="float32",
    trl={{"max_steps": 4, "lr_scheduler_type": "constant"}},
)
"""


@pytest.fixture
def trained(here, tiny, pairs_file):
    """trained(*arguments) -> (exit code, standard output, standard error) of `dpo-recipes train mine.py ARGUMENTS`."""
    Path("mine.py").write_text(FOUR_PAIRS_A_STEP.format(model=str(tiny()), pairs=str(pairs_file)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(here / "cache")}

    def train(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "dpo_recipes", "train", "mine.py", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    return train


def _steps(run: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[row["loss"], row["grad_norm"], row["logps/chosen"]] for row in rows if "grad_norm" in row]


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_the_main_one_alone_speaks_and_writes(trained, here):
    code, said, errors = trained("--runs", "two", "--launch", "ddp", "--num-processes", "2")
    assert code == 0, errors
    assert errors == "" and said.count("Each pair is read once") == 1
    assert "4 pairs a step = 2 pairs x 1 accumulation x 2 processes under ddp; float32 on cpu." in said

    code, _, errors = trained("--runs", "one")
    assert code == 0, errors
    [two], [one] = (list(Path(runs).iterdir()) for runs in ("two", "one"))
    assert len(_steps(one)) == 4
    for ours, theirs in zip(_steps(two), _steps(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert sorted(file.name for file in two.iterdir()) == sorted(file.name for file in one.iterdir())
    after = [json.loads((run / "evaluation.json").read_text())["after"] for run in (two, one)]
    for name in ("rewards/margins", "kl", "forgetting/kl_per_token"):
        assert after[0][name] == pytest.approx(after[1][name], rel=1e-3, abs=1e-5)


def test_what_belongs_to_launch_is_refused_without_it():
    result = CliRunner().invoke(app, ["train", "quickstart", "--num-processes", "2"])
    assert isinstance(result.exception, UsageError)
    assert "--num-processes belongs to --launch" in str(result.exception)


def test_an_engine_that_needs_gpus_is_refused_on_a_cpu_before_anything_is_loaded():
    result = CliRunner().invoke(app, ["train", "quickstart", "--launch", "fsdp2", "--num-processes", "2"])
    assert "fsdp2 needs GPUs, and this run is on a CPU" in str(result.exception)

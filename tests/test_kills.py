"""A run that is killed, not stopped, goes on by --resume alone; many kills at random moments: kill_runs.py."""

from __future__ import annotations

import json
import os
import signal

import dying
import forking
import pytest
from kill_runs import results_of
from making import make_pairs, quiet, write_jsonl, write_recipe

from dpo_recipes import load, train
from dpo_recipes.runs.checkpoint_folders import step_of, whole_checkpoints

RECIPE = """

recipe = Recipe(model={model!r}, data=Data("pairs.jsonl", eval=0.25), adapter=LoRA(r=4), learning_rate=1e-3,
    global_batch_size=4, max_length=112,
    trl={{"gradient_checkpointing": False, "max_steps": 6, "save_steps": 2, "save_strategy": "steps"}})
"""
# In turn, and what the run says that goes on: the words a stage begins with, and which of these it is
KILLS = [
    (("file reference.json", 1), "begins anew"),  # when half is written of what describes the run
    (("file whole.json", 2), "goes on after step 2."),  # the last of the second checkpoint
]


@pytest.mark.slow
def test_a_run_that_is_killed_time_and_again_ends_as_one_that_never_was(tiny, tmp_path, monkeypatch):
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs())
    write_recipe(tmp_path / "mine.py", RECIPE.format(model=str(tiny())))
    cache = tmp_path / "cache"

    def recipe_trained(*more, dies_in=None):
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "DIES_IN": json.dumps(dies_in)}
        words = ["stages.jsonl", "train", "mine.py", *more]
        return forking.run(dying.command_line, *words, cwd=tmp_path, environment=environment, timeout=600)

    going_on, expected = [], ""
    for (stage, number), next_words in KILLS:
        killed = recipe_trained(*going_on, dies_in=(stage, number, 0.0))
        assert killed.returncode == -signal.SIGKILL and expected in killed.stdout, killed.stderr
        going_on, expected = ["--resume"], next_words
    (run,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in (run / "checkpoints").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert [step_of(path) for path in whole_checkpoints(run / "checkpoints")] == [2]
    done = recipe_trained("--resume")
    assert done.returncode == 0 and expected in done.stdout, done.stderr

    monkeypatch.chdir(tmp_path)
    # A reference that other tests have left was computed in other batches, and differs in the last bit.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    whole = train(load("mine.py"), runs="whole", console=quiet())
    assert results_of(run) == results_of(whole.path)
    assert not list(tmp_path.rglob(".*.tmp"))

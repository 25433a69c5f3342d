"""What a user does, as a user does it: the console command in an empty folder, from a fork to a trained model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forking
import pytest

from dpo_recipes import Run

COMMAND = [sys.executable, "-m", "dpo_recipes"]


def dpo_recipes(*words: str, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [*COMMAND, *words], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1200
    )
    assert result.returncode == code, f"{words}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


@pytest.mark.slow
def test_fork_show_train_and_read_back(tiny, pairs_file, tmp_path):
    assert (
        "recipes/mine.py is yours" in dpo_recipes("new", "mine", "--from", "smollm3_ultrafeedback", cwd=tmp_path).stdout
    )
    forked = tmp_path / "recipes" / "mine.py"
    assert "dpo-recipes train mine" in forked.read_text()
    local = [f"model={tiny()}", f"data.path={pairs_file}", "max_length=112", "trl.max_steps=3", "global_batch_size=8"]
    shown = json.loads(dpo_recipes("show", "mine", *local, "adapter.r=4", "--json", cwd=tmp_path).stdout)
    assert shown["recipe"]["adapter.r"] == {"value": 4, "origin": "command line"}
    assert shown["recipe"]["data.train"] == {"value": "train", "origin": "default"}  # a single file has no other split
    said = dpo_recipes("train", "mine", *local, "adapter.r=4", "--runs", "out", cwd=tmp_path).stdout
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name.startswith("mine-") and f"{Path('out') / folder.name} holds the model" in said
    run = Run(folder)
    assert (folder / "recipe.py").read_text() == forked.read_text()
    assert run.recipe["adapter.r"] == shown["recipe"]["adapter.r"]
    assert len([m for m in run.metrics if "loss" in m]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora", "qlora"])
def test_the_three_ways_to_train_are_one_word_apart(tiny, pairs_file, tmp_path, adapter):
    words = [f"model={tiny()}", f"data.path={pairs_file}", "max_length=112", "trl.max_steps=2", f"adapter={adapter}"]
    command = ["dpo-recipes", "train", "smollm3_ultrafeedback", *words, "learning_rate=1e-4"]
    done = forking.run(forking.command_line, *command, cwd=tmp_path, environment=dict(os.environ), timeout=1200)
    expected = {"none": "all weights", "lora": "LoRA of rank 32", "qlora": "QLoRA of rank 32"}[adapter]
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout and "Reference: " in done.stdout


@pytest.mark.slow
def test_without_a_network_it_ends_at_once_with_both_ways_out(tmp_path):
    start = time.monotonic()
    # An address on this machine where nothing listens stands for a network that is down.
    down = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    said = dpo_recipes("train", "smollm3_ultrafeedback", cwd=tmp_path, code=1, **down).stderr
    assert time.monotonic() - start < 20
    names = ("HuggingFaceTB/SmolLM3-3B", "HuggingFaceH4/ultrafeedback_binarized")
    for words in ("127.0.0.1:9 cannot be reached", *names, "model=/path/to/folder", "data.path=/path/to/pairs.jsonl"):
        assert words in said
    assert len(said.splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_keeps_the_run_folder(tiny, pairs_file, tmp_path):
    words = [
        f"model={tiny()}",
        f"data.path={pairs_file}",
        "max_length=112",
        "trl.max_steps=100000",
        "global_batch_size=8",
    ]
    process = subprocess.Popen(
        [*COMMAND, "train", "smollm3_ultrafeedback", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("runs/*/metrics.jsonl")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    said = ""
    while process.poll() is None and time.monotonic() < deadline + 600:  # Python loses one that arrives in a destructor
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said = process.communicate(timeout=20)[1]
    process.kill()  # does nothing to one that has ended
    said = re.sub(r"Exception ignored in.*?KeyboardInterrupt: \n", "", said, flags=re.DOTALL)  # as it then says itself
    assert process.returncode == 130 and "Stopped." in said and "Traceback" not in said
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "recipe.json").is_file() and not (run / "model").exists()


@pytest.mark.slow
def test_the_documented_ways_to_start_are_the_same_program(tmp_path):
    script = Path(sys.executable).with_name("dpo-recipes")
    by_script = subprocess.run([script, "list", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert by_script.stdout == dpo_recipes("list", "--json", cwd=tmp_path).stdout

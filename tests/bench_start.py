"""What `train quickstart` takes to its first optimiser step, beside a bare TRL script that trains the same.

Run it with `python tests/bench_start.py [turns]`, on Linux. Both start a process of their own, in turns, with the world
of quickstart at hand and our caches filled by a first run; ours is the console command. Prints the CPU and wall seconds
from the start of each process to the end of its first step, the medians, and their ratio.

Both evaluate the held-out pairs before the first step, as a run of ours does to say what has changed after it. TRL's
script tokenises the pairs each time, as it keeps nothing, and computes the reference in the step itself.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = """
import sys
sys.argv = ["dpo-recipes", "train", "quickstart", "trl.logging_steps=1", "--runs", {runs!r}]
from dpo_recipes.cli import main
main()
"""

BARE = """
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

world = {world!r}
trainer = DPOTrainer(
    AutoModelForCausalLM.from_pretrained(world + "/model", dtype="float32"),
    args=DPOConfig(
        {runs!r}, beta={beta}, learning_rate={learning_rate}, max_length={max_length}, num_train_epochs=1,
        per_device_train_batch_size=16, per_device_eval_batch_size=64, gradient_checkpointing=False, logging_steps=1,
        lr_scheduler_type="cosine", save_strategy="no", report_to="none", bf16=False, use_cpu=True, disable_tqdm=True,
    ),
    train_dataset=load_dataset("json", data_files=world + "/pairs/train.jsonl", split="train"),
    eval_dataset=load_dataset("json", data_files=world + "/pairs/eval.jsonl", split="train"),
    processing_class=AutoTokenizer.from_pretrained(world + "/model"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.evaluate()
trainer.train()
"""

# Ahead of both: where the first step ends, what it took is printed and the process ends.
FIRST_STEP = """
import importlib.abc, importlib.machinery, os, resource, sys

def end_of_step(*given):
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print("\\nFIRST STEP", sum(usage.ru_utime + usage.ru_stime for usage in usages), flush=True)
    os._exit(0)

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "transformers.trainer_callback":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def execute_and_watch(module):
            execute(module)
            module.CallbackHandler.on_step_end = end_of_step

        spec.loader.exec_module = execute_and_watch
        return spec

sys.meta_path.insert(0, Watch())
"""


def first_step(code: str, runs: Path) -> tuple[float, float]:
    """(CPU seconds, wall seconds) from the start of a process to the end of its first step."""
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", FIRST_STEP + code], capture_output=True, text=True, cwd=runs, env={**os.environ}
    )
    wall = time.perf_counter() - start
    for line in process.stdout.splitlines():
        if line.startswith("FIRST STEP"):
            return float(line.split()[-1]), wall
    raise SystemExit(process.stdout[-2000:] + process.stderr[-4000:])


def main(turns: int = 3) -> None:
    from rich.console import Console

    from dpo_recipes import load
    from dpo_recipes.training.places import prepared

    recipe = load("quickstart")
    world = str(prepared(recipe, Console()))
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "TRL": []}
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "runs": folder,
            "world": world,
            "beta": recipe.beta,
            "learning_rate": recipe.learning_rate,
            "max_length": recipe.max_length,
        }
        codes = {"ours": OURS.format(**given), "TRL": BARE.format(**given)}
        first_step(codes["ours"], Path(folder))  # which fills the caches
        for turn in range(turns):
            for name, code in codes.items():
                seconds[name].append(first_step(code, Path(folder)))
                cpu, wall = seconds[name][-1]
                print(f"turn {turn + 1}, {name}: CPU {cpu:.2f} s, wall {wall:.1f} s", flush=True)
    for place, kind in enumerate(("CPU", "wall")):
        ours = statistics.median(times[place] for times in seconds["ours"])
        trl = statistics.median(times[place] for times in seconds["TRL"])
        print(f"{kind}: ours {ours:.2f} s, TRL {trl:.2f} s, ratio {ours / trl:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

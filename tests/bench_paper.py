"""The experiment of the DPO paper's figure 2, in the quickstart's world: reward against KL, for losses and betas.

Run it with `python tests/bench_paper.py [betas] [seeds]`, such as `0.5,1,1.5,3,6 42,0`. For each seed one world is
made, and from it one run is trained with each beta by `sigmoid` (DPO), `ipo` and `cdpo`, and one by `sft` on the chosen
answers alone (Preferred-FT; it has no beta). Then a fifth of the labels is turned round, and `sigmoid`, `cdpo` and
`robust` are trained on that, the last two told so. All are measured on the same held-out prompts with the same random
numbers: the reward is the world's own, the KL to the reference that of the whole next-token distributions. Beside each
stands the best reward that any policy could have at that KL, and the share of it that was reached. At the end, what the
best of n answers of the reference has, at a KL of at most log n - (n - 1)/n.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRATCH = tempfile.TemporaryDirectory(prefix="dpo-recipes-bench-")
os.environ |= {"HF_HOME": SCRATCH.name, "XDG_CACHE_HOME": SCRATCH.name, "HF_HUB_OFFLINE": "1"}
os.environ |= {"CUDA_VISIBLE_DEVICES": ""}

FLIPPED = 0.2  # of the labels
NUMBERS_OF_ANSWERS = (2, 4, 8, 16)


def main(betas: str = "0.5,1,1.5,3,6", seeds: str = "42,0") -> None:
    for seed in seeds.split(","):
        world = Path(SCRATCH.name) / f"world-{seed}"
        _make_world(world, int(seed))
        print(f"Seed {seed}, {len(_lines(world / 'pairs/train.jsonl')):,} pairs.", flush=True)
        for loss in ("sigmoid", "ipo", "cdpo"):
            for beta in betas.split(","):
                _train(world, seed, loss, f"loss={loss}", f"beta={beta}")
        _train(world, seed, "sft")

        flipped = _flip(world / "pairs/train.jsonl", int(seed))
        print(f"Seed {seed}, {flipped:,} labels turned round.", flush=True)
        _train(world, seed, "sigmoid", "loss=sigmoid")
        _train(world, seed, "cdpo", "loss=cdpo", f"loss_args.label_smoothing={FLIPPED}")
        _train(world, seed, "robust", "loss=robust", f"trl.label_smoothing={FLIPPED}")
        _say_best_of_n(world, int(seed))


def _make_world(folder: Path, seed: int) -> None:
    from dpo_recipes import toyworld

    folder.mkdir()
    toyworld.make(folder, seed)


def _train(world: Path, seed: str, loss: str, *changes: str) -> None:
    """Train the quickstart with some changes, on what lies in the world's folder, and print a row."""
    from rich.console import Console

    from dpo_recipes import Data, apply, load, train

    quickstart = load("quickstart")
    if loss == "sft":
        quickstart = quickstart.evolve("beta", loss="sft")  # which has none
    recipe = apply(quickstart, [f"seed={seed}", *changes])
    data = Data(str(world / "pairs"), train="train", eval="eval")
    recipe = recipe.evolve("prepare", model=str(world / "model"), data=data)
    run = train(recipe, runs=Path(SCRATCH.name) / "runs", console=Console(quiet=True))
    before, after = run.evaluation["before"], run.evaluation["after"]
    beta = "" if loss == "sft" else f"{recipe.beta:g}"
    row = f"{loss:8} {beta:>5}   reward {before['reward']:+.2f} -> {_shown(after, 'reward')}   KL {_shown(after, 'kl')}"
    best = after.get("best_reward_at_kl")
    if best is not None:
        row += f"   best {best:+.2f}   share {after['reward'] / best:4.0%}"
    print(row, flush=True)


def _shown(numbers: dict[str, Any], name: str) -> str:
    return f"{numbers[name]:+.2f} +- {numbers[f'{name}_stderr']:.2f}"


def _flip(pairs: Path, seed: int) -> int:
    """Turn some labels of a file round. -> how many."""
    draw = random.Random(seed)
    flipped = 0
    lines = []
    for line in _lines(pairs):
        row = json.loads(line)
        if draw.random() < FLIPPED:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            flipped += 1
        lines.append(json.dumps(row) + "\n")
    pairs.write_text("".join(lines), encoding="utf-8")
    return flipped


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _say_best_of_n(world: Path, seed: int) -> None:
    """The reward of the best of n answers that the reference gives to each held-out prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dpo_recipes import toyworld
    from dpo_recipes.models.generate import generate

    model = AutoModelForCausalLM.from_pretrained(world / "model")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    prompts = sorted({json.dumps(json.loads(line)["prompt"]) for line in _lines(world / "pairs/eval.jsonl")})
    questions = [json.loads(prompt) for prompt in prompts]
    most = max(NUMBERS_OF_ANSWERS)
    replies = generate(model, tokenizer, questions, samples=most, max_new_tokens=64, batch_size=256, seed=seed)
    for count in NUMBERS_OF_ANSWERS:
        best = []
        for question, answers in zip(questions, replies, strict=True):
            asked = question[-1]["content"]
            best.append(max(toyworld.reward(asked, answer.text) for answer in answers[:count]))
        kl = math.log(count) - (count - 1) / count
        print(f"best of {count:2}: reward {statistics.fmean(best):+.2f}   KL at most {kl:.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

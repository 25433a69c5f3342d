"""The beta dial of one run beside runs that were really trained with those betas, in the quickstart's world.

Run it with `python tests/bench_dial.py [factors] [seed]`, such as `0.5,1,2 42`. One run of the quickstart is trained
with its own beta, and answers are drawn from it with the dial at each factor; beside each factor another run is
trained with that beta, the run's over the factor. Both are measured on the same held-out prompts with the same random
numbers: the reward is the world's own, and the KL to the reference is that of the whole next-token distributions, which
is exact, summed along the answers. Prints a row for each factor, with standard errors over prompts, and the best reward
that any policy could have at the trained run's KL.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

SCRATCH = tempfile.TemporaryDirectory(prefix="dpo-recipes-bench-")
os.environ |= {"HF_HOME": SCRATCH.name, "XDG_CACHE_HOME": SCRATCH.name, "HF_HUB_OFFLINE": "1"}
os.environ |= {"CUDA_VISIBLE_DEVICES": ""}


def main(factors: str = "0.25,0.5,0.75,1,1.5,2", seed: str = "42") -> None:
    from rich.console import Console

    from dpo_recipes import apply, evaluate, load, train

    quiet = Console(quiet=True)
    runs = Path(SCRATCH.name) / "runs"
    asked = [float(factor) for factor in factors.split(",")]
    first = train(apply(load("quickstart"), [f"seed={seed}"]), runs=runs, console=quiet)
    beta = first.recipe["beta"]["value"]
    print(f"One run with beta {beta:g}, and its dial; beside it runs trained with beta {beta:g} / dial. Seed {seed}.")
    print(f"{'dial':>5} {'beta':>6}   {'dial: reward':>15} {'KL, nats':>14}   {'trained: reward':>15} {'KL, nats':>14}")
    dialled = evaluate(first, dial=asked, to=Path(SCRATCH.name) / "dial", console=quiet)["dial"]
    for row in dialled:
        if row["dial"] == 1:
            trained = first.evaluation["after"]
        else:
            other = apply(load("quickstart"), [f"seed={seed}", f"beta={row['beta']}"])
            trained = train(other, runs=runs, console=quiet).evaluation["after"]
        best = trained.get("best_reward_at_kl")
        print(
            f"{row['dial']:5g} {row['beta']:6.3g}   {_shown(row, 'reward', '+')} {_shown(row, 'kl', ''):>14}   "
            f"{_shown(trained, 'reward', '+')} {_shown(trained, 'kl', ''):>14}"
            + (f"   best {best:+.2f}" if best is not None else "")
        )


def _shown(numbers: dict, name: str, sign: str) -> str:
    return f"{numbers[name]:{sign}.2f} +- {numbers[f'{name}_stderr']:.2f}".rjust(15)


if __name__ == "__main__":
    main(*sys.argv[1:])

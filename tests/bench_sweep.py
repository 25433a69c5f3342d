"""What a sweep of four betas takes: four runs of TRL's own trainer beside four of ours, which share a reference.

Run it with `python tests/bench_sweep.py [lengths] [pairs]`. Both train the same LoRA adapter on the same Llama of 7 M
random weights and the same pairs, of random words in the lengths of `ultrafeedback`, `hh` (unless said otherwise) or
`rag`: one epoch, 4 pairs a step, float32, no checkpointing. TRL computes the reference in each step, as it comes. Runs
take turns. Counted is the processor time of this process from loading the model to the last step, on one thread, and
for ours all that the reference takes: computing and hashing it, and checking what is found in the cache, which is empty
at the start. Prints the seconds of each run and the ratio of the sums.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

SCRATCH = tempfile.TemporaryDirectory(prefix="dpo-recipes-bench-")
os.environ |= {"HF_HOME": SCRATCH.name, "XDG_CACHE_HOME": SCRATCH.name, "HF_HUB_OFFLINE": "1"}
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

BETAS = (0.05, 0.1, 0.2, 0.5)
PAIRS_A_STEP = 4


def main(lengths: str = "hh", count: str = "32") -> None:
    from rich.console import Console

    from dpo_recipes import Data, LoRA, Recipe
    from dpo_recipes.benchmark.bare import BareTrainer
    from dpo_recipes.benchmark.lengths import PROFILES, drawn_pairs
    from dpo_recipes.benchmark.random_models import SIZES, make
    from dpo_recipes.recipe.dpo_arguments import dpo_arguments
    from dpo_recipes.training.session import LOOKS_ONLY, Session

    profile = PROFILES[lengths]
    model = Path(SCRATCH.name) / "model"
    make(SIZES["7M"], model)
    seconds: dict[str, list[float]] = {"TRL": [], "ours": []}
    pairs = drawn_pairs(profile, int(count), SIZES["7M"].vocabulary, seed=0)

    for number, beta in enumerate(BETAS):
        recipe = Recipe(
            model=str(model),
            data=Data("drawn"),
            adapter=LoRA(r=16),
            beta=beta,
            learning_rate=1e-4,
            global_batch_size=PAIRS_A_STEP,
            micro_batch_size=PAIRS_A_STEP,
            max_length=profile.max_length,
            trl={"gradient_checkpointing": False},
        )
        session = Session(recipe, Console(quiet=True), with_pairs=False).on_pairs(pairs, pairs.select(range(1)))
        in_each_step = dpo_arguments(recipe, session.settings, SCRATCH.name) | {"precompute_ref_log_probs": False}
        sides = {"TRL": {"kind": BareTrainer, "options": in_each_step}, "ours": {}}
        for side in list(sides) if number % 2 == 0 else reversed(sides):
            start = time.process_time()
            trainer = session.make_trainer(Path(SCRATCH.name) / "out", [], **sides[side], **LOOKS_ONLY)
            trainer.train()
            seconds[side].append(time.process_time() - start)
            how = getattr(trainer, "reference_cache", {}).get("train", "in each step")
            loss = [log["loss"] for log in trainer.state.log_history if "loss" in log][-1]
            words = f"{seconds[side][-1]:6.1f} s  last loss {loss:.6f}  reference {how}"
            print(f"beta {beta:<5} {side:>4} {words}", flush=True)

    trl, ours = sum(seconds["TRL"]), sum(seconds["ours"])
    print(f"{lengths}, {count} pairs: TRL {trl:.0f} s, ours {ours:.0f} s, ratio {trl / ours:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How well `check --pairs` names pairs, in the quickstart's world with one label in ten flipped on purpose.

Run it with `python tests/bench_suspects.py [seed]`; it takes about five minutes of a CPU core, and says how far it is.
Prints, for the first 5, 10 and 20 % of the pairs by a score: the share of the flipped labels that are among them, and
the share of them that are flipped. Then the same for displacement and the tenth of the pairs whose chosen answer falls
most, per token, in a run on all of them.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from dpo_recipes import apply, load
from dpo_recipes.planning.suspect_pairs import score_pairs, worst
from dpo_recipes.training.session import LOOKS_ONLY, Session


def flip_a_tenth(source: Path, target: Path) -> set[int]:
    """Copy the pairs of a world, one train label in ten turned round; the numbers of those rows."""
    rows = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]
    flipped = set(random.Random(7).sample(range(len(rows)), len(rows) // 10))
    for number in flipped:
        rows[number]["chosen"], rows[number]["rejected"] = rows[number]["rejected"], rows[number]["chosen"]
    (target / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (target / "eval.jsonl").write_text((source / "eval.jsonl").read_text())
    return flipped


def falls_of_chosen(session: Session, folder: Path) -> np.ndarray:
    """Nats per token by which the chosen answer of each train pair falls in a run on all of them."""
    whole = session.on_pairs(session.train, session.train)
    trainer = whole.make_trainer(folder, [], **LOOKS_ONLY)
    _, before = trainer.held_out()
    trainer.train()
    _, after = trainer.held_out()
    return ((before.policy_chosen - after.policy_chosen) / after.chosen_tokens).numpy()


def show(words: str, scores: np.ndarray, is_meant: np.ndarray) -> None:
    for share in (0.05, 0.1, 0.2):
        named = is_meant[worst(scores, share)]
        print(f"{words}, first {share:.0%}: recall {named.sum() / is_meant.sum():.0%}, precision {named.mean():.0%}")


def main(seed: int = 42) -> None:
    recipe = apply(load("quickstart"), [f"seed={seed}"])
    [world] = Session(recipe, Console()).data_paths
    with tempfile.TemporaryDirectory() as folder:
        flipped_rows = flip_a_tenth(Path(world), Path(folder))
        session = Session(replace(recipe, data=replace(recipe.data, path=folder)), Console())
        session.read_pairs()
        is_flipped = np.array([int(row) in flipped_rows for row in session.train["row"]])
        scores = score_pairs(session, Path(folder))
        falls = falls_of_chosen(session, Path(folder))

    show("label", scores.label, is_flipped)
    falls_most = np.zeros(len(falls), dtype=bool)
    falls_most[worst(falls, 0.1)] = True
    show("displacement", scores.displacement, falls_most)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

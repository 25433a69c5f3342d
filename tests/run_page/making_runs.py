"""Run folders as training leaves them, made by hand: no model, no training."""

from __future__ import annotations

import json
from pathlib import Path

SPLIT = {
    "rows": 120,
    "kept": 118,
    "dropped": {"a tie": {"count": 2, "rows": ["file:3", "file:9"]}},
    "tokens": {side: {"p50": 10, "p95": 20, "p99": 30, "max": 40} for side in ("prompt", "chosen", "rejected")},
    "truncated": {"pairs": 1},
    "max_length_keeping_99": 64,
    "longer_chosen": 0.6,
    "pick_longer_accuracy": 0.55,
}
AFTER = {
    "pairs": 100,
    "loss": 0.4,
    "rewards/accuracies": 0.85,
    "rewards/accuracies_interval": [0.767, 0.907],
    "rewards/margins": 1.25,
    "rewards/margins_stderr": 0.1,
    "logps/chosen_change_per_token": -0.01,
    "logps/rejected_change_per_token": -0.2,
    "measures/<b>bold</b>": 0.5,
}
BEFORE = {"pairs": 100, "loss": 0.6931, "rewards/accuracies": 0.5, "rewards/margins": 0.0}
SAMPLE = {
    "prompt": [{"role": "user", "content": "Where is the <lamp>?"}],
    "reference": "It is in the attic. </p></article><script>alert(1)</script>",
    "policy": "It is in the cellar. \x00\x1b[31m & so on",
    "reference_ended": True,
    "policy_ended": False,
}
OBSERVATION = {"step": 40, "rule": "over_fitting", "level": "warning", "seen": "Seen <i>.", "advice": "Do & act."}


def step_row(step: int) -> dict:
    learned = step / 100
    return {
        "step": step,
        "loss": 0.69 - 0.3 * learned,
        "grad_norm": 1.0 + (step % 7) / 7,
        "entropy": 0.9,
        "epoch": learned,
        "mean_token_accuracy": 0.7,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.3,
        "window/pairs": 16.0 * step,
        "window/accuracies": 0.5 + 0.4 * learned,
        "window/margins": learned,
        "window/chosen_change_per_token": -0.01 * learned,
        "window/rejected_change_per_token": -0.2 * learned,
        "window/accuracies_chosen_longer": 0.8,
        "window/accuracies_chosen_shorter": 0.7,
    }


def make_run(folder: Path, steps: int = 100, finished: bool = True, after: dict | None = None, **values) -> Path:
    """A run folder after so many of its 100 steps; `values` are fields of its recipe."""
    folder.mkdir(parents=True)
    recipe = {"model": "my_model", "data.path": "pairs.jsonl", "loss": "sigmoid", "beta": 0.1, "learning_rate": 5e-6}
    recipe |= {"global_batch_size": 16, "seed": 42} | values
    origins = {key: {"value": value, "origin": "recipe file"} for key, value in recipe.items()}
    origins["max_length"] = {"value": 1024, "origin": "default"}
    write(folder / "recipe.json", origins)
    write(folder / "trl.json", {"max_steps": -1, "num_train_epochs": 1.0})
    write(folder / "environment.json", {"versions": {"torch": "2.13.0"}, "python": "3.11.7", "git_commit": None})
    write(folder / "data.json", {"train": SPLIT, "eval": SPLIT | {"kept": 100}, "notes": ["A note."], "text": False})
    write(folder / "reference.json", {"policy": "my_model + LoRA of rank 16", "reference": "the adapter off"})

    rows: list[dict] = [{"step": 0, "eval_loss": 0.6931, "eval_rewards/accuracies": 0.5, "eval_rewards/margins": 0.0}]
    rows += [step_row(step) for step in range(1, steps + 1)]
    if steps >= OBSERVATION["step"]:
        rows.append(OBSERVATION)
    if finished:
        rows.append({"step": steps, "train_runtime": 10.0, "train_loss": 0.5, "epoch": 1.0})
        rows.append({"step": steps, "eval_loss": 0.4, "eval_rewards/accuracies": 0.85, "eval_rewards/margins": 1.25})
        write(folder / "evaluation.json", {"before": BEFORE, "after": AFTER | (after or {})})
        (folder / "samples.jsonl").write_text(json.dumps(SAMPLE) + "\n", encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")

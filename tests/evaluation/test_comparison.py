"""Differences between runs: on the same pairs and prompts where both have them, and what chance leaves of them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from dpo_recipes import Run
from dpo_recipes.evaluation.comparison import run_differences

ACCURACY = "rewards/accuracies"


def write_run(folder: Path, margins: list[float], rewards: list[float], *, prompts=None, beta=0.1, **after) -> Run:
    """A run folder with as many held-out pairs as margins, and as many prompts as rewards."""
    folder.mkdir(parents=True)
    prompts = range(len(margins)) if prompts is None else prompts
    share = sum(margin > 0 for margin in margins) / len(margins)
    numbers = {ACCURACY: share, f"{ACCURACY}_interval": [share - 0.1, share + 0.1], "win_rate": 0.6, **after}
    pairs = []
    for number, (margin, prompt) in enumerate(zip(margins, prompts, strict=True)):
        row = {"row": str(number), "prompt": prompt, "chosen_tokens": 5, "rejected_tokens": 6}
        pairs.append({**row, "chosen_logratio": margin, "rejected_logratio": 0.0})
    samples = []
    for number, reward in enumerate(rewards):
        prompt = [{"role": "user", "content": f"Question {number}"}]
        samples.append({"prompt": prompt, "policy_reward": reward, "win_rate": 0.5 + reward / 10, "kl": 0.1})
    contents = {
        "evaluation.json": json.dumps({"before": numbers, "after": numbers}),
        "data.json": json.dumps({"fingerprint": "a" * 64, "path": "pairs.jsonl"}),
        "recipe.json": json.dumps({"beta": {"value": beta, "origin": "default"}}),
        "pairs.jsonl": "".join(json.dumps(row) + "\n" for row in pairs),
        "samples.jsonl": "".join(json.dumps(row) + "\n" for row in samples),
    }
    for name, text in contents.items():
        (folder / name).write_text(text, "utf-8")
    return Run(folder)


def by_name(run: Run, baseline: Run) -> dict:
    return {each.metric: each for each in run_differences(run, baseline)}


def test_differences_are_taken_pair_by_pair_and_prompt_by_prompt(tmp_path):
    baseline = write_run(tmp_path / "a", [1, -1, -1, 2], [0.0, 1.0, 2.0], reward=1.0)
    run = write_run(tmp_path / "b", [1, 1, -1, 0], [0.5, 1.5, 2.5], reward=1.5)
    found = by_name(run, baseline)
    accuracy = found[ACCURACY]
    assert accuracy.paired and accuracy.size == 4
    assert accuracy.difference == pytest.approx((0 + 1 + 0 - 0.5) / 4)
    assert accuracy.low < 0 < accuracy.high
    # Every prompt gained as much: nothing is left to chance.
    reward = found["reward"]
    assert (reward.difference, reward.low, reward.high, reward.size) == pytest.approx((0.5, 0.5, 0.5, 3))
    assert found["win_rate"].difference == pytest.approx(0.05)


def test_pairs_of_one_prompt_count_as_one_where_they_agree(tmp_path):
    alone = [[(-1) ** number for number in range(40)], [1] * 40]
    several = [[(-1) ** (number // 4) for number in range(40)], [1] * 40]
    prompts = [number // 4 for number in range(40)]
    widths = []
    for name, (margins, others), of_prompts in (("alone", alone, None), ("several", several, prompts)):
        baseline = write_run(tmp_path / name / "a", margins, [0.0], prompts=of_prompts)
        difference = by_name(write_run(tmp_path / name / "b", others, [0.0], prompts=of_prompts), baseline)[ACCURACY]
        assert difference.difference == pytest.approx(0.5)
        widths.append(difference.high - difference.low)
    assert 1.9 < widths[1] / widths[0] < 2.6  # a quarter as many, and Student's t of fewer


def test_other_pairs_are_compared_as_independent_samples(tmp_path):
    baseline = write_run(tmp_path / "a", [1, -1, -1, 2], [0.0], reward=1.0, reward_stderr=0.3)
    run = write_run(tmp_path / "b", [1, 1, -1, 2], [0.0], reward=2.0, reward_stderr=0.4)
    (tmp_path / "b/data.json").write_text(json.dumps({"fingerprint": "b" * 64}), "utf-8")
    (tmp_path / "b/samples.jsonl").unlink()
    found = by_name(run, baseline)
    assert not found[ACCURACY].paired and found[ACCURACY].size is None
    assert found[ACCURACY].difference == pytest.approx(0.25)
    assert found[ACCURACY].high - found[ACCURACY].low == pytest.approx(0.2 * math.sqrt(2))
    assert found["reward"].difference == 1 and found["reward"].high == pytest.approx(1 + 1.959964 * 0.5)
    assert "win_rate" not in found  # no error of it is known


def test_margins_of_different_betas_are_not_compared(tmp_path):
    margins = {"rewards/margins": 1.0, "rewards/margins_stderr": 0.1}
    baseline = write_run(tmp_path / "a", [1, 1], [0.0], **margins)
    assert "rewards/margins" in by_name(write_run(tmp_path / "b", [1, 1], [0.0], **margins), baseline)
    assert "rewards/margins" not in by_name(write_run(tmp_path / "c", [1, 1], [0.0], beta=0.5, **margins), baseline)


@pytest.mark.slow
def test_the_interval_holds_the_truth_in_about_95_of_100_draws(tmp_path):
    """Two policies that rank 60 and 70 % as labelled, with half of the pairs easy for both."""
    draw = random.Random(3)
    hits = 0
    for number in range(200):
        margins: list[list[float]] = [[], []]
        for _ in range(120):
            easy = draw.random() < 0.5
            for side, skill in enumerate((0.6, 0.7)):
                share = 0.9 if easy else 2 * skill - 0.9
                margins[side].append(1.0 if draw.random() < share else -1.0)
        baseline = write_run(tmp_path / f"{number}a", margins[0], [0.0])
        difference = by_name(write_run(tmp_path / f"{number}b", margins[1], [0.0]), baseline)[ACCURACY]
        hits += difference.low <= 0.1 <= difference.high
    assert 180 <= hits <= 198

"""What is held out, whatever the file and the seed; the fingerprint of both sides, and what is nearly on both."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from reading_files import LEAKED, read, refused, save, three


def test_pairs_and_prompts_that_are_nearly_the_same_are_counted(tmp_path):
    rows = [{"prompt": f"What is {i} plus 1?", "chosen": f"It is {i + 1}", "rejected": "Who knows"} for i in range(40)]
    nearly = {"prompt": "what is 3 plus 1", "chosen": "It is 4.", "rejected": "“Who knows…”"}
    other = {"prompt": "What is 3.1 plus 1?", "chosen": "It is 4.1", "rejected": "Who knows"}
    found = read(save(tmp_path / "a.jsonl", [*rows, nearly, other]), eval=save(tmp_path / "b.jsonl", rows[3:4]))
    assert found.report["train"]["dropped"] == {LEAKED: {"count": 1, "rows": ["3"]}}
    assert found.report["near_duplicates"] == {"count": 0, "rows": []}
    assert found.report["near_prompts"] == {"count": 1, "rows": ["0"]}

    again = {**nearly, "chosen": "It is 4 ..."}
    train = save(tmp_path / "c.jsonl", [*rows, nearly, again])
    far = save(tmp_path / "d.jsonl", [{**other, "prompt": "Why?"}])
    report = read(train, eval=far).report
    assert report["near_duplicates"] == {"count": 2, "rows": ["40", "41"]}
    assert report["near_prompts"] == {"count": 0, "rows": []}


@pytest.mark.slow
def test_the_hold_out_is_the_same_for_every_file_and_shares_no_prompt(tmp_path):
    rows = [{"prompt": f"q{i % 25}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(100)]
    first, second = (read(save(tmp_path / name, rows), eval=0.1) for name in ("a.jsonl", "b.parquet"))
    assert first.eval.to_list() == second.eval.to_list()
    assert first.report["fingerprint"] == second.report["fingerprint"]
    trained = {str(row["prompt"]) for row in first.train}
    held_out = {str(row["prompt"]) for row in first.eval}
    assert not trained & held_out and len(trained | held_out) == 25
    assert len(first.eval) == 12  # 10, and the rest of the last prompt's four pairs
    assert first.report["train"] == {"split": "train", "rows": 100, "kept": 88, "dropped": {}, "held_out": 12}
    assert first.report["eval"] == {"split": "0.1 of train", "rows": 12, "kept": 12, "dropped": {}}
    assert len(read(save(tmp_path / "two.jsonl", three(2))).eval) == 1
    same = [{**row, "prompt": "q"} for row in three(5)]
    assert "leaves none to train on" in refused(save(tmp_path / "same.jsonl", same))


@pytest.mark.slow
def test_the_fingerprint_is_of_the_rows_alone(tmp_path):
    path = save(tmp_path / "a.jsonl", three(12))
    code = (
        "import sys; from dpo_recipes.data import preference_dataset as data; "
        "from dpo_recipes.recipe.data import Data; "
        "print(data.read(Data(sys.argv[1]), {sys.argv[1]: 1.0}).report['fingerprint'])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "5", "HF_HOME": str(tmp_path / "elsewhere")}
    other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=env, check=True)
    here = read(path).report["fingerprint"]
    assert other.stdout.strip() == here
    assert read(save(tmp_path / "b.jsonl", [{**row, "extra": 1} for row in three(12)])).report["fingerprint"] == here
    changed = three(12)
    changed[5]["chosen"] += "!"
    assert read(save(tmp_path / "a.jsonl", changed)).report["fingerprint"] != here  # and the old file is not cached


def test_the_row_is_no_part_of_the_fingerprint(tmp_path):
    here = read(save(tmp_path / "a.jsonl", three(12)), eval=0.3).report["fingerprint"]
    broken = [{**three(1)[0], "chosen": ""}, *three(12)]
    assert read(save(tmp_path / "b.jsonl", broken), eval=0.3, max_dropped=0.1).report["fingerprint"] == here


def test_prompts_that_differ_in_case_and_spaces_alone_stay_on_one_side(tmp_path):
    rows = []
    for row in three(30):
        prompt = row["prompt"]
        rows += [row, {**row, "prompt": prompt.upper()}, {**row, "prompt": f"  {prompt}\r\n"}]
    found = read(save(tmp_path / "a.jsonl", rows), eval=0.2)

    def questions(side) -> set[str]:
        return {" ".join(row["prompt"][0]["content"].casefold().split()) for row in side}

    trained, held_out = questions(found.train), questions(found.eval)
    assert trained and held_out and not trained & held_out
    other = save(tmp_path / "b.jsonl", rows[1:2])
    kept = read(save(tmp_path / "c.jsonl", three(30)), eval=other)
    assert kept.report["train"]["dropped"][LEAKED] == {"count": 1, "rows": ["0"]}

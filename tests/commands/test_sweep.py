"""`sweep`: a run for each combination, the reference computed once, what fails beside what does not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dpo_recipes import Recipe, RecipeError, apply, load, sweep
from dpo_recipes.commands.sweep import _numbers
from dpo_recipes.errors import UsageError
from dpo_recipes.result_tables import sweep_table


@pytest.fixture
def recipe(recipe_file) -> Recipe:
    return apply(load(recipe_file), ["trl.max_steps=3", "trl.precompute_ref_log_probs=true"])


def shown(call, *args, **settings) -> tuple[dict, str]:
    console = Console(file=io.StringIO(), width=200)
    result = call(*args, **settings, console=console)
    return result, console.file.getvalue()


@pytest.mark.slow
def test_each_combination_is_trained_once_and_all_stand_in_one_table(recipe, tmp_path):
    result, text = shown(sweep, recipe, ["beta=0.1,0.4", "loss=sigmoid"], to=tmp_path / "all")
    assert [row["name"] for row in result["rows"]] == ["beta=0.1", "beta=0.4"] and result["failed"] == {}
    assert result["rows"][0]["changes"] == "beta=0.1 loss=sigmoid"
    assert "Run 1 of 2: beta=0.1 loss=sigmoid" in text and "Sweep, held out" in text
    for row, beta in zip(result["rows"], (0.1, 0.4), strict=True):
        [path] = row["runs"]
        written = json.loads((Path(path) / "recipe.json").read_text("utf-8"))
        after = json.loads((Path(path) / "evaluation.json").read_text("utf-8"))["after"]
        assert written["beta"] == {"value": beta, "origin": "command line"}
        assert row["reward"]["mean"] == after["reward"]
        assert row["reward"]["low"] < after["reward"] < row["reward"]["high"]
        assert [row["rewards/accuracies"]["low"], row["rewards/accuracies"]["high"]] == (
            after["rewards/accuracies_interval"]
        )
    # The second run found the reference of the first.
    assert "found in the cache" in text.partition("Run 2 of 2")[2]

    # Given again, nothing is trained; of a changed recipe it is refused.
    again, text = shown(sweep, recipe, ["beta=0.1,0.4", "loss=sigmoid"], to=tmp_path / "all")
    assert again == result and text.count("It is done") == 2 and "Trained" not in text
    with pytest.raises(UsageError, match=r"was trained with learning_rate=0\.01, where the recipe has 0\.02 now"):
        sweep(apply(recipe, ["learning_rate=0.02"]), ["beta=0.1,0.4", "loss=sigmoid"], to=tmp_path / "all")


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_the_others_go_on(recipe, tmp_path):
    values = ["max_length=5,112"]
    result, text = shown(sweep, recipe, values, to=tmp_path / "all")
    assert [row["changes"] for row in result["rows"]] == ["max_length=112"]
    assert list(result["failed"]) == ["max_length=5"] and "max_length" in result["failed"]["max_length=5"]
    assert "It failed: " in text and "Failed: max_length=5: " in text
    _, text = shown(sweep, recipe, values, to=tmp_path / "all")
    assert text.count("It is done") == 1 and text.count("It failed: ") == 1  # which is tried again


def test_what_no_recipe_can_have_is_refused_before_anything_is_trained(recipe, tmp_path):
    with pytest.raises(UsageError, match="beta=-1.0 must be a positive"):
        sweep(recipe, ["beta=0.1,-1"], to=tmp_path / "all")
    with pytest.raises(UsageError, match="Did you mean 'beta'"):
        sweep(recipe, ["betta=0.1,1"], to=tmp_path / "all")
    assert not (tmp_path / "all").exists()
    (tmp_path / "all").mkdir()
    (tmp_path / "all/sweep.json").write_text("{", "utf-8")
    with pytest.raises(RecipeError, match=r"sweep\.json is damaged"):
        sweep(recipe, ["beta=0.1,1"], to=tmp_path / "all")


def test_ctrl_c_says_how_to_go_on(recipe, tmp_path, monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpo_recipes.commands.sweep.train", stopped)
    with pytest.raises(KeyboardInterrupt) as error:
        sweep(recipe, ["beta=0.1,1"], to=tmp_path / "all")
    assert error.value.__notes__ == ["The same command trains what is missing."]


class FakeRun:
    def __init__(self, **after):
        self.evaluation = {"after": after}


def test_over_seeds_the_interval_is_of_the_seeds():
    runs = [FakeRun(reward=value, reward_stderr=9.0, kl=0.5) for value in (1.0, 2.0, 3.0)]
    numbers = _numbers(runs)
    half_width = 4.303 / 3**0.5  # Student's t of two degrees of freedom, standard deviation 1
    assert numbers["reward"] == pytest.approx({"mean": 2.0, "low": 2 - half_width, "high": 2 + half_width}, rel=1e-3)
    assert numbers["kl"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert "win_rate" not in numbers
    assert _numbers(runs[:1])["kl"] == {"mean": 0.5, "low": None, "high": None}


def test_the_table_is_in_the_order_of_kl():
    number = {"mean": 0.5, "low": 0.4, "high": 0.6}
    rows = [
        {"name": "beta=0.1", "kl": {**number, "mean": 2.0}, "reward": number},
        {"name": "beta=1", "kl": {"mean": 0.2, "low": None, "high": None}},
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(sweep_table(rows))
    lines = console.file.getvalue().splitlines()
    assert lines[2].split() == ["beta=1", "0.20"]
    assert lines[3].split() == ["beta=0.1", "2.00", "+-0.10", "+0.50", "+-0.10"]

"""Who asks the rules: each is told once, and again where it is worse; levels, and a stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dpo_recipes import Data, Recipe, RecipeError
from dpo_recipes.guard.judge import Judge
from dpo_recipes.recipe.resolve import Device, resolve

FULL = {"window/pairs": 256.0, "window/margins": 1.0, "window/accuracies": 0.8}


class Run:
    """The log of a run of 100 steps, one row after the other."""

    def __init__(self, **changes):
        recipe = Recipe(model="m", data=Data("d"), **changes)
        self.told = []
        self.judge = Judge(recipe, resolve(recipe, Device()), 50, self.told.append)
        self.state = SimpleNamespace(global_step=0, max_steps=0, is_world_process_zero=True)
        self.log(eval_loss=0.69)
        self.state.max_steps = 100
        self.judge.on_train_begin(None, self.state, None)

    def log(self, **logs) -> None:
        self.judge.on_log(None, self.state, None, logs=logs)

    def step(self, chosen: float, **more) -> None:
        """A step after which the chosen side has changed by so many nats per token."""
        self.state.global_step += 1
        changes = {"window/chosen_change_per_token": chosen, "window/rejected_change_per_token": chosen - 0.1}
        self.log(loss=0.5, **FULL, **changes, **more)

    def names(self) -> list[tuple[int, str, str]]:
        return [(told.step, told.rule, told.level) for told in self.told]


def test_a_rule_is_told_once_and_again_where_it_has_become_three_times_as_bad():
    run = Run(rules={"policy_runs_away": "off"})
    for chosen in (0.0, -0.4, -0.5, -0.7, -1.19, -1.21, -3.0, -3.7):
        run.step(chosen)
    assert run.names() == [(k, "chosen_forgotten", "warning") for k in (2, 6, 8)]
    assert run.told == run.judge.observations
    assert run.told[0].sentence().startswith("Warning at step 2, chosen_forgotten: The chosen answers are being")
    assert "sft_weight=0.1" in run.told[0].sentence()


def test_a_recipe_sets_the_level_of_a_rule_or_switches_it_off():
    run = Run(rules={"chosen_forgotten": "note"})
    run.step(-0.4)
    assert run.names() == [(1, "chosen_forgotten", "note")]
    run = Run(rules={"chosen_forgotten": "off"})
    run.step(-0.4)
    assert run.names() == []


def test_at_the_level_stop_a_rule_ends_the_run_and_is_told_before():
    run = Run(rules={"chosen_forgotten": "stop"})
    with pytest.raises(RecipeError, match="^The rule chosen_forgotten stops the run at step 1: The chosen answers"):
        run.step(-0.4)
    assert run.names() == [(1, "chosen_forgotten", "stop")]

    run = Run(rules={"chosen_forgotten": "stop"})
    run.state.global_step = 99
    run.step(-0.4)  # the last one: what is trained is trained
    assert run.names() == [(100, "chosen_forgotten", "stop")]


def test_a_rule_of_ones_own_is_told_at_its_level_and_again_at_a_higher_one():
    def falls(rows, run):
        lost = -rows[-1].get("window/chosen_change_per_token", 0)
        if lost > 0.2:
            return "stop", f"Lost {lost:.2f} of {run.steps} steps."
        if lost > 0.1:
            return "note", "A little."
        if lost > 0.05:
            return "Hm."
        return None

    run = Run(rules={"falls": falls, "rejected_falls": "off", "chosen_forgotten": "off"})
    for chosen in (0.0, -0.15, -0.16, -0.06, -0.07):
        run.step(chosen)
    assert run.names() == [(2, "falls", "note"), (4, "falls", "warning")]
    with pytest.raises(RecipeError, match=r"^The rule falls stops the run at step 6: Lost 0.25 of 100 steps\.$"):
        run.step(-0.25)


def test_a_mistake_in_a_rule_of_ones_own_is_told_and_the_run_goes_on():
    def broken(rows, run):
        return rows[-1]["no such number"]

    run = Run(rules={"broken": broken})
    for _ in range(3):
        run.step(0.0)
    assert run.names() == [(1, "broken", "warning")]
    assert "rules['broken'] failed: " in run.told[0].seen and "It is not asked again." in run.told[0].seen


def test_rows_of_before_training_are_kept_and_nothing_is_said_of_them():
    seen = []
    run = Run(rules={"look": lambda rows, known: seen.append([row["step"] for row in rows])})
    run.step(0.0)
    assert seen == [[0, 1]] and run.names() == []


def test_another_process_than_the_first_says_nothing():
    run = Run()
    run.state.is_world_process_zero = False
    run.step(-2.0)
    assert run.names() == []

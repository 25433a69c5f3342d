"""A recipe's own rules, tried before training: what cannot work is known by then."""

from __future__ import annotations

import pytest

from dpo_recipes import Data, Recipe
from dpo_recipes.errors import Finding, UsageError
from dpo_recipes.guard.own_rules import rule_findings


def findings(**rules) -> list[Finding]:
    return rule_findings(Recipe(model="m", data=Data("d"), rules=rules))


def margin_is_negative(rows, run):
    """To copy for a rule of one's own: silent of a healthy row, and a sentence of another."""
    if rows[-1].get("eval_rewards/margins", 0) < 0 and rows[-1]["step"] > run.steps / 2:
        return "stop", "The held-out margin is negative after half of the run."
    return None


def test_example_of_a_rule_of_ones_own():
    assert [finding.level for finding in findings(margin=margin_is_negative)] == ["pass"]
    run = type("Run", (), {"steps": 10})
    assert margin_is_negative([{"step": 6, "eval_rewards/margins": -0.1}], run)[0] == "stop"


def test_rules_of_the_guard_are_not_tried():
    assert findings(over_fitting="off") == []


@pytest.mark.parametrize(
    ("rule", "level", "words"),
    [
        (lambda rows, run: rows[-1]["loss"] and None, "fail", "Rows differ: a step has no numbers of an evaluation"),
        (lambda rows, run: 1 / 0, "fail", "rules['mine'] failed: "),
        (lambda rows, run: True, "fail", "must return None, a sentence, or a level and a sentence"),
        (lambda rows, run: ("fatal", "x"), "fail", "and returned ('fatal', 'x'). The levels are note, warning, stop."),
        (lambda rows, run: "  ", "fail", "must return None, a sentence"),
        (
            lambda rows, run: "Bad.",
            "warn",
            "It says warning of the first rows of a run in which nothing is wrong: Bad.",
        ),
        (lambda rows, run: print("x"), "warn", "It prints, and is asked at every log."),
        (lambda rows, run: None, "pass", "has nothing to say"),
    ],
)
def test_a_rule_is_asked_about_the_first_rows_of_a_healthy_run(rule, level, words):
    [finding] = findings(mine=rule)
    assert finding.level == level and finding.name == "rule mine"
    assert words in finding.text


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"over_fiting": "off"}, "there is no such rule. Did you mean 'over_fitting'? Known: chosen_forgotten, "),
        ({"over_fitting": "warn"}, "must be one of off, note, warning, stop. Did you mean 'warning'?"),
        ({"over_fitting": margin_is_negative}, "the guard has a rule of that name. Give your function another one."),
        ({"mine": lambda rows: None}, "rules['mine'](rows, run): too many positional arguments."),
        ({" ": margin_is_negative}, "Choose one that can be read."),
        ({"over_fitting": 1}, "must be a dict"),
    ],
)
def test_what_cannot_be_a_rule_is_refused_with_the_recipe(rules, message):
    with pytest.raises(UsageError) as error:
        Recipe(model="m", data=Data("d"), rules=rules)
    assert message in str(error.value)

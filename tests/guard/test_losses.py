"""A recipe's own losses in the kit: what stops, what is only said, and what stands beside another loss."""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from dpo_recipes import Data, Recipe
from dpo_recipes.guard.losses import loss_findings


def findings(**changes) -> list[tuple[str, str]]:
    """(level, text) of each plugin loss."""
    return [(found.level, found.text) for found in loss_findings(Recipe(model="m", data=Data("d"), **changes))]


def right(pairs, *, beta):
    return -logsigmoid(beta * pairs.h)


def backwards(pairs, *, beta):
    return -logsigmoid(-beta * pairs.h)


def held(pairs, *, beta):
    return pairs.chosen_logratios**2


def without_beta(pairs, *, beta, delta=1.0):
    return (delta - pairs.h).clamp(min=0)


def test_a_right_loss_passes_and_losses_of_trl_are_not_asked():
    assert findings(loss={right: 1.0, "sft": 0.1}) == [("pass", "passes the conformance kit")]
    assert findings(loss="sigmoid") == []


def test_a_broken_part_stops_the_mix():
    [fine, broken] = findings(loss={right: 1.0, backwards: 2.0})
    assert fine[0] == "pass"
    assert broken[0] == "fail" and broken[1].startswith("it prefers the rejected side: ")


def test_what_restrains_another_loss_is_said_and_alone_it_stops():
    [(level, text)] = findings(loss={"sigmoid": 1.0, held: 0.1})
    assert level == "warn" and "its gradient is 0 where policy and reference agree" in text
    assert findings(loss=held)[0][0] == "fail"


def test_a_beta_that_was_given_and_is_not_read_is_said():
    assert findings(loss=without_beta) == [("pass", "passes the conformance kit")]
    text = "beta=0.3 does nothing in it, and only scales the rewards that are logged."
    assert findings(loss=without_beta, beta=0.3) == [("warn", text)]


def test_the_recipes_own_numbers_are_asked():
    assert findings(loss=without_beta, loss_args={"delta": 2.0})[0][0] == "pass"
    [(level, text)] = findings(loss=without_beta, loss_args={"delta": -1e6})
    assert level == "fail" and "its gradient is 0: no pair teaches anything." in text

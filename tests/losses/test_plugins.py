"""The plugin losses against independent float64 formulas and against the code of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from making import make_random_pair_logps
from torch.nn.functional import logsigmoid

from dpo_recipes.losses.conformance import conformance
from dpo_recipes.losses.pair_logps import PairLogps
from dpo_recipes.losses.plugins import PLUGIN_LOSSES
from dpo_recipes.losses.selection import at_start

# Each loss once more, in math-module float64, from its paper: h is the difference of log-ratios, policy_h the policy's.


def log_sigmoid(x: float) -> float:
    if x > 0:
        return -math.log1p(math.exp(-x))
    return x - math.log1p(math.exp(x))


def cdpo_formula(h, beta, policy_h, label_smoothing=0.1):
    return -(1 - label_smoothing) * log_sigmoid(beta * h) - label_smoothing * log_sigmoid(-beta * h)


def ipo_sum_formula(h, beta, policy_h):
    return (h - 0.5 / beta) ** 2


def reference_free_formula(h, beta, policy_h):
    return math.log1p(math.exp(-beta * policy_h))


FORMULAS = {
    "cdpo": cdpo_formula,
    "ipo_sum": ipo_sum_formula,
    "reference_free": reference_free_formula,
}


def test_every_loss_of_the_table_has_a_formula_here():
    assert FORMULAS.keys() == PLUGIN_LOSSES.keys(), "add the formula of each plugin loss to FORMULAS"


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", PLUGIN_LOSSES)
def test_a_loss_of_the_table_keeps_every_rule_of_the_kit(name, beta):
    assert conformance(PLUGIN_LOSSES[name], beta=beta, formula=FORMULAS[name]) == []


@pytest.mark.parametrize("label_smoothing", [0.0, 0.01, 0.3, 0.49])
def test_cdpo_at_other_label_smoothings(label_smoothing):
    assert conformance(PLUGIN_LOSSES["cdpo"], formula=cdpo_formula, label_smoothing=label_smoothing) == []


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.3])
def test_cdpo_is_what_trl_computed_until_0_28(label_smoothing):
    """TRL 0.28, loss_type="sigmoid" with label_smoothing."""
    beta, pairs = 0.1, make_random_pair_logps()
    logits = (pairs.policy_chosen - pairs.policy_rejected) - (pairs.reference_chosen - pairs.reference_rejected)
    kept = -logsigmoid(beta * logits) * (1 - label_smoothing)
    flipped = -logsigmoid(-beta * logits) * label_smoothing
    ours = PLUGIN_LOSSES["cdpo"](pairs, beta=beta, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, kept + flipped, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("e", [0.0, 0.1, 0.3])
def test_cdpo_is_a_mix_of_two_losses_of_trl_today(e):
    """Today's `sigmoid` and `robust` hold both halves of it; e is the label smoothing."""
    beta, pairs = 0.1, make_random_pair_logps()
    sigmoid = torch.tensor([-log_sigmoid(beta * h) for h in pairs.h.tolist()])
    of_flipped_labels = torch.tensor([-log_sigmoid(-beta * h) for h in pairs.h.tolist()])
    robust = ((1 - e) * sigmoid - e * of_flipped_labels) / (1 - 2 * e)

    mix = 2 * (1 - e) * sigmoid.double() - (1 - 2 * e) * robust.double()
    ours = PLUGIN_LOSSES["cdpo"](pairs, beta=beta, label_smoothing=e)
    torch.testing.assert_close(ours, mix, rtol=1e-5, atol=1e-5)


def reference_implementation(pairs: PairLogps, *, beta: float, ipo: bool, reference_free: bool) -> torch.Tensor:
    """`preference_loss` of the DPO paper's authors, from its equations: eq. 7 of DPO, eq. 17 of IPO."""
    logits = pairs.policy_chosen - pairs.policy_rejected
    if not reference_free:
        logits = logits - (pairs.reference_chosen - pairs.reference_rejected)
    if ipo:
        return (logits - 1 / (2 * beta)) ** 2
    return -logsigmoid(beta * logits)


@pytest.mark.parametrize(
    ("name", "ipo", "reference_free"),
    [
        ("ipo_sum", True, False),
        ("reference_free", False, True),
    ],
)
def test_ipo_sum_and_reference_free_are_the_reference_implementations(name, ipo, reference_free):
    pairs = make_random_pair_logps()
    expected = reference_implementation(pairs, beta=0.25, ipo=ipo, reference_free=reference_free)
    torch.testing.assert_close(PLUGIN_LOSSES[name](pairs, beta=0.25), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "beta", "numbers", "value"),
    [
        ("cdpo", 0.1, {}, 0.6931471805599453),
        ("cdpo", 3.0, {"label_smoothing": 0.4}, 0.6931471805599453),
        ("ipo_sum", 0.1, {}, 25.0),
        ("ipo_sum", 0.5, {}, 1.0),
    ],
)
def test_declared_start_values(name, beta, numbers, value):
    assert math.isclose(at_start(PLUGIN_LOSSES[name], beta, numbers), value)


def test_a_loss_without_a_reference_declares_no_start_value():
    assert at_start(PLUGIN_LOSSES["reference_free"], 0.1, {}) is None

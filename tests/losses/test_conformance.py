"""The kit that checks any loss names the rule that is broken, and passes what is right."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from dpo_recipes.losses.conformance import conformance


def right(pairs, *, beta):
    return -logsigmoid(beta * pairs.h)


def right_formula(h, beta, policy_h):
    return math.log1p(math.exp(-beta * h))


# --- functions that break one rule each


def positional(pairs, beta):
    return right(pairs, beta=beta)


def anything(pairs, *, beta, **rest):
    return right(pairs, beta=beta)


def mean(pairs, *, beta):
    return right(pairs, beta=beta).mean()


def overflowing(pairs, *, beta):
    return torch.exp(-beta * pairs.h)


def steep(pairs, *, beta):
    return torch.exp(-beta * pairs.h).clamp(max=10)  # its gradient is 0 * inf


def rank(pairs, *, beta):
    return right(pairs, beta=beta) * torch.arange(1, len(pairs.h) + 1)


def centred(pairs, *, beta):
    return right(pairs, beta=beta) * torch.exp(-pairs.h.std().clamp(max=1) / len(pairs.h))


def backwards(pairs, *, beta):
    return right(pairs, beta=-beta)


def detached(pairs, *, beta):
    return right(pairs.map(torch.Tensor.detach), beta=beta)


def lifting(pairs, *, beta):
    return -logsigmoid(beta * (pairs.chosen_logratios + pairs.rejected_logratios))


def misdeclared(pairs, *, beta):
    return 2 * right(pairs, beta=beta)


def ln2(beta):
    return math.log(2)


misdeclared.at_start = ln2


def raising(pairs, *, beta):
    return pairs.policy_logratios


def listed(pairs, *, beta):
    return [0.0] * 64


BROKEN = {
    positional: "The loss positional(pairs, beta) must be written `def name(pairs, *, beta, ...)`",
    anything: "The loss anything(pairs, *, beta, **rest) must be",
    mean: "the result has shape (), not (pairs,) = (64,)",
    overflowing: "not finite at margins of -1e4, 1e4 and 1 nats: [inf,",
    steep: "its gradient is not finite",
    rank: "the order of the pairs changes their losses",
    centred: "the micro-batch split changes the losses: a pair must not depend on its neighbours",
    backwards: "a step down its gradient does not raise the chosen log-probability",
    detached: "a step down its gradient does not raise the chosen log-probability",
    lifting: "a step down its gradient raises the rejected log-probability",
    misdeclared: "declared 0.6931471805599453 where policy and reference agree, but it is 1.38629",
    raising: "it fails: AttributeError: 'PairLogps' object has no attribute 'policy_logratios'",
    listed: "it fails: AttributeError: 'list' object has no attribute 'shape'",
    max: "The loss max() must be written",
}


@pytest.mark.parametrize("loss", BROKEN, ids=lambda loss: loss.__name__)
def test_the_kit_names_the_broken_rule(loss):
    sentences = conformance(loss)
    assert any(BROKEN[loss] in sentence for sentence in sentences), sentences


def test_the_kit_names_a_value_that_is_not_the_formulas():
    def slightly_more(h, beta, policy_h):
        return 1.001 * right_formula(h, beta, policy_h)

    [sentence] = conformance(right, formula=slightly_more)
    assert sentence.startswith("differs from the formula by ")


def test_a_loss_that_is_nan_differs_from_its_formula():
    def nan_above_ten(pairs, *, beta):
        return right(pairs, beta=beta).where(pairs.h < 10, math.nan)

    assert any(
        sentence.startswith("differs from the formula")
        for sentence in conformance(nan_above_ten, formula=right_formula)
    )


def test_the_kit_passes_a_right_loss():
    assert conformance(right, formula=right_formula) == []


def test_the_kit_passes_a_number_on_and_says_that_a_loss_does_not_take_it():
    assert "unexpected keyword argument 'gap'" in conformance(right, gap=1.0)[0]


def test_the_kit_compares_the_declared_start_with_the_numbers_that_are_given():
    def margin(pairs, *, beta, gap=2.0):
        return torch.relu(gap - beta * pairs.h)

    def gap_itself(beta, gap):
        return gap

    margin.at_start = gap_itself
    assert conformance(margin) == []
    assert conformance(margin, gap=5.0) == []


def test_a_formula_may_read_the_log_ratio_of_one_side():
    """As DPO-positive does (2402.13228, eq. 3), which also keeps the chosen side from falling."""

    def dpop(pairs, *, beta, weight=5.0):
        from torch.nn.functional import logsigmoid, relu

        return -logsigmoid(beta * (pairs.h - weight * relu(-pairs.chosen_logratios)))

    def dpop_formula(h, chosen_logratio, beta, weight=5.0):
        margin = beta * (h - weight * max(0.0, -chosen_logratio))
        return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))

    assert conformance(dpop, formula=dpop_formula) == []
    assert conformance(dpop, formula=lambda h, beta: 0.0) != []

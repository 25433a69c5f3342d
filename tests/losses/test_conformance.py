"""The kit that checks any loss names the rule that is broken, and passes what is right."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from dpo_recipes.losses.conformance import breaches, conformance


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


def nan_above_ten(pairs, *, beta):
    return right(pairs, beta=beta).where(pairs.h < 10, math.nan)


def square_root(pairs, *, beta):
    return right(pairs, beta=beta) + pairs.h.abs().sqrt()


def squeezed(pairs, *, beta):
    return right(pairs, beta=beta).squeeze()


def dividing_in_place(pairs, *, beta):
    pairs.policy_chosen.div_(pairs.chosen_tokens)
    return right(pairs, beta=beta)


calls_of_counting: list[int] = []


def counting(pairs, *, beta):
    calls_of_counting.append(1)
    return right(pairs, beta=beta) / len(calls_of_counting)


def ranks(pairs, *, beta):
    return (pairs.h < 0).long()


def constant(pairs, *, beta):
    return 0 * pairs.h + 1


def forgetful(pairs, *, beta):
    right(pairs, beta=beta)


def badly_declared(pairs, *, beta):
    return right(pairs, beta=beta)


badly_declared.at_start = 0.693


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
    backwards: "it prefers the rejected side",
    detached: "its result is cut off from the policy",
    lifting: "it does not tell chosen from rejected",
    misdeclared: "declared 0.6931471805599453 where policy and reference agree, but it is 1.38629",
    raising: "it fails: AttributeError: 'PairLogps' object has no attribute 'policy_logratios'",
    listed: "it returns a list, not a tensor of shape (pairs,)",
    nan_above_ten: "it is not finite at ordinary margins: nan",
    square_root: "its gradient is not finite where policy and reference agree",
    squeezed: "of one pair alone, the result has shape ()",
    dividing_in_place: "it changes pairs.policy_chosen in place",
    counting: "the same pairs have other losses when they are asked for again",
    ranks: "the result is int64, which has no gradient",
    constant: "its gradient is 0: no pair teaches anything",
    forgetful: "it returns None, not a tensor",
    badly_declared: "its at_start must be a function of beta and the loss's own numbers",
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


# --- the wrong way round, which trains to an accuracy of 0


def wrong_sign(pairs, *, beta):
    return logsigmoid(beta * pairs.h)


def wrong_target(pairs, *, beta):
    return (pairs.h + 1 / (2 * beta)) ** 2


def wrong_square(pairs, *, beta):
    return -((pairs.h - 1 / (2 * beta)) ** 2)


def wrong_without_a_reference(pairs, *, beta):
    return (pairs.policy_chosen - pairs.policy_rejected + 1 / (2 * beta)) ** 2


def wrong_per_token(pairs, *, beta):
    chosen, rejected = pairs.policy_chosen / pairs.chosen_tokens, pairs.policy_rejected / pairs.rejected_tokens
    return -logsigmoid(beta * (rejected - chosen) - 1)


def wrong_side_alone(pairs, *, beta):
    return -pairs.policy_rejected


WRONG = [wrong_sign, wrong_target, wrong_square, wrong_without_a_reference, wrong_per_token, wrong_side_alone]


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.5])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("loss", WRONG, ids=lambda loss: loss.__name__)
def test_a_loss_the_wrong_way_round_stops_also_as_a_part_of_a_mix(loss, alone, beta):
    [breach] = breaches(loss, beta, {}, alone=alone)
    assert breach.stops and "it prefers the rejected side" in breach.sentence


# --- what the kit leaves as it was


def test_the_kit_draws_no_random_number_of_the_run_and_prints_nothing(capsys):
    def talking(pairs, *, beta):
        print("called")
        return right(pairs, beta=beta) * (torch.rand_like(pairs.h) < 0.9)

    torch.manual_seed(1)
    undisturbed = torch.rand(3)
    torch.manual_seed(1)
    conformance(talking)
    assert torch.equal(torch.rand(3), undisturbed)
    assert capsys.readouterr().out == ""


def test_a_start_that_is_declared_with_a_few_digits_is_no_stop():
    def rounded(pairs, *, beta):
        return right(pairs, beta=beta)

    rounded.at_start = lambda beta: 0.693
    [breach] = breaches(rounded, 0.1, {})
    assert not breach.stops
    rounded.at_start = lambda beta: 0.68
    assert breaches(rounded, 0.1, {})[0].stops


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

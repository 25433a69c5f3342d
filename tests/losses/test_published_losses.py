"""Losses from papers, written as plugins: the kit refuses none of them, and advises only where it should."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid, relu

from dpo_recipes.losses.conformance import breaches, reads_beta


def per_token(pairs):
    return pairs.policy_chosen / pairs.chosen_tokens, pairs.policy_rejected / pairs.rejected_tokens


# --- what breaks no rule


def simpo(pairs, *, beta, gamma=1.0):
    """2405.14734: without a reference, per token, with a target margin."""
    chosen, rejected = per_token(pairs)
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo(pairs, *, beta):
    """2403.07691: likelihood of the chosen side and odds; beta is its lambda."""
    chosen, rejected = per_token(pairs)
    log_odds = chosen - rejected - torch.log1p(-chosen.exp()) + torch.log1p(-rejected.exp())
    return -chosen - beta * logsigmoid(log_odds)


def dpop(pairs, *, beta, penalty=50.0):
    """2402.13228: DPO-positive."""
    return -logsigmoid(beta * (pairs.h - penalty * relu(-pairs.chosen_logratios)))


def tdpo(pairs, *, beta, alpha=0.5):
    """After 2404.11999, with whole log-ratios in place of its sums of KL."""
    return -logsigmoid(beta * (pairs.h - alpha * (pairs.rejected_logratios - pairs.chosen_logratios.detach())))


def cpo(pairs, *, beta):
    """2401.08417: no reference, and the likelihood of the chosen side."""
    return -logsigmoid(beta * (pairs.policy_chosen - pairs.policy_rejected)) - pairs.policy_chosen


def kto_pair(pairs, *, beta):
    """2402.01306, of both sides of a pair, with its reference point at 0."""
    return 2 - torch.sigmoid(beta * pairs.chosen_logratios) - torch.sigmoid(-beta * pairs.rejected_logratios)


def beta_dpo(pairs, *, beta, alpha=0.6):
    """2407.08639, of each pair alone."""
    own_beta = (beta * (1 + alpha * beta * pairs.h.detach())).clamp(min=1e-3)
    return -logsigmoid(own_beta * pairs.h)


def ipo(pairs, *, beta):
    """2310.12036"""
    return (pairs.h - 1 / (2 * beta)) ** 2


def hinge(pairs, *, beta):
    """2309.06657: zero where the margin is large enough."""
    return relu(1 - beta * pairs.h)


def slic(pairs, *, beta, delta=1.0):
    """2305.10425: as many pairs are content with their margin at the start as are not."""
    return relu(delta - beta * (pairs.policy_chosen - pairs.policy_rejected))


def robust(pairs, *, beta, flipped=0.1):
    """2403.00409"""
    as_labelled, otherwise = -logsigmoid(beta * pairs.h), -logsigmoid(-beta * pairs.h)
    return ((1 - flipped) * as_labelled - flipped * otherwise) / (1 - 2 * flipped)


def exo(pairs, *, beta, smoothing=1e-3):
    """2402.00856"""
    x = beta * pairs.h
    as_labelled = torch.sigmoid(x) * (logsigmoid(x) - math.log(1 - smoothing))
    return as_labelled + torch.sigmoid(-x) * (logsigmoid(-x) - math.log(smoothing))


def length_controlled(pairs, *, beta, alpha=0.01):
    """2403.19159: R-DPO."""
    return -logsigmoid(beta * pairs.h - alpha * (pairs.chosen_tokens - pairs.rejected_tokens))


def weighted(pairs, *, beta):
    """After 2406.11827: WPO."""
    chosen, rejected = per_token(pairs)
    return -(chosen + rejected).exp().detach() * logsigmoid(beta * pairs.h)


def likelihood(pairs, *, beta):
    """Plain likelihood of the chosen side, per token."""
    return -pairs.policy_chosen / pairs.chosen_tokens


def sppo(pairs, *, beta):
    """2405.00675"""
    return (pairs.chosen_logratios - 0.5 / beta) ** 2 + (pairs.rejected_logratios + 0.5 / beta) ** 2


def nca(pairs, *, beta):
    """2402.05369"""
    chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def in_float32(pairs, *, beta):
    return -logsigmoid(beta * pairs.h.float())


HEALTHY = [
    simpo,
    orpo,
    dpop,
    tdpo,
    cpo,
    kto_pair,
    beta_dpo,
    ipo,
    hinge,
    slic,
    robust,
    exo,
    length_controlled,
    weighted,
    likelihood,
    sppo,
    nca,
    in_float32,
]


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.5])
@pytest.mark.parametrize("loss", HEALTHY, ids=lambda loss: loss.__name__)
def test_a_published_loss_breaks_no_rule(loss, beta):
    assert breaches(loss, beta, {}) == []


# --- what breaks a rule that advises


def apo_down(pairs, *, beta):
    """2408.06266"""
    return torch.sigmoid(beta * pairs.chosen_logratios) + 1 - torch.sigmoid(beta * pairs.h)


def discopop(pairs, *, beta, tau=0.05):
    """2406.08414, whose gradient is turned round at the smallest margins."""
    x = beta * pairs.h
    blend = torch.sigmoid(x / tau)
    return -logsigmoid(x) * (1 - blend) + torch.exp(-x) * blend


def exponential(pairs, *, beta):
    """2402.05749, GPO's exponential loss."""
    return torch.exp(-beta * pairs.h)


def both_sides_kept(pairs, *, beta):
    return -logsigmoid(beta * pairs.h) - 0.1 * (pairs.policy_chosen + pairs.policy_rejected)


def target_without_reference(pairs, *, beta):
    return (pairs.policy_chosen - pairs.policy_rejected - 1 / (2 * beta)) ** 2


def in_float16(pairs, *, beta):
    return -logsigmoid(beta * pairs.h).half()


def labels_flipped_at_random(pairs, *, beta):
    signs = 1 - 2 * (torch.rand_like(pairs.h) < 0.1).double()
    return -logsigmoid(beta * pairs.h * signs)


ADVISED = {
    apo_down: "does not raise the chosen log-probability",
    discopop: "narrows the margin of some pairs at the start",
    exponential: "not finite at margins of -1e4",
    both_sides_kept: "raises the rejected log-probability",
    target_without_reference: "narrows the margin of some pairs at the start",
    in_float16: "the result is float16, in which small differences vanish",
    labels_flipped_at_random: "it draws random numbers",
}


@pytest.mark.parametrize("beta", [0.01, 0.1])
@pytest.mark.parametrize("loss", ADVISED, ids=lambda loss: loss.__name__)
def test_a_loss_that_trains_is_advised_and_not_stopped(loss, beta):
    broken = breaches(loss, beta, {})
    assert not any(breach.stops for breach in broken), broken
    if beta == 0.1:
        assert any(ADVISED[loss] in breach.sentence for breach in broken), broken


# --- parts of a mix, which need not train alone


def held_to_the_reference(pairs, *, beta):
    return pairs.chosen_logratios**2


def both_sides_likely(pairs, *, beta):
    return -(pairs.policy_chosen + pairs.policy_rejected)


@pytest.mark.parametrize("loss", [held_to_the_reference, both_sides_likely], ids=lambda loss: loss.__name__)
def test_what_restrains_another_loss_stops_alone_and_is_a_part_of_a_mix(loss):
    assert [breach.stops for breach in breaches(loss, 0.1, {})] == [True]
    assert not any(breach.stops for breach in breaches(loss, 0.1, {}, alone=False))


def test_a_loss_that_cannot_begin_where_policy_and_reference_agree_begins_where_they_do_not():
    def perceptron(pairs, *, beta):
        return relu(-beta * pairs.h)

    [breach] = breaches(perceptron, 0.1, {})
    assert breach.stops and "cannot begin" in breach.sentence
    assert not any(breach.stops for breach in breaches(perceptron, 0.1, {}, same_start=False))


def test_whether_a_loss_reads_beta_is_known():
    assert reads_beta(simpo, 0.1, {})
    assert not reads_beta(likelihood, 0.1, {})

"""The plugin losses against independent float64 formulas, and the kit that checks any loss."""

from __future__ import annotations

import math

import pytest
import torch

from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.losses.conformance import conformance
from dpo_recipes.losses.pair_logps import PairLogps
from dpo_recipes.losses.plugins import PLUGIN_LOSSES
from dpo_recipes.losses.selection import at_start, name_of, own_numbers
from dpo_recipes.losses.selection import refuse_impossible_losses as check


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


# Each loss once more, in math-module float64, from its paper: h is the difference of log-ratios, policy_h the policy's.
FORMULAS = {
    "cdpo": lambda h, beta, policy_h, label_smoothing=0.1: (
        -(1 - label_smoothing) * log_sigmoid(beta * h) - label_smoothing * log_sigmoid(-beta * h)
    ),
    "ipo_sum": lambda h, beta, policy_h: (h - 0.5 / beta) ** 2,
    "reference_free": lambda h, beta, policy_h: math.log1p(math.exp(-beta * policy_h)),
}


def test_every_loss_of_the_table_has_a_formula_here():
    assert FORMULAS.keys() == PLUGIN_LOSSES.keys()


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", PLUGIN_LOSSES)
def test_a_loss_of_the_table_keeps_every_rule_of_the_kit(name, beta):
    assert conformance(PLUGIN_LOSSES[name], beta=beta, formula=FORMULAS[name]) == []


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.3, 0.49])
def test_cdpo_at_other_label_smoothings(smoothing):
    assert conformance(PLUGIN_LOSSES["cdpo"], formula=FORMULAS["cdpo"], label_smoothing=smoothing) == []


def pairs(n: int = 256, seed: int = 3) -> PairLogps:
    draw = torch.Generator().manual_seed(seed)
    logps = -150 * torch.rand(4, n, generator=draw, dtype=torch.float64)
    tokens = torch.randint(1, 90, (2, n), generator=draw)
    return PairLogps(
        policy_chosen=logps[0], policy_rejected=logps[1], reference_chosen=logps[2], reference_rejected=logps[3],
        chosen_tokens=tokens[0], rejected_tokens=tokens[1],
    )  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_cdpo_is_what_trl_computed_until_0_28_and_a_mix_of_two_losses_of_today(smoothing):
    """TRL 0.28, loss_type="sigmoid" with label_smoothing; today's `sigmoid` and `robust` hold both of its halves."""
    beta, p = 0.1, pairs()
    logits = (p.policy_chosen - p.policy_rejected) - (p.reference_chosen - p.reference_rejected)
    until_0_28 = (
        -torch.nn.functional.logsigmoid(beta * logits) * (1 - smoothing)
        - torch.nn.functional.logsigmoid(-beta * logits) * smoothing
    )
    ours = PLUGIN_LOSSES["cdpo"](p, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(ours, until_0_28, rtol=1e-9, atol=1e-9)

    sigmoid = torch.tensor([-log_sigmoid(beta * h) for h in logits.tolist()])
    clean, flipped = (
        (1 - smoothing) * sigmoid,
        smoothing * torch.tensor([-log_sigmoid(-beta * h) for h in logits.tolist()]),
    )
    robust = (clean - flipped) / (1 - 2 * smoothing)
    torch.testing.assert_close(
        ours, 2 * (1 - smoothing) * sigmoid.double() - (1 - 2 * smoothing) * robust.double(), rtol=1e-5, atol=1e-5
    )


def reference_implementation(p: PairLogps, *, beta: float, ipo: bool, reference_free: bool) -> torch.Tensor:
    """`preference_loss` of the DPO paper's authors, from its equations: eq. 7 of DPO, eq. 17 of IPO."""
    pi_logratios, ref_logratios = p.policy_chosen - p.policy_rejected, p.reference_chosen - p.reference_rejected
    logits = pi_logratios - (0 if reference_free else ref_logratios)
    return (logits - 1 / (2 * beta)) ** 2 if ipo else -torch.nn.functional.logsigmoid(beta * logits)


@pytest.mark.parametrize(("name", "ipo", "free"), [("ipo_sum", True, False), ("reference_free", False, True)])
def test_ipo_sum_and_reference_free_are_the_reference_implementations(name, ipo, free):
    p = pairs()
    expected = reference_implementation(p, beta=0.25, ipo=ipo, reference_free=free)
    torch.testing.assert_close(PLUGIN_LOSSES[name](p, beta=0.25), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "beta", "args", "value"),
    [("cdpo", 0.1, {}, 0.6931471805599453), ("cdpo", 3.0, {"label_smoothing": 0.4}, 0.6931471805599453),
     ("ipo_sum", 0.1, {}, 25.0), ("ipo_sum", 0.5, {}, 1.0), ("reference_free", 0.1, {}, None)],
)  # fmt: skip
def test_declared_start_values(name, beta, args, value):
    found = at_start(PLUGIN_LOSSES[name], beta, args)
    assert found == value if value is None else math.isclose(found, value)


def test_a_start_value_of_ones_own_gets_the_defaults_of_its_numbers():
    def margin(pairs, *, beta, gap=2.0):
        return torch.relu(gap - beta * pairs.h)

    margin.at_start = lambda beta, gap: gap
    assert at_start(margin, 0.1, {}) == 2.0 and at_start(margin, 0.1, {"gap": 3}) == 3.0
    assert conformance(margin) == [] == conformance(margin, gap=5.0)


# --- functions that break one rule each


def good(pairs, *, beta):
    return -torch.nn.functional.logsigmoid(beta * pairs.h)


def positional(pairs, beta):
    return good(pairs, beta=beta)


def anything(pairs, *, beta, **rest):
    return good(pairs, beta=beta)


def mean(pairs, *, beta):
    return good(pairs, beta=beta).mean()


def overflowing(pairs, *, beta):
    return torch.exp(-beta * pairs.h)


def steep(pairs, *, beta):
    return torch.exp(-beta * pairs.h).clamp(max=10)  # 0 * inf


def rank(pairs, *, beta):
    return good(pairs, beta=beta) * torch.arange(1, len(pairs.h) + 1)


def centred(pairs, *, beta):
    return good(pairs, beta=beta) * torch.exp(-pairs.h.std().clamp(max=1) / len(pairs.h))


def backwards(pairs, *, beta):
    return good(pairs, beta=-beta)


def detached(pairs, *, beta):
    return good(pairs.map(torch.Tensor.detach), beta=beta)


def lifting(pairs, *, beta):
    return -torch.nn.functional.logsigmoid(beta * (pairs.chosen_logratios + pairs.rejected_logratios))


def misdeclared(pairs, *, beta):
    return 2 * good(pairs, beta=beta)


misdeclared.at_start = lambda beta: math.log(2)


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
    found = conformance(loss)
    assert any(BROKEN[loss] in sentence for sentence in found), found


def test_the_kit_names_a_value_that_is_not_the_formulas():
    [sentence] = conformance(good, formula=lambda h, beta, policy_h: -1.001 * log_sigmoid(beta * h))
    assert sentence.startswith("differs from the formula by ")


def test_the_kit_passes_a_good_loss_of_ones_own_and_takes_its_numbers():
    assert conformance(good, formula=lambda h, beta, policy_h: -log_sigmoid(beta * h)) == []
    assert "unexpected keyword argument 'gap'" in conformance(good, gap=1.0)[0]


def test_pair_logps_derives_log_ratios_and_maps():
    p = pairs(4)
    torch.testing.assert_close(p.h, p.chosen_logratios - p.rejected_logratios)
    torch.testing.assert_close(p.chosen_logratios, p.policy_chosen - p.reference_chosen)
    assert [len(t) for t in vars(p.map(lambda t: t[:2])).values()] == [2] * 6
    with pytest.raises(TypeError):
        PairLogps(*vars(p).values())


# --- what a recipe says about its losses


def own(pairs, *, beta, margin, scale=1, mode="a", flag=True):
    return pairs.h


def test_own_numbers_are_the_keywords_besides_beta():
    assert own_numbers(PLUGIN_LOSSES["cdpo"]) == {"label_smoothing": 0.1}
    assert own_numbers(PLUGIN_LOSSES["ipo_sum"]) == {}
    assert list(own_numbers(own)) == ["margin", "scale", "mode", "flag"]
    assert name_of("sigmoid") == "sigmoid" and name_of(own) == "own"
    with pytest.raises(RecipeError, match=r"The loss <lambda>\(pairs, \*, beta\) must be written `def name"):
        own_numbers(lambda pairs, *, beta: pairs.h)


def sigmoid(pairs, *, beta):
    return pairs.h


MESSAGES = [
    ({"sigmod": 1.0}, {}, "Recipe.loss='sigmod' is neither TRL's nor ours. Did you mean 'sigmoid'? Known: "),
    ({"dpo": 1.0}, {}, "Plain DPO is 'sigmoid'."),
    ({"sigmoid": 0}, {}, "Recipe.loss gives 'sigmoid' the weight 0: weights are positive, finite numbers."),
    ({"sigmoid": math.inf}, {}, "weights are positive"),
    ({"sigmoid": math.nan}, {}, "weights are positive"),
    ({sigmoid: 1.0}, {}, "Recipe.loss: two losses go by the name 'sigmoid': give your function another one."),
    ({"cdpo": 1.0, PLUGIN_LOSSES["cdpo"]: 1.0}, {}, "two losses go by the name 'cdpo'"),
    ({"sigmoid": 1.0}, {"tau": 1}, "Recipe.loss_args.tau=1 is read by no loss of ['sigmoid']. TRL's losses take"),
    ({"cdpo": 1.0}, {"smoothing": 1}, "Did you mean 'label_smoothing'?"),
    ({"cdpo": 1.0}, {"label_smoothing": "x"}, "has the wrong type: expected a number such as 0.1, its default."),
    ({"cdpo": 1.0}, {"label_smoothing": math.nan}, "expected a number"),
    ({"cdpo": 1.0}, {"label_smoothing": 0.5}, "Recipe.loss_args.label_smoothing=0.5 must lie in [0, 0.5)."),
    ({own: 1.0}, {}, "Recipe.loss_args.margin must be given: the loss has no default for it."),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "args", "message"), MESSAGES)
def test_a_loss_that_cannot_be_is_refused(weights, args, message):
    with pytest.raises(UsageError) as error:
        check(weights, args)
    assert message in str(error.value)


def test_losses_that_can_be_are_not():
    check(
        {"sigmoid": 1, "sft": 0.1, "cdpo": 2.0, own: 0.5},
        {"label_smoothing": 0, "margin": 1, "scale": 2.5, "mode": "b"},
    )

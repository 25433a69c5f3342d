"""The rows of TRL's losses: what is derived from them, and their values at the start in numbers.

That each row is true of the installed TRL is held by tests/trl_contract/test_losses_trl_losses.py.
"""

from __future__ import annotations

import re

import pytest

from dpo_recipes.losses import trl_losses
from dpo_recipes.losses.trl_losses import TRL_LOSSES, readers_of


def test_there_are_fifteen_losses_each_under_its_own_name():
    assert len(TRL_LOSSES) == 15
    for name, loss in TRL_LOSSES.items():
        assert loss.name == name


def test_a_paper_is_an_arxiv_number():
    for loss in TRL_LOSSES.values():
        assert loss.paper is None or re.fullmatch(r"\d{4}\.\d{5}", loss.paper), loss.name


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (trl_losses.COUPLED_LOSSES, {"aot", "aot_unpaired", "sft"}),
        (trl_losses.UNWEIGHTED_LOSSES, {"aot", "aot_unpaired"}),
        (trl_losses.SMOOTHED_LOSSES, {"exo_pair"}),
        (trl_losses.LIKELIHOOD_LOSSES, {"sft"}),
        (readers_of("label_smoothing"), {"robust", "exo_pair", "aot", "aot_unpaired"}),
        (readers_of("discopop_tau"), {"discopop"}),
        (readers_of("learning_rate"), set()),
    ],
)
def test_names_are_derived_from_the_rows(names, expected):
    assert names == expected


@pytest.mark.parametrize(
    ("name", "beta", "label_smoothing", "value"),
    [
        ("sigmoid", 0.1, 0.0, 0.693147),
        ("sigmoid_norm", 0.1, 0.0, 0.693147),
        ("robust", 0.1, 0.2, 0.693147),
        ("aot", 0.1, 0.2, 0.693147),
        ("aot_unpaired", 0.1, 0.2, 0.693147),
        ("nca_pair", 0.1, 0.0, 1.386294),
        ("bco_pair", 0.1, 0.0, 1.386294),
        ("hinge", 0.1, 0.0, 1.0),
        ("apo_zero", 0.1, 0.0, 1.0),
        ("apo_down", 0.1, 0.0, 1.0),
        ("ipo", 0.1, 0.0, 25.0),
        ("sppo_hard", 0.1, 0.0, 50.0),
        ("exo_pair", 0.1, 0.5, 0.0),  # labels that say nothing, and a policy that says as much
        ("exo_pair", 0.1, 1e-3, 2.761231),
        ("discopop", 0.1, 0.0, 0.846574),
    ],
)
def test_the_value_where_policy_and_reference_agree(name, beta, label_smoothing, value):
    assert TRL_LOSSES[name].at_start(beta, label_smoothing) == pytest.approx(value, abs=1e-6)


def test_likelihood_alone_has_no_such_value():
    assert {name for name, loss in TRL_LOSSES.items() if loss.at_start is None} == {"sft"}

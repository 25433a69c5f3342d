"""Losses, rewards and weights that are broken: each is one message that names it, before anything costly begins."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from making import load_policy, make_pairs, make_start_pair_logps
from torch.nn.functional import logsigmoid

from dpo_recipes import Data, Recipe, RecipeError, Run, train
from dpo_recipes.evaluation.rehearsal import rehearse
from dpo_recipes.guard.not_finite import Circumstances, why_not_finite
from dpo_recipes.guard.rules import gradient_is_finite, something_moved

# --------------------------------------------------------------------------------------------------------------- losses


def wrong_sign(pairs, *, beta):
    return logsigmoid(beta * pairs.h)


def sides_exchanged(pairs, *, beta):
    return -logsigmoid(beta * (pairs.rejected_logratios - pairs.chosen_logratios))


def returns_none(pairs, *, beta):
    logsigmoid(beta * pairs.h)


def returns_a_float(pairs, *, beta):
    return -logsigmoid(beta * pairs.h).mean().item()


def returns_a_list(pairs, *, beta):
    return [-value for value in (beta * pairs.h).tolist()]


def detached(pairs, *, beta):
    return -logsigmoid(beta * pairs.h.detach())


def averaged(pairs, *, beta):
    return -logsigmoid(beta * pairs.h).mean()


def squeezed(pairs, *, beta):
    return -logsigmoid(beta * pairs.h).squeeze()


def whole_numbers(pairs, *, beta):
    return (pairs.h < 0).long()


def raising(pairs, *, beta):
    return -logsigmoid(beta * pairs.policy_logps)


def leaving(pairs, *, beta):
    raise SystemExit(3)


def constant(pairs, *, beta):
    return 0 * pairs.h + math.log(2)


def centred(pairs, *, beta):
    return -logsigmoid(beta * (pairs.h - pairs.h.mean()))


def not_a_number(pairs, *, beta):
    return -logsigmoid(beta * pairs.h) * math.nan


def logarithm_at_0(pairs, *, beta):
    return -torch.log(beta * pairs.h)


def in_place(pairs, *, beta):
    pairs.reference_chosen.mul_(0.9)
    return -logsigmoid(beta * pairs.h)


calls_of_counting: list[int] = []


def counting(pairs, *, beta):
    calls_of_counting.append(1)
    return -logsigmoid(beta * pairs.h) / len(calls_of_counting)


def start_raises(pairs, *, beta):
    return -logsigmoid(beta * pairs.h)


start_raises.at_start = lambda beta, gap: gap


def start_is_no_function(pairs, *, beta):
    return -logsigmoid(beta * pairs.h)


start_is_no_function.at_start = "ln 2"


def start_is_wrong(pairs, *, beta):
    return -logsigmoid(beta * pairs.h)


start_is_wrong.at_start = lambda beta: 1.0


def with_a_number(pairs, *, beta, delta):
    return (delta - beta * pairs.h).clamp(min=0)


class AClass:
    def __init__(self, pairs, *, beta):
        self.pairs = pairs


BROKEN_LOSSES = [
    ("wrong sign", {"loss": wrong_sign}, "loss wrong_sign: it prefers the rejected side"),
    ("sides exchanged", {"loss": sides_exchanged}, "Look at its sign, and at which side is which"),
    ("one part of a mix", {"loss": {"sigmoid": 1.0, wrong_sign: 2.0}}, "loss wrong_sign: it prefers the rejected"),
    ("None", {"loss": returns_none}, "it returns None, not a tensor of shape (pairs,)"),
    ("a float", {"loss": returns_a_float}, "it returns a float, not a tensor"),
    ("a list", {"loss": returns_a_list}, "it returns a list, not a tensor"),
    ("detached", {"loss": detached}, "its result is cut off from the policy"),
    ("averaged", {"loss": averaged}, "the result has shape (), not (pairs,)"),
    ("squeezed", {"loss": squeezed}, "of one pair alone, the result has shape ()"),
    ("whole numbers", {"loss": whole_numbers}, "the result is int64, which has no gradient"),
    ("raises", {"loss": raising}, "it fails: AttributeError: 'PairLogps' object has no attribute 'policy_logps' (line"),
    ("exits", {"loss": leaving}, "it fails: SystemExit: 3"),
    ("constant", {"loss": constant}, "its gradient is 0: no pair teaches anything"),
    ("coupled", {"loss": centred}, "a pair must not depend on its neighbours"),
    ("NaN", {"loss": not_a_number}, "it is not finite where policy and reference agree: nan"),
    ("logarithm at 0", {"loss": logarithm_at_0}, "it is not finite where policy and reference agree: inf"),
    ("in place", {"loss": in_place}, "it changes pairs.reference_chosen in place"),
    ("remembers", {"loss": counting}, "the same pairs have other losses when they are asked for again"),
    ("start raises", {"loss": start_raises}, "its at_start must be a function of beta and the loss's own numbers"),
    ("start is no function", {"loss": start_is_no_function}, "'str' object is not callable"),
    ("start is wrong", {"loss": start_is_wrong}, "declared 1.0 where policy and reference agree, but it is 0.69"),
    ("text for a number", {"loss": with_a_number, "loss_args": {"delta": "x"}}, "loss with_a_number: it fails: "),
    ("a class", {"loss": AClass}, "The loss AClass is a class, and a loss is a function"),
    ("no keyword beta", {"loss": lambda pairs, beta: pairs.h}, "must be written `def name(pairs, *, beta, ...)`"),
]


@pytest.mark.parametrize(("changes", "told"), [case[1:] for case in BROKEN_LOSSES], ids=[c[0] for c in BROKEN_LOSSES])
def test_a_broken_loss_is_refused_before_anything_is_looked_for(changes, told, tmp_path):
    """The model and the data are nowhere: neither is asked for."""
    with pytest.raises(RecipeError) as refused:
        train(Recipe(model="./nowhere", data=Data("./nowhere.jsonl"), **changes), runs=tmp_path / "runs")
    assert told in str(refused.value)
    assert not (tmp_path / "runs").exists()


# -------------------------------------------------------------------------------------------------- reward and measures


def needs_messages(prompt, completion):
    return float(len(prompt[-1]["content"]))


def per_word(prompt, completion):
    return 1 / len(completion.split())


def leaves(prompt, completion):
    raise SystemExit(3)


BROKEN_SCORES = [
    ("NaN", lambda p, c: math.nan, "must return a finite number, and returned nan with prompt='Question 0"),
    ("infinity", lambda p, c: -math.inf, "must return a finite number, and returned -inf"),
    ("None", lambda p, c: None, "must return a number, and returned None with prompt='Question 0"),
    ("text", lambda p, c: "0.5", "returned a str, '0.5',"),
    ("bool array", lambda p, c: np.array([True, False]), "returned a ndarray, array([ True, False]),"),
    ("tensor", lambda p, c: torch.zeros(1), "returned a Tensor, tensor([0.]),"),
    ("complex", lambda p, c: 1j, "returned a complex"),
    ("raises", lambda p, c: {}[c], "failed with prompt='Question 0"),
    ("needs messages", needs_messages, "(text; of messages, the last user's)"),
    ("an empty answer", per_word, "completion='': ZeroDivisionError"),
    ("exits", leaves, "SystemExit: 3."),
]


@pytest.mark.parametrize(("score", "told"), [case[1:] for case in BROKEN_SCORES], ids=[c[0] for c in BROKEN_SCORES])
def test_a_score_that_is_no_number_fails_on_the_first_held_out_pair(score, told):
    [finding] = rehearse({"mine": score}, make_pairs(2), calls=16)
    assert (finding.level, finding.name) == ("fail", "mine")
    assert finding.text.startswith("mine() ") and told in finding.text


@pytest.mark.parametrize("value", [1, 0.5, True, np.float32(0.5), np.bool_(True), torch.tensor(2.0)])
def test_every_kind_of_a_single_number_is_one(value):
    [finding] = rehearse({"mine": lambda prompt, completion: value}, make_pairs(1), calls=16)
    assert finding.level == "pass"


def test_a_slow_score_and_one_that_prints_are_told_with_what_the_evaluation_will_need(monkeypatch, capsys):
    ticks = itertools.count(0.0, 0.01)  # seconds
    monkeypatch.setattr("dpo_recipes.evaluation.rehearsal.time.perf_counter", lambda: next(ticks))

    def slow(prompt, completion):
        print("thinking")
        return 0.0

    [finding] = rehearse({"slow": slow}, make_pairs(1), calls=2048)
    assert finding.level == "warn" and "the evaluation calls it 2,048 times, which takes about 0:00:2" in finding.text
    assert "slow() prints" in finding.text
    assert capsys.readouterr().out == ""


def test_a_prompt_without_a_user_leaves_a_reward_nothing_to_judge_by():
    pair = make_pairs(1)[0] | {"prompt": [{"role": "system", "content": "Be brief."}]}
    [finding] = rehearse({"mine": lambda prompt, completion: 0.0}, [pair], calls=16)
    assert finding.level == "fail" and "has no user message" in finding.text


def test_a_broken_reward_stops_a_run_before_its_weights_are_loaded(tiny, pairs_file, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("dpo_recipes.models.weights.load_weights", refuse)
    data = Data(str(pairs_file), eval=0.25)
    recipe = Recipe(model=str(tiny()), data=data, reward=lambda prompt, completion: None)
    with pytest.raises(RecipeError, match=r"must return a number, and returned None with prompt='Question"):
        train(recipe, runs=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_when_they_are_loaded(tiny, tmp_path, value):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny())
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(
        RecipeError, match="hold numbers that are not finite, in model.layers.1.mlp.up_proj.weight. Its"
    ):
        load_policy(tmp_path)


# ---------------------------------------------------------------------------------------- suspects, by what is known


def known(**changes) -> Circumstances:
    given = {"step": 3, "updates": 0, "learning_rate": 1e-3, "beta": 0.1, "half": False, "weights": [], "plugins": ()}
    return Circumstances(**{**given, **changes})


FINE, BAD_POLICY = make_start_pair_logps(), make_start_pair_logps(chosen_gap=math.nan)
SUSPECTS = [
    ("weights at once", BAD_POLICY, known(weights=["a.weight"]), "in a.weight. No update has been made yet"),
    ("weights later", BAD_POLICY, known(weights=["a"], updates=7), "after 7 updates the weights hold numbers that are"),
    ("policy at once", BAD_POLICY, known(), "the policy are not finite. Suspects: an attention kernel"),
    ("policy later", BAD_POLICY, known(updates=7), "or a learning rate far too high (learning_rate=0.001)"),
    ("16 bit", BAD_POLICY, known(half=True), "Suspects: 16-bit activations that overflow"),
    ("a loss of one's own", FINE, known(plugins=("mine",)), "mine() gives a value that is not finite"),
    ("beta", FINE, known(beta=1e30), "the loss at beta=1e+30 does not bear that. Suspects: beta"),
]


@pytest.mark.parametrize(("pairs", "circumstances", "told"), [s[1:] for s in SUSPECTS], ids=[s[0] for s in SUSPECTS])
def test_the_first_suspect_is_what_is_known_to_be_broken(pairs, circumstances, told):
    text = why_not_finite(math.nan, pairs, circumstances)
    assert text.startswith("The loss is nan at step 3") and told in text
    if not circumstances.updates:
        assert "learning_rate=" not in text


def test_a_loss_of_ones_own_is_the_first_suspect_of_a_gradient_that_is_0_or_not_finite():
    before = {"w": torch.zeros(2)}
    assert "Suspects: mine(), a loss of your own" in something_moved(before, before, [0.0], ("mine",))
    assert "Suspects: the gradient of mine(), a loss of your own" in gradient_is_finite(math.nan, 3, ("mine",))


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_run_folder_with_a_number_that_was_not_finite_reads_back(tmp_path: Path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"before": {"loss": None}, "after": {"loss": None}}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "grad_norm": null}\n{"step": 2, "grad_norm": NaN}\n')
    run = Run(tmp_path)
    assert run.evaluation["after"]["loss"] is None
    assert run.metrics[0]["grad_norm"] is None and math.isnan(run.metrics[1]["grad_norm"])  # as older runs wrote it

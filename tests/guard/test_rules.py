"""The rules that stop a run, on made-up numbers: each stops what it names and nothing beside it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from dpo_recipes.errors import RecipeError
from dpo_recipes.guard import rules as guard
from dpo_recipes.losses.pair_logps import PairLogps

LN2 = math.log(2)


def pairs(chosen_gap=0.0, rejected_gap=0.0, tokens=10, n=4) -> PairLogps:
    """n pairs of `tokens` tokens on each side; the gaps, in nats, are those of the last pair."""
    policy = torch.linspace(-40, -20, n)
    last = torch.zeros(n)
    last[-1] = 1
    return PairLogps(
        policy_chosen=policy + chosen_gap * last,
        policy_rejected=policy - 5 + rejected_gap * last,
        reference_chosen=policy,
        reference_rejected=policy - 5,
        chosen_tokens=torch.full((n,), tokens),
        rejected_tokens=torch.full((n,), tokens),
    )


# ------------------------------------------------------------------------------------------------ before any update


@pytest.mark.parametrize(("half", "limit"), [(False, 1e-3), (True, 5e-2)])
@pytest.mark.parametrize("side", ["chosen_gap", "rejected_gap"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_policy_and_reference_may_differ_by_rounding_per_token_and_no_more(half, limit, side, sign):
    under, over = (pairs(**{side: sign * limit * 10 * factor}) for factor in (0.97, 1.03))
    assert guard.start_is_identity(under, LN2, LN2, half) is None
    reason = guard.start_is_identity(over, LN2, LN2, half)
    assert reason and f"at most {limit:g} is rounding" in reason and "a wrong reference" in reason


def test_the_allowance_grows_with_the_length_and_an_empty_side_counts_as_one_token():
    assert guard.start_is_identity(pairs(chosen_gap=0.5, tokens=1000), LN2, LN2, False) is None
    assert "differ by 0.5 nats" in guard.start_is_identity(pairs(chosen_gap=0.5, tokens=1), LN2, LN2, False)
    assert "differ by 0.5 nats" in guard.start_is_identity(pairs(chosen_gap=0.5, tokens=0), LN2, LN2, False)


@pytest.mark.parametrize("gaps", [{"chosen_gap": math.nan}, {"rejected_gap": math.nan}, {"rejected_gap": math.inf}])
@pytest.mark.parametrize("half", [False, True])
def test_a_log_probability_that_is_not_finite_is_no_identity_on_either_side(gaps, half):
    reason = guard.start_is_identity(pairs(**gaps), LN2, LN2, half)
    assert reason and "must equal its reference" in reason


@pytest.mark.parametrize(
    ("declared", "half", "allowed"),
    [(LN2, False, 0.01), (LN2, True, 0.1), (25.0, False, 0.25), (25.0, True, 2.5), (0.0, False, 0.01)],
)
def test_the_loss_may_miss_its_declared_value_by_one_percent_and_in_16_bit_by_ten(declared, half, allowed):
    for sign in (-1, 1):
        assert guard.start_is_identity(pairs(), declared + sign * 0.97 * allowed, declared, half) is None
        reason = guard.start_is_identity(pairs(), declared + sign * 1.03 * allowed, declared, half)
        assert reason and f"the loss must be {declared:.6g}" in reason
    assert "but it is nan" in guard.start_is_identity(pairs(), math.nan, declared, half)


def test_a_loss_that_declares_nothing_may_start_anywhere_but_not_from_another_reference():
    assert guard.start_is_identity(pairs(), 1e9, None, False) is None
    assert guard.start_is_identity(pairs(chosen_gap=1.0), 1e9, None, False)


def test_the_bad_pair_is_the_first_that_is_not_finite_else_the_widest_margin():
    assert guard.first_bad_pair(pairs(chosen_gap=3.0)) == 3
    for name in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"):
        for value in (math.nan, math.inf, -math.inf):
            broken = pairs(chosen_gap=3.0)
            getattr(broken, name)[1] = value
            getattr(broken, name)[2] = math.nan
            assert guard.first_bad_pair(broken) == 1


# --------------------------------------------------------------------------------------------------- what must move


@pytest.mark.parametrize("numel", [1, 2, 255, 256, 257, 300, 511, 512, 513, 1000, 4096, 70_001])
def test_samples_are_spread_from_one_end_of_a_tensor_to_the_other(numel):
    taken = guard.samples([("w", torch.arange(numel, dtype=torch.float32).requires_grad_())])["w"]
    gaps = set(taken.diff().tolist())
    assert 1 <= len(taken) <= 256 and len(taken) >= min(numel, 128) and taken[0] == 0
    assert len(gaps) <= 1  # evenly
    assert numel - 1 - taken[-1] < max(gaps, default=1)  # no end that is never looked at


def test_samples_cover_every_trainable_tensor_and_nothing_else():
    tensors = [
        ("matrix", torch.zeros(40, 50, requires_grad=True)),
        ("half", torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)),
        ("frozen", torch.zeros(7)),
        ("empty", torch.zeros(0, requires_grad=True)),
        ("number", torch.tensor(1.0, requires_grad=True)),
    ]
    found = guard.samples(tensors)
    assert set(found) == {"matrix", "half", "number"}
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in found.values())


@pytest.mark.parametrize("numel", [5, 300, 1000])
def test_a_change_of_any_one_sampled_element_is_seen(numel):
    weight = torch.zeros(numel, requires_grad=True)
    parameters = [("w", weight), ("other", torch.ones(9, requires_grad=True))]
    before = guard.samples(parameters)
    for i in range(0, numel, -(-numel // 256)):
        with torch.no_grad():
            weight[i] = 1e-30
        assert guard.something_moved(before, guard.samples(parameters), [1.0]) is None
        with torch.no_grad():
            weight[i] = 0.0
    assert "No trainable tensor of 2 has changed" in guard.something_moved(before, guard.samples(parameters), [1.0])


def test_samples_are_copies():
    weight = torch.zeros(4, requires_grad=True)
    before = guard.samples([("w", weight)])
    with torch.no_grad():
        weight += 1
    assert before["w"].tolist() == [0.0] * 4


def test_no_gradient_no_trainable_tensor_and_no_movement_are_three_reasons():
    still, moved = {"w": torch.zeros(3)}, {"w": torch.tensor([0.0, 0.0, 1.0])}
    assert "No tensor of the model is trainable" in guard.something_moved({}, {}, [])
    assert "exactly 0 in the first 2 optimiser steps" in guard.something_moved(still, moved, [0.0, 0.0])
    assert "No trainable tensor of 1 has changed" in guard.something_moved(still, still, [0.0, 0.5])
    assert guard.something_moved(still, moved, [0.0, 1e-30]) is None
    assert guard.something_moved(still, moved, []) is None  # nothing was logged yet: the weights speak


@pytest.mark.parametrize(
    ("largest", "steps", "stops"),
    [(0.0, 9, False), (0.0, 10, True), (0.0, 500, True), (1e-30, 10, False), (1e-30, 500, False), (0.0, 0, False)],
)
def test_rewards_of_exactly_0_stop_from_the_tenth_full_step_on(largest, steps, stops):
    reason = guard.rewards_moved(largest, steps)
    assert (reason is not None) == stops
    assert not stops or f"still exactly 0 after {steps} optimiser steps" in reason


# ------------------------------------------------------------------------------------------- the callback, by hand


class Run:
    """A training loop without a model: the events in the Trainer's order, with one weight."""

    def __init__(self, learning_rate=1e-3, fp16=False, trainable=True):
        self.model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.zeros(4), requires_grad=trainable)})
        self.args = SimpleNamespace(learning_rate=learning_rate, fp16=fp16)
        self.state = SimpleNamespace(global_step=0)
        self.health = guard.Health(declared=LN2, same_start=True)
        self.control = SimpleNamespace(should_log=False)
        self.watch = guard.Watch(self.health)
        self.watch.on_train_begin(self.args, self.state, None, model=self.model)

    def step(self, rate, moves=0.0, norm=1.0, reward=0.0, skipped=None) -> None:
        if self.health.full_steps and not self.health.largest_reward:  # as the trainer does at every forward
            self.health.largest_reward = reward
        with torch.no_grad():
            self.model["w"] += moves
        optimizer = SimpleNamespace(param_groups=[{"lr": rate}, {"lr": 99.0}])
        if skipped is not None:
            optimizer.step_was_skipped = skipped
        self.watch.on_optimizer_step(self.args, self.state, None, optimizer=optimizer)
        self.state.global_step += 1
        self.watch.on_step_end(self.args, self.state, self.control, model=self.model)
        self.watch.on_log(self.args, self.state, None, logs={"loss": 0.7, "grad_norm": norm})

    def end(self) -> None:
        self.watch.on_log(self.args, self.state, None, logs={"train_runtime": 1.0})
        self.watch.on_train_end(self.args, self.state, None, model=self.model)


def test_a_healthy_run_passes_and_is_sampled_once():
    run = Run()
    for _ in range(30):
        run.step(1e-3, moves=1e-3, reward=0.01)
    run.end()
    assert (run.health.steps, run.health.full_steps, run.health.before) == (30, 30, {})


def test_weights_that_do_not_move_stop_at_the_fifth_step():
    run = Run()
    for _ in range(4):
        run.step(1e-3)
    with pytest.raises(RecipeError, match="No trainable tensor of 1 has changed in the first optimiser steps"):
        run.step(1e-3)
    assert run.state.global_step == 5


def test_weights_that_move_by_decay_alone_stop_for_want_of_a_gradient():
    run = Run()
    with pytest.raises(RecipeError, match="exactly 0 in the first 4 optimiser steps"):
        for _ in range(5):
            run.step(1e-3, moves=1e-6, norm=0.0)


def test_a_run_that_ends_before_the_fifth_step_is_judged_at_its_end():
    run = Run()
    run.step(1e-3)
    with pytest.raises(RecipeError, match="No trainable tensor"):
        run.end()
    moved = Run()
    moved.step(1e-3, moves=1e-3)
    moved.end()
    assert moved.health.before == {}


def test_nothing_trainable_stops_before_the_first_step():
    with pytest.raises(RecipeError, match="No tensor of the model is trainable"):
        Run(trainable=False)


def test_steps_at_a_learning_rate_of_0_do_not_count():
    run = Run()
    for _ in range(50):
        run.step(0.0)
    assert (run.health.steps, run.health.full_steps) == (0, 0)
    for k in range(30):
        run.step(1e-3, moves=1e-3, reward=0.1 * (k > 3))
    run.end()
    assert run.health.steps == 30


def test_a_long_warm_up_does_not_stop_a_healthy_run():
    """The weights move from the first step on; the rewards, rounded in 16 bit, show it only near the peak."""
    run = Run()
    for k in range(1000):
        rate = 1e-3 * k / 1000
        run.step(rate, moves=rate * 1e-3, reward=0.001 if rate > 0.505e-3 else 0.0)
    run.end()
    assert run.health.full_steps == 500 and run.health.largest_reward == 0.001


@pytest.mark.parametrize(("zeros", "stops"), [(9, False), (10, True)])
def test_rewards_have_ten_forwards_after_the_first_full_step(zeros, stops):
    run = Run()
    run.step(1e-3, moves=1e-3)
    for _ in range(9):
        run.step(1e-3, moves=1e-3)
    if stops:
        with pytest.raises(RecipeError, match="still exactly 0 after 10 optimiser steps"):
            run.step(1e-3, moves=1e-3)
    else:
        run.step(1e-3, moves=1e-3, reward=1e-6)
        run.end()


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 40])
def test_a_gradient_norm_that_is_not_finite_stops_at_any_step(norm, step):
    run = Run()
    for _ in range(step - 1):
        run.step(1e-3, moves=1e-3, reward=0.1)
    with pytest.raises(RecipeError, match=f"The gradient norm is {norm} at step {step}, the loss is finite"):
        run.step(1e-3, moves=1e-3, norm=norm, reward=0.1)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_fp16_may_overflow_while_its_scale_is_being_found(norm):
    run = Run(fp16=True)
    for _ in range(8):  # 65536 halved eight times
        run.step(1e-3, norm=norm, skipped=True)
    assert run.health.steps == 0 and run.health.before
    for _ in range(8):
        run.step(1e-3, moves=1e-3, reward=0.1, skipped=False)
    run.end()
    assert run.health.steps == 8


def test_fp16_that_overflows_for_ever_stops_at_the_end():
    run = Run(fp16=True)
    for _ in range(20):
        run.step(1e-3, norm=math.nan, skipped=True)
    with pytest.raises(RecipeError, match="No trainable tensor"):
        run.end()


def test_logs_without_a_gradient_norm_are_passed_over():
    run = Run()
    for logs in (None, {}, {"eval_loss": 0.6}):
        run.watch.on_log(run.args, run.state, None, logs=logs)
    assert run.health.grad_norms == []

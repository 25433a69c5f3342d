"""The callback, by hand: a training loop without a model, with the events in the Trainer's order."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from dpo_recipes.errors import RecipeError
from dpo_recipes.guard.callback import Health, Watch
from dpo_recipes.guard.rules import gradient_is_finite

LN2 = math.log(2)


class Run:
    """A training loop without a model: the events in the Trainer's order, with one weight."""

    def __init__(self, learning_rate=1e-3, fp16=False, trainable=True):
        weight = torch.nn.Parameter(torch.zeros(4), requires_grad=trainable)
        self.model = torch.nn.ParameterDict({"w": weight})
        self.args = SimpleNamespace(learning_rate=learning_rate, fp16=fp16)
        self.state = SimpleNamespace(global_step=0)
        self.health = Health(declared_loss=LN2, same_start=True)
        self.control = SimpleNamespace(should_log=False)
        self.watch = Watch(self.health)
        self.watch.on_train_begin(self.args, self.state, None, model=self.model)

    def step(self, rate, moves=0.0, norm=1.0, reward=0.0, skipped=None) -> None:
        """One optimiser step at a learning rate, by which the weight moves; `norm` is the gradient's."""
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

    def end(self, steps: int | None = None) -> None:
        """The end of training, after so many steps as were planned or more."""
        self.state.max_steps = steps or self.state.global_step
        self.watch.on_log(self.args, self.state, None, logs={"train_runtime": 1.0})
        self.watch.on_train_end(self.args, self.state, None, model=self.model)


def test_example_of_a_stop_rule():
    """To copy for a new rule: what passes it, what it stops and why, and a run that it stops where it is asked."""
    assert gradient_is_finite(0.25, step=3) is None
    assert "The gradient norm is nan at step 3" in gradient_is_finite(math.nan, step=3)

    run = Run()
    run.step(1e-3, moves=1e-3, norm=0.25)
    with pytest.raises(RecipeError, match="The gradient norm is nan at step 2"):
        run.step(1e-3, moves=1e-3, norm=math.nan)


def test_a_healthy_run_passes_and_is_sampled_once():
    run = Run()
    for _ in range(30):
        run.step(1e-3, moves=1e-3, reward=0.01)
    run.end()
    assert (run.health.steps, run.health.full_steps, run.health.first_weights) == (30, 30, {})


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
    assert moved.health.first_weights == {}
    stopped = Run()
    stopped.step(0.0)
    stopped.end(steps=9)  # nothing is said of a run that may go on


def test_a_run_that_goes_on_counts_on_and_does_not_compare_what_has_moved():
    before = Run()
    for _ in range(5):
        before.step(1e-3, moves=1e-3, reward=0.2)
    after = Run()
    after.state.global_step = 5
    after.state.stateful_callbacks = {"Watch": before.watch.state()}
    after.watch.on_train_begin(after.args, after.state, None, model=after.model)
    assert after.health == before.health and after.health.steps == 5 and not after.health.first_weights


def test_nothing_trainable_stops_before_the_first_step():
    with pytest.raises(RecipeError, match="No tensor of the model is trainable"):
        Run(trainable=False)


def test_steps_at_a_learning_rate_of_0_do_not_count():
    run = Run()
    for _ in range(50):
        run.step(0.0)
    assert (run.health.steps, run.health.full_steps) == (0, 0)
    for _ in range(4):
        run.step(1e-3, moves=1e-3, reward=0.0)
    for _ in range(26):
        run.step(1e-3, moves=1e-3, reward=0.1)
    run.end()
    assert run.health.steps == 30


def test_a_long_warm_up_does_not_stop_a_healthy_run():
    """The weights move from the first step on; the rewards, rounded in 16 bit, show it only near the peak."""
    run = Run()
    for k in range(1000):
        rate = 1e-3 * k / 1000
        run.step(rate, moves=rate * 1e-3, reward=0.001 if rate > 0.505e-3 else 0.0)
    run.end()
    assert run.health.full_steps == 500
    assert run.health.largest_reward == 0.001


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
    assert run.health.steps == 0
    assert run.health.first_weights
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

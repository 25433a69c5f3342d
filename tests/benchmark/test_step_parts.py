"""What a step is made of, of a trainer whose parts take known times."""

from __future__ import annotations

import types

import pytest
import torch

from dpo_recipes.benchmark import parts
from dpo_recipes.benchmark.steps import Side, Watcher


class Clock:
    """Seconds that pass only where a part says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


class Layers(torch.nn.Module):
    """Three seconds forward, and five backward."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, inputs):
        self.clock.passes(3)
        scaled = self.weight * inputs
        scaled.register_hook(lambda gradient: self.clock.passes(5))
        return types.SimpleNamespace(last_hidden_state=scaled * 1.0)


class Trainer:
    """A forward of the layers, of the head (2 s) and of the loss; head and loss backward (1 s); an optimizer (7 s)."""

    def __init__(self, clock: Clock, watcher: Watcher):
        self.clock, self.watcher = clock, watcher
        self.model = types.SimpleNamespace(base_model=Layers(clock))
        self.ref_model = None
        self.args = types.SimpleNamespace(max_steps=0)
        self.accelerator = types.SimpleNamespace(
            device=torch.device("cpu"), unwrap_model=lambda model: model, backward=lambda loss: loss.backward()
        )

    def compute_loss(self):
        hidden = self.model.base_model(torch.ones(2)).last_hidden_state
        self.clock.passes(2)
        loss = hidden.sum() * 1.0
        loss.register_hook(lambda gradient: self.clock.passes(1))
        return loss

    def train(self):
        for _ in range(self.args.max_steps):
            self.clock.passes(100)  # between two steps
            self.watcher.begins()
            self.accelerator.backward(self.compute_loss())
            self.clock.passes(7)
            self.watcher.ends()


@pytest.fixture
def side(monkeypatch):
    clock, watcher = Clock(), Watcher()
    monkeypatch.setattr(parts, "clock_of", lambda device: clock)
    return Side(Trainer(clock, watcher), watcher)


def test_forward_and_backward_are_told_apart(side):
    counted = []
    assert parts.time_parts(side, 3, lambda: counted.append(1)) == (3 + 5, 2 + 1, 7)
    assert len(counted) == 3


def test_nothing_is_left_of_the_clock(side):
    backward = side.trainer.accelerator.backward
    parts.time_parts(side, 1, lambda: None)
    assert side.trainer.accelerator.backward is backward
    layers = side.trainer.model.base_model
    assert not layers._forward_hooks and not layers._forward_pre_hooks
    assert side.watcher.begins is side.watcher.ends


def test_a_reference_that_reads_in_each_step_counts_among_the_layers(side):
    trainer = side.trainer
    reference = Layers(trainer.clock)
    trainer.ref_model = types.SimpleNamespace(base_model=reference)
    of_policy = trainer.compute_loss

    def with_reference():
        reference(torch.ones(2))
        return of_policy()

    trainer.compute_loss = with_reference
    assert parts.time_parts(side, 1, lambda: None) == (3 + 3 + 5, 2 + 1, 7)

"""What guard/callback.py expects of the events of TRL's trainer, which are those of Transformers' Trainer.

Read again: `Trainer._inner_training_loop` of Transformers, for where each event is called and with what; and
`AcceleratedOptimizer.step_was_skipped`.
"""

from __future__ import annotations

from reading_trl import bare_trainer, leaning
from transformers import TrainerCallback

EVENTS = ["on_train_begin", "on_optimizer_step", "on_step_end", "on_log", "on_train_end"]


def recorded_events(tiny, tmp_path) -> tuple:
    """(the trainer; of every event its name, its step, what it was given; the rates that the optimiser steps used)."""
    events, rates = [], []

    class Spy(TrainerCallback):
        pass

    def recorder(name):
        def record(self, args, state, control, **given):
            events.append((name, state.global_step, given))
            if name == "on_optimizer_step":
                rates.append(given["optimizer"].param_groups[0]["lr"])

        return record

    for name in EVENTS:
        setattr(Spy, name, recorder(name))
    trainer = bare_trainer(
        tiny,
        tmp_path,
        callbacks=[Spy()],
        warmup_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
    )
    trainer.train()
    return trainer, events, rates


def test_callbacks_get_the_model_and_the_optimizer_in_the_order_the_guard_expects(tiny, tmp_path):
    trainer, events, rates = recorded_events(tiny, tmp_path)
    step = ["on_optimizer_step", "on_step_end", "on_log"]
    names = [name for name, _, _ in events]
    assert names == ["on_train_begin", *step * 3, "on_log", "on_train_end"], leaning(
        "guard/callback.py, training/metrics_log.py", "the order of events"
    )
    for _, _, given in events:
        assert given["model"] is trainer.model, leaning("guard/callback.py", "model= in every event")
        assert given["optimizer"] is trainer.optimizer, leaning("guard/callback.py", "optimizer= in every event")
    assert rates == [0.0, 1e-3, 1e-3], leaning("guard/callback.py", "on_optimizer_step sees the rate that was used")
    assert trainer.optimizer.step_was_skipped is False, leaning("guard/callback.py", "Accelerate's step_was_skipped")

    with_norm = [(step, "grad_norm" in given["logs"]) for name, step, given in events if name == "on_log"]
    assert with_norm == [(1, True), (2, True), (3, True), (3, False)], leaning(
        "guard/callback.py, training/metrics_log.py", "every step logs its gradient norm, after its end"
    )

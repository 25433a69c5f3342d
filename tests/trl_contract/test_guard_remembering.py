"""What guard/remembering.py expects of the checkpoints of TRL's trainer, which are those of Transformers' Trainer.

Read again: `Trainer._save_checkpoint`, for `ExportableState`, and where `Trainer._inner_training_loop` reads the state.
"""

from __future__ import annotations

import json

from reading_trl import bare_trainer, leaning
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Counter(TrainerCallback, ExportableState):
    def __init__(self):
        self.steps, self.found = 0, None

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}

    def on_train_begin(self, args, state, control, **given):
        self.found = state.global_step, state.stateful_callbacks.get("Counter")

    def on_step_end(self, args, state, control, **given):
        self.steps += 1


def test_the_state_of_a_callback_lies_in_the_checkpoint_and_is_there_when_training_goes_on(tiny, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    bare_trainer(tiny, tmp_path, callbacks=[Counter()], **options).train()
    (checkpoint,) = [path for path in tmp_path.rglob("checkpoint-2") if path.is_dir()]
    kept = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["Counter"]
    expected = {"args": {}, "attributes": {"steps": 2}}
    assert kept == expected, leaning("guard/remembering.py", "the state of a callback in trainer_state.json")

    going_on = Counter()
    bare_trainer(tiny, tmp_path, callbacks=[going_on], **options).train(resume_from_checkpoint=str(checkpoint))
    assert going_on.found == (2, expected), leaning("guard/remembering.py", "it is there at on_train_begin")
    assert going_on.steps == 1, leaning("guard/remembering.py", "the steps that were taken are not taken again")

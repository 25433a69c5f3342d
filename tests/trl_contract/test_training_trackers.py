"""What training/trackers.py takes for granted of the trackers' callbacks.

Read again: in `transformers/integrations/integration_utils.py` the four callbacks, and what their `on_train_end` does.
"""

from __future__ import annotations

import inspect

import pytest
from reading_trl import leaning
from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK


@pytest.mark.parametrize(
    ("callback", "handle", "at_the_end"),
    [
        (TensorBoardCallback, "self.tb_writer", "self.tb_writer.close()"),
        (WandbCallback, "self._wandb", "self._log_model.is_enabled"),
        (TrackioCallback, "self._trackio", "self._trackio.finish()"),
        (MLflowCallback, "self._ml_flow", "self._ml_flow.end_run()"),
    ],
)
def test_a_tracker_has_a_handle_and_ends_its_run_with_the_training(callback, handle, at_the_end):
    assert callback in INTEGRATION_TO_CALLBACK.values()
    assert handle in inspect.getsource(callback.on_log), leaning("training/trackers.py", handle)
    assert at_the_end in inspect.getsource(callback.on_train_end), leaning("training/trackers.py", at_the_end)

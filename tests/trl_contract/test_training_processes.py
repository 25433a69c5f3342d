"""What training/processes.py expects of the process group that Transformers' Trainer trains in.

Read again: `TrainingArguments._setup_devices` of Transformers, and `PartialState.__init__` of accelerate.
"""

from __future__ import annotations

import inspect

from accelerate import PartialState
from reading_trl import leaning
from transformers import TrainingArguments

from dpo_recipes.training.processes import TIMEOUT


def test_a_group_that_is_there_is_taken_and_the_wait_is_transformers_own():
    timeout = next(field for name, field in TrainingArguments.__dataclass_fields__.items() if name == "ddp_timeout")
    assert timeout.default == TIMEOUT, leaning("training/processes.py", "how long one process waits for the others")
    source = inspect.getsource(PartialState.__init__)
    assert "if not torch.distributed.is_initialized()" in source, leaning(
        "training/processes.py", "a group made before"
    )

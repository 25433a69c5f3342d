"""What training/trainer_numbers.py keeps of TRL's trainer, and when it may give it back.

Read again: `Trainer._inner_training_loop` of Transformers up to `on_train_begin`, and for `_total_loss_scalar` its end;
`_total_train_tokens` in DPOTrainer.
"""

from __future__ import annotations

import inspect
import re

from reading_trl import SOURCE, leaning
from transformers import Trainer


def test_the_tokens_are_counted_from_init_on():
    made = re.search(r"\bself\._total_train_tokens = ", SOURCE["__init__"])
    assert made, leaning("training/trainer_numbers.py", "__init__ sets self._total_train_tokens")


def test_the_losses_of_a_run_are_summed_from_the_start_of_training_before_its_first_event():
    source = inspect.getsource(Trainer._inner_training_loop)
    places = [source.index(part) for part in ("self._initial_global_step = ", "self._total_loss_scalar = 0.0")]
    assert max(places) < source.index("on_train_begin("), leaning(
        "training/trainer_numbers.py", "_total_loss_scalar and _initial_global_step are set before on_train_begin"
    )

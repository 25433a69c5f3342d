"""Which positions are scored, and the order of what a step holds: planning/paper_run.py repeats them.

Read again: in `add_fused_lm_head` which positions are scored; in the trainer's `__init__` when the inputs need
gradients; in the collator which tensors a batch holds. tests/planning/test_memory.py compares the bytes of whole runs.
"""

from __future__ import annotations

import inspect

from reading_trl import SOURCE, leaning
from trl.trainer import utils

from dpo_recipes.recipe.trl_options import options


def test_where_there_is_no_triton_every_position_but_the_last_is_scored():
    source = inspect.getsource(utils.add_fused_lm_head)
    text = "hidden_states[mask] if compact else hidden_states.reshape(-1, hidden_states.size(-1))"
    assert text in source, leaning("planning/paper_run.py", "every position without Triton")
    assert "backbone_outputs.last_hidden_state[:, :-1]" in source, leaning("planning/paper_run.py", "but the last")


def test_gradient_checkpointing_is_on_unless_it_is_switched_off():
    assert options()["gradient_checkpointing"].default is True, leaning("planning/paper_run.py", "checkpointing is on")
    text = "model.enable_input_require_grads()"
    assert text in SOURCE["__init__"], leaning("planning/paper_run.py", "with an adapter, the inputs need gradients")

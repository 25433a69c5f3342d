"""The sizes that planning/memory.py copies from TRL's head, and the order of what a step holds.

Read again: trl/kernels/chunked_logprob.py whole, forward and backward, for every buffer that it allocates; in
`add_fused_lm_head` which positions are scored. tests/planning/test_memory.py compares the bytes with TRL's own.
"""

from __future__ import annotations

import inspect

from reading_trl import SOURCE, leaning
from trl.kernels import chunked_logprob
from trl.trainer import utils

from dpo_recipes.recipe.trl_options import options


def test_the_head_works_in_tiles_of_this_size():
    assert chunked_logprob.TOKEN_CHUNK_SIZE == 4096, leaning("planning/memory.py", "4096 positions in a tile")
    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == 32768, leaning("planning/memory.py", "32768 words in a tile")


def test_where_there_is_no_triton_every_position_but_the_last_is_scored():
    source = inspect.getsource(utils.add_fused_lm_head)
    text = "hidden_states[mask] if compact else hidden_states.reshape(-1, hidden_states.size(-1))"
    assert text in source, leaning("planning/memory.py", "every position without Triton")
    assert "backbone_outputs.last_hidden_state[:, :-1]" in source, leaning("planning/memory.py", "but the last")


def test_gradient_checkpointing_is_on_unless_it_is_switched_off():
    assert options()["gradient_checkpointing"].default is True, leaning("planning/memory.py", "checkpointing is on")
    text = "model.enable_input_require_grads()"
    assert text in SOURCE["__init__"], leaning("planning/memory.py", "with an adapter, the inputs need gradients")

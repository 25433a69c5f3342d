"""The sizes that planning/head.py copies from TRL's head.

Read again: trl/kernels/chunked_logprob.py whole, forward and backward, for every buffer that it allocates.
tests/planning/test_head.py compares the bytes with TRL's own.
"""

from __future__ import annotations

from reading_trl import leaning
from trl.kernels import chunked_logprob
from trl.trainer import utils

from dpo_recipes.planning.bound import TILE_POSITIONS, TRLS_TILE_WORDS


def test_the_head_works_in_tiles_of_this_size():
    assert chunked_logprob.TOKEN_CHUNK_SIZE == TILE_POSITIONS == 4096, leaning(
        "planning/head.py", "4096 positions in a tile"
    )
    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == TRLS_TILE_WORDS == 32768, leaning(
        "planning/head.py", "32768 words in a tile"
    )

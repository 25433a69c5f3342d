"""What shared_prefix/cpu_head.py leans on. Read again: trl/kernels/chunked_logprob.py, `ChunkedLogProbFunction` whole,
and its one call in `trl.trainer.utils.add_fused_lm_head`.
"""

from __future__ import annotations

import inspect
import re

from reading_trl import leaning
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from dpo_recipes.shared_prefix.cpu_head import NAME_OF_THE_FUNCTION, CPUHead

HEAD = inspect.getsource(utils.add_fused_lm_head)
BACKWARD = inspect.getsource(ChunkedLogProbFunction.backward)


def test_the_head_looks_its_function_up_by_name_at_each_call():
    assert vars(utils)[NAME_OF_THE_FUNCTION] is ChunkedLogProbFunction
    assert f"{NAME_OF_THE_FUNCTION}.apply(" in HEAD, leaning("shared_prefix/cpu_head.py", "the name of the function")


def test_the_arguments_are_these():
    arguments = list(inspect.signature(ChunkedLogProbFunction.forward).parameters)
    assert arguments == list(inspect.signature(CPUHead.forward).parameters), leaning(
        "shared_prefix/cpu_head.py", "what the head gives to its function"
    )


def test_the_head_expects_five_numbers_of_each_token():
    assert "log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1 = per_token" in HEAD, leaning(
        "shared_prefix/cpu_head.py", "what the head expects back, in this order"
    )


def test_backward_reads_this_of_its_context():
    read = set(re.findall(r"ctx\.(\w+)", BACKWARD))
    assert read == {"saved_tensors", "compute_dtype", "chunk_size", "kernel_args", "needs_input_grad"}, leaning(
        "shared_prefix/cpu_head.py", "what TRL's backward is given where the entropy has a gradient"
    )
    assert "hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors" in BACKWARD

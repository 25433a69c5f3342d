"""What training/reference_pass.py expects of the way TRL computes the reference beforehand.

Read again: `DPOTrainer._precompute_ref_logps` whole, and where `__init__` calls it.
"""

from __future__ import annotations

import importlib

import pytest
from reading_trl import assert_still_reads, leaning


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        (
            "_precompute_ref_logps",
            "Hasher.hash((dataset._fingerprint, model_hash))",
            "the cache key is of the model and the data",
        ),
        (
            "_precompute_ref_logps",
            "cache_file = dataset._get_cache_file_path(fingerprint)",
            "the data say where the file lies",
        ),
        (
            "_precompute_ref_logps",
            "self.compute_ref_log_probs(model, ",
            "one way to the reference",
        ),
        (
            "__init__",
            "self._precompute_ref_logps(",
            "after the trainer is built, so that self.args and the hash exist",
        ),
    ],
)
def test_the_source_reads_as_it_did(method, text, why):
    assert_still_reads("training/reference_pass.py", method, text, why)


def test_a_function_that_we_import_from_accelerate_is_there():
    accelerate = importlib.import_module("accelerate.utils")
    assert hasattr(accelerate, "broadcast_object_list"), leaning("training/reference_pass.py", "broadcast_object_list")

"""What training/pair_log.py replaces in the log of TRL's trainer.

Read again: `DPOTrainer._compute_loss`, for what it adds to `_metrics`, and `DPOTrainer.log`.
"""

from __future__ import annotations

import pytest
from reading_trl import assert_still_reads


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        *(
            (
                "_compute_loss",
                f'self._metrics[mode]["{name}"].append(',
                "one number a batch, the last of which we replace",
            )
            for name in (
                "rewards/accuracies",
                "rewards/margins",
                "rewards/chosen",
                "rewards/rejected",
                "logps/chosen",
                "logps/rejected",
            )
        ),
        (
            "log",
            "sum(val) / len(val) for key, val in self._metrics[mode].items()",
            "a mean over the list, so over pairs where it holds one number a pair",
        ),
    ],
)
def test_the_source_reads_as_it_did(method, text, why):
    assert_still_reads("training/pair_log.py", method, text, why)

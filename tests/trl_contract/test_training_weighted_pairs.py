"""What training/weighted_pairs.py expects of TRL's loss, which it asks once more for the pairs of each weight.

Read again: `DPOTrainer._compute_loss` whole, for what it logs, what it asks of the accelerator, and what of the loss is
no mean over pairs.
"""

from __future__ import annotations

import re

import pytest
from reading_trl import SOURCE, assert_still_reads, leaning


@pytest.mark.parametrize("name", ["aux_loss_enabled", "router_aux_loss_coef", "_metrics", "_total_train_tokens"])
def test_an_attribute_that_we_read_or_set_is_made_in_init(name):
    made = re.search(rf"\bself\.{name} = ", SOURCE["__init__"])
    assert made, leaning("training/weighted_pairs.py", f"__init__ sets self.{name}")


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        (
            "_compute_loss",
            "loss += per_sequence_loss.mean() * loss_weight",
            "a mean over the pairs, so that the pairs of one weight can be asked for on their own",
        ),
        (
            "_compute_loss",
            "loss = loss + self.router_aux_loss_coef * aux_loss",
            "the router's loss comes on top of the pairs'",
        ),
    ],
)
def test_the_source_reads_as_it_did(method, text, why):
    assert_still_reads("training/weighted_pairs.py", method, text, why)


def test_a_loss_asks_the_accelerator_for_its_device_and_to_gather_alone():
    """For the pairs of one weight it is asked beside the log, and beside other processes."""
    asked = set(re.findall(r"self\.accelerator\.(\w+)", SOURCE["_compute_loss"]))
    fact = "_compute_loss asks the accelerator for device, gather and gather_for_metrics where the reference is known"
    assert asked == {"device", "gather", "gather_for_metrics", "unwrap_model"}, leaning(
        "training/weighted_pairs.py", fact
    )

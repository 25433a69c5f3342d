"""What training/plugin_losses.py reads of TRL's batches and of the output of its forward.

Read again: `DPOTrainer._compute_loss` for its forward and for `ld_alpha`, and `DataCollatorForPreference`.
"""

from __future__ import annotations

import pytest
import torch
from reading_trl import assert_still_reads, bare_trainer, first_batch, leaning


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        (
            "_compute_loss",
            "logps.chunk(2, dim=0)",
            "chosen rows come first",
        ),
        (
            "_compute_loss",
            "logps = shared_logps + self.ld_alpha * tail_logps",
            "ld_alpha weighs the tokens past the shorter side's length",
        ),
    ],
)
def test_the_source_reads_as_it_did(method, text, why):
    assert_still_reads("training/plugin_losses.py", method, text, why)


def test_the_forward_gives_log_probabilities_of_completion_tokens_and_0_elsewhere(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path)
    batch = first_batch(trainer)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    rows = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = trainer.model(**rows, labels=labels, use_cache=False, fused_lm_head=True)
        logits = trainer.model(**rows).logits
    mask = batch["completion_mask"][:, 1:].bool()
    expected = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    assert output.log_probs.shape == mask.shape, leaning(
        "training/plugin_losses.py", "outputs.log_probs of shape (2 pairs, T - 1)"
    )
    assert (output.log_probs[~mask] == 0).all(), leaning(
        "training/plugin_losses.py", "0 outside the completion: sums need no mask"
    )
    torch.testing.assert_close(output.log_probs[mask], expected[mask], rtol=1e-4, atol=1e-4)


def test_a_batch_holds_the_chosen_rows_first(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path)
    row = trainer.train_dataset[0]
    columns = {"prompt_ids", "chosen_ids", "rejected_ids"}
    assert columns <= set(row), leaning("training/plugin_losses.py", "the tokenised columns")
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    for index, side in ((0, "chosen_ids"), (2, "rejected_ids")):
        ids = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
        assert ids == row["prompt_ids"] + row[side], leaning("training/plugin_losses.py", "rows are [chosen; rejected]")
        assert batch["completion_mask"][index].sum() == len(row[side])

"""The one call of the model that shared_prefix/forward.py answers, and the head that it calls in turn.

Read again: `add_fused_lm_head` and `FusedCausalLMOutput` in trl/trainer/utils.py; every `fused_lm_head=True` in
dpo_trainer.py; `disable_dropout_in_model`. tests/shared_prefix compare losses and gradients with TRL's own.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from reading_trl import SOURCE, leaning
from transformers import AutoModelForCausalLM
from trl.trainer import utils


@pytest.mark.parametrize(("method", "calls"), [("_compute_loss", 3), ("compute_ref_log_probs", 1)])
def test_the_model_is_called_in_one_way(method, calls):
    source = SOURCE[method]
    assert source.count("labels=labels, fused_lm_head=True)") == calls, leaning(
        "shared_prefix/forward.py", f"{method} calls the model with labels and fused_lm_head"
    )
    assert source.count("fused_lm_head=True") == calls, leaning("shared_prefix/forward.py", "and in no other way")


def test_shifted_labels_are_scored_without_shifting(tiny):
    """What a row of pairs needs: S positions that are chosen beforehand, and a target for each."""
    model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    utils.add_fused_lm_head(model)
    ids = torch.randint(0, 250, (1, 7))
    with torch.no_grad():
        shifted = model(input_ids=ids, shift_labels=ids, use_cache=False, fused_lm_head=True)
        expected = model(input_ids=ids).logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
    torch.testing.assert_close(shifted.log_probs, expected, rtol=1e-4, atol=1e-4)
    assert shifted.label_mask.all(), leaning("shared_prefix/forward.py", "label_mask marks what is scored")


def test_the_head_reads_the_last_hidden_state_of_the_backbone():
    source = inspect.getsource(utils.add_fused_lm_head)
    text = "hidden_states = backbone_outputs.last_hidden_state\n"
    assert text in source, leaning(
        "shared_prefix/forward.py", "the head reads last_hidden_state, which a hook shortens"
    )
    assert 'backbone_attr = "base_model"' in source, leaning("shared_prefix/forward.py", "of model.base_model")


def test_the_outputs_are_per_token_but_for_two():
    names = {field.name for field in dataclasses.fields(utils.FusedCausalLMOutput)}
    per_token = {"log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask"}
    assert names == per_token | {"loss", "aux_loss"}, leaning("shared_prefix/forward.py", "the outputs of the head")


def test_dropout_is_turned_off_in_modules_alone():
    source = inspect.getsource(utils.disable_dropout_in_model)
    assert "isinstance(module, torch.nn.Dropout)" in source, leaning(
        "shared_prefix/forward.py", "a share to drop that a layer holds as a number stays"
    )

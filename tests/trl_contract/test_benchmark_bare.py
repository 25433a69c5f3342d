"""What benchmark/bare.py leaves of DPOTrainer, and the head that it narrows to answers.

Read again: `DPOTrainer._prepare_dataset` and `_send_telemetry`; `add_fused_lm_head` in trl/trainer/utils.py, and there
which positions are scored with Triton and without; the defaults of DPOConfig that make a step fast or slow.
"""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import torch
from reading_trl import SOURCE, leaning
from transformers import AutoModelForCausalLM
from trl import DPOConfig
from trl.trainer import utils

from dpo_recipes.benchmark.bare import SPEED_OPTIONS, score_answers_only


def test_pairs_are_prepared_in_one_method_and_telemetry_is_sent_from_another():
    assert {"_prepare_dataset"} <= SOURCE.keys(), leaning("benchmark/bare.py", "DPOTrainer._prepare_dataset")
    from trl.trainer.base_trainer import _BaseTrainer

    assert hasattr(_BaseTrainer, "_send_telemetry"), leaning("benchmark/bare.py", "_send_telemetry")


@pytest.mark.parametrize("option", SPEED_OPTIONS)
def test_what_is_left_to_trl_is_an_option_of_it(option):
    assert option in {field.name for field in fields(DPOConfig)}, leaning("benchmark/bare.py", f"DPOConfig.{option}")


def test_with_triton_answers_alone_are_scored_and_without_every_position():
    source = inspect.getsource(utils.add_fused_lm_head)
    assert "compact = _use_triton(hidden_states.device)" in source, leaning(
        "benchmark/bare.py", "the head scores answers alone where Triton is, and every position elsewhere"
    )


def test_the_narrowed_head_gives_trls_own_numbers(tiny):
    torch.manual_seed(0)
    ids = torch.randint(3, 200, (4, 9))
    labels = ids.masked_fill(torch.arange(9) < torch.tensor([3, 5, 4, 9])[:, None], -100)
    outputs, gradients = [], []
    for narrow in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
        utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if narrow:
            score_answers_only(model)
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
        (output.log_probs.cos().sum() + output.entropy.sum().detach()).backward()
        outputs.append((output.log_probs, output.entropy))
        gradients.append(model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)

"""What training/trainer.py calls, overrides, reads and sets of DPOTrainer.

Read again: `DPOTrainer._compute_loss` and `compute_ref_log_probs` whole, for how often and with what the model is
called, and where the reference comes from; `_send_telemetry` in base_trainer.py; and the order of steps at the end of
`__init__`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re

import pytest
from reading_trl import SOURCE, assert_still_reads, bare_trainer, first_batch, leaning
from trl import DPOTrainer

from dpo_recipes.training.trainer import RecipeTrainer

# --- signatures and source


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_compute_loss", ["self", "model", "inputs", "return_outputs"]),
        ("compute_ref_log_probs", ["self", "model", "inputs"]),
        ("_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
        ("_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("_send_telemetry", ["self"]),
        ("prediction_step", ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        ("_load_rng_state", ["self", "checkpoint"]),
        ("_set_signature_columns_if_needed", ["self"]),
    ],
)
def test_a_method_that_we_call_or_override_has_this_signature(name, parameters):
    signature = inspect.signature(getattr(DPOTrainer, name))
    assert list(signature.parameters) == parameters, leaning(
        "training/trainer.py", f"DPOTrainer.{name}({', '.join(parameters)})"
    )


def test_epochs_end_where_the_control_says_that_training_stops():
    loop = inspect.getsource(DPOTrainer._inner_training_loop)
    reads = re.search(r"self\._run_epoch\([^)]*\)\s+if self\.control\.should_training_stop:\s+break", loop)
    assert reads, leaning(
        "training/trainer.py", "the loop of epochs runs _run_epoch, then looks at should_training_stop"
    )


@pytest.mark.parametrize(
    "name",
    [
        "precompute_ref_logps",
        "ld_alpha",
        "beta",
        "aux_loss_enabled",
        "ref_model",
    ],
)
def test_an_attribute_that_we_read_or_set_is_made_in_init(name):
    made = re.search(rf"\bself\.{name} = ", SOURCE["__init__"])
    assert made, leaning("training/trainer.py", f"__init__ sets self.{name}")


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        (
            "_compute_loss",
            'if self.precompute_ref_logps:\n            ref_chosen_logps, ref_rejected_logps = inputs["',
            "True means that the batch carries the reference",
        ),
        (
            "_compute_loss",
            "outputs = model(**model_kwargs, labels=labels, fused_lm_head=True)",
            "one policy forward",
        ),
        (
            "_set_signature_columns_if_needed",
            '"ref_rejected_logps",\n                ]',
            "the columns that reach the collator are a list, to which the weight is added",
        ),
        (
            "__init__",
            'self._prepare_dataset(train_dataset, processing_class, args, "train")',
            "the name of the data",
        ),
        (
            "log",
            'metrics = {f"eval_{key}": val',
            "TRL's metrics of held-out pairs begin with eval_",
        ),
    ],
)
def test_the_source_reads_as_it_did(method, text, why):
    assert_still_reads("training/trainer.py", method, text, why)


def test_telemetry_is_sent_by_the_one_method_that_is_overridden():
    base = inspect.getsource(importlib.import_module("trl.trainer.base_trainer"))
    assert base.count("send_telemetry(") == 3, leaning("training/trainer.py", "one call, one method and one request")
    assert "self._send_telemetry()" in base, leaning("training/trainer.py", "the call is of the method")
    assert RecipeTrainer._send_telemetry is not DPOTrainer._send_telemetry
    dpo_trainer = inspect.getsource(importlib.import_module("trl.trainer.dpo_trainer"))
    assert "send_telemetry" not in dpo_trainer, leaning("training/trainer.py", "nothing is sent elsewhere")


# --- TRL, running


def test_the_reference_in_the_batch_is_used_in_place_of_a_forward(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path)
    batch = first_batch(trainer)
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
    assert chosen.shape == rejected.shape == (2,)
    calls = []

    def counted(**inputs):
        calls.append(inputs)
        return trainer.model(**inputs)

    trainer.precompute_ref_logps = True
    far = {**batch, "ref_chosen_logps": chosen + 10, "ref_rejected_logps": rejected}
    loss = trainer._compute_loss(counted, far, False).item()
    expected = math.log1p(math.exp(1.0))  # h = -10 at beta 0.1
    assert loss == pytest.approx(expected, abs=1e-4), leaning("training/trainer.py", "the reference of the batch")
    assert len(calls) == 1, leaning("training/trainer.py", "one forward of the policy")
    assert calls[0]["fused_lm_head"] is True, leaning("training/trainer.py", "through the fused head")
    assert not {"ref_chosen_logps", "completion_mask"} & set(calls[0])


# --- 4-bit weights, as parameter_counts sees them


def test_4bit_weights_hold_two_numbers_in_each_element():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False).to("cpu")
    assert type(layer.weight).__name__ == "Params4bit", leaning("training/trainer.py", "the name of the class")
    assert layer.weight.numel() * 2 == 64 * 32, leaning("training/trainer.py", "two numbers in a byte")

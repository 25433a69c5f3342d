"""What training/trainer.py calls, overrides, reads and sets of DPOTrainer.

Read again: `DPOTrainer._compute_loss` and `compute_ref_log_probs` whole, for how often and with what the model is
called, and where the reference comes from; `_precompute_ref_logps`; `DataCollatorForPreference`; `_send_telemetry` in
base_trainer.py; and the order of steps at the end of `__init__`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re

import pytest
import torch
from reading_trl import SOURCE, bare_trainer, first_batch, leaning
from transformers import Trainer
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


@pytest.mark.parametrize(
    "name",
    [
        "precompute_ref_logps",
        "ld_alpha",
        "beta",
        "aux_loss_enabled",
        "router_aux_loss_coef",
        "_metrics",
        "_total_train_tokens",
        "_tokenizer",
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
            "_compute_loss",
            "logps.chunk(2, dim=0)",
            "chosen rows come first",
        ),
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
        (
            "_set_signature_columns_if_needed",
            '"ref_rejected_logps",\n                ]',
            "the columns that reach the collator are a list, to which the weight is added",
        ),
        (
            "_compute_loss",
            "logps = shared_logps + self.ld_alpha * tail_logps",
            "ld_alpha weighs the tokens past the shorter side's length",
        ),
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
        (
            "__init__",
            'self._prepare_dataset(train_dataset, processing_class, args, "train")',
            "the name of the data",
        ),
        (
            "__init__",
            "self._precompute_ref_logps(",
            "after the trainer is built, so that self.args and the hash exist",
        ),
        (
            "log",
            'metrics = {f"eval_{key}": val',
            "TRL's metrics of held-out pairs begin with eval_",
        ),
    ],
)
def test_the_source_reads_as_it_did(method, text, why):
    assert text in SOURCE[method], leaning("training/trainer.py", f"DPOTrainer.{method}: {why} ({text!r})")


def test_telemetry_is_sent_by_the_one_method_that_is_overridden():
    base = inspect.getsource(importlib.import_module("trl.trainer.base_trainer"))
    assert base.count("send_telemetry(") == 3, leaning("training/trainer.py", "one call, one method and one request")
    assert "self._send_telemetry()" in base, leaning("training/trainer.py", "the call is of the method")
    assert RecipeTrainer._send_telemetry is not DPOTrainer._send_telemetry
    dpo_trainer = inspect.getsource(importlib.import_module("trl.trainer.dpo_trainer"))
    assert "send_telemetry" not in dpo_trainer, leaning("training/trainer.py", "nothing is sent elsewhere")


def test_a_function_that_we_import_from_accelerate_is_there():
    accelerate = importlib.import_module("accelerate.utils")
    assert hasattr(accelerate, "broadcast_object_list"), leaning("training/trainer.py", "broadcast_object_list")


# --- TRL, running


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
        "training/trainer.py", "outputs.log_probs of shape (2 pairs, T - 1)"
    )
    assert (output.log_probs[~mask] == 0).all(), leaning(
        "training/trainer.py", "0 outside the completion: sums need no mask"
    )
    torch.testing.assert_close(output.log_probs[mask], expected[mask], rtol=1e-4, atol=1e-4)


def test_a_batch_holds_the_chosen_rows_first(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path)
    row = trainer.train_dataset[0]
    columns = {"prompt_ids", "chosen_ids", "rejected_ids"}
    assert columns <= set(row), leaning("training/trainer.py", "the tokenised columns")
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    for index, side in ((0, "chosen_ids"), (2, "rejected_ids")):
        ids = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
        assert ids == row["prompt_ids"] + row[side], leaning("training/trainer.py", "rows are [chosen; rejected]")
        assert batch["completion_mask"][index].sum() == len(row[side])


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


def test_a_loss_asks_the_accelerator_for_its_device_and_to_gather_alone():
    """For the pairs of one weight it is asked beside the log, and beside other processes."""
    asked = set(re.findall(r"self\.accelerator\.(\w+)", SOURCE["_compute_loss"]))
    fact = "_compute_loss asks the accelerator for device, gather and gather_for_metrics where the reference is known"
    assert asked == {"device", "gather", "gather_for_metrics", "unwrap_model"}, leaning("training/trainer.py", fact)


def test_the_losses_of_a_run_are_summed_from_the_start_of_training_before_its_first_event():
    source = inspect.getsource(Trainer._inner_training_loop)
    places = [source.index(part) for part in ("self._initial_global_step = ", "self._total_loss_scalar = 0.0")]
    assert max(places) < source.index("on_train_begin("), leaning(
        "training/trainer.py", "_total_loss_scalar and _initial_global_step are set before on_train_begin"
    )

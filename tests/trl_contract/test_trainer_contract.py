"""What we lean on in TRL 1.16, Transformers, PEFT and bitsandbytes: one test for each fact, naming the file that leans.

A failure here after an upgrade says which file to read again before anything else is believed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import re
import textwrap
from functools import cache

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from making import make_pairs
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from dpo_recipes.losses.trl_losses import COUPLED_LOSSES, F_DIVERGENCE_LOSSES, TRL_LOSSES, readers_of
from dpo_recipes.recipe import trl_options as dpoconfig
from dpo_recipes.training import trainer as ours

SOURCE = {name: inspect.getsource(f) for name, f in vars(DPOTrainer).items() if inspect.isfunction(f)}


def leaning(file: str, fact: str) -> str:
    return f"{file} leans on this, and it no longer holds: {fact}"


def test_the_version_is_the_one_that_was_read():
    assert trl.__version__.startswith("1.16."), leaning("trainer.py", "TRL 1.16 is installed")
    assert transformers.__version__.startswith("5.23."), leaning("dpoconfig.py, guard.py", "Transformers 5.23")


# --------------------------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_compute_loss", ["self", "model", "inputs", "return_outputs"]),
        ("compute_ref_log_probs", ["self", "model", "inputs"]),
        ("_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
        ("_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("_send_telemetry", ["self"]),
    ],
)
def test_a_method_that_we_call_or_override_has_this_signature(name, parameters):
    found = list(inspect.signature(getattr(DPOTrainer, name)).parameters)
    assert found == parameters, leaning("trainer.py", f"DPOTrainer.{name}({', '.join(parameters)})")


ATTRIBUTES = (
    "precompute_ref_logps", "ld_alpha", "beta", "aux_loss_enabled", "_tokenizer", "ref_model", "_precompute_model_hash",
)  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_that_we_read_or_set_is_made_in_init(name):
    assert re.search(rf"\bself\.{name} = ", SOURCE["__init__"]), leaning("trainer.py", f"__init__ sets self.{name}")


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        ("_precompute_ref_logps", "model_hash = self._precompute_model_hash", "the cache key starts from this hash"),
        ("_precompute_ref_logps", "Hasher.hash((dataset._fingerprint, model_hash))", "and from the data's fingerprint"),
        ("_precompute_ref_logps", 'os.environ.get("TQDM_DISABLE"', "train.py silences its bar so"),
        ("_precompute_ref_logps", "self.compute_ref_log_probs(model, ", "one way to the reference"),
        ("_compute_loss", 'if self.precompute_ref_logps:\n            ref_chosen_logps, ref_rejected_logps = inputs["',
         "True means that the batch carries the reference"),
        ("_compute_loss", "outputs = model(**model_kwargs, labels=labels, fused_lm_head=True)", "one policy forward"),
        ("_compute_loss", "logps.chunk(2, dim=0)", "chosen rows come first"),
        ("__init__", 'self._prepare_dataset(train_dataset, processing_class, args, "train")', "the name of the data"),
        ("__init__", "self._precompute_ref_logps(", "after the trainer is built, so that self.args and the hash exist"),
    ],
)  # fmt: skip
def test_the_source_reads_as_it_did(method, text, why):
    assert text in SOURCE[method], leaning("trainer.py", f"DPOTrainer.{method}: {why} ({text!r})")


@pytest.mark.parametrize("method", ["_compute_loss", "compute_ref_log_probs"])
def test_the_frozen_copy_of_a_continued_adapter_is_called_ref(method):
    text = 'adapter_name="ref" if "ref" in '
    assert text in SOURCE[method], leaning("model.py, train.py (Reference, _save)", "the reference adapter is 'ref'")


def test_telemetry_is_sent_by_the_one_method_that_is_overridden():
    base = inspect.getsource(importlib.import_module("trl.trainer.base_trainer"))
    assert base.count("send_telemetry(") == 3, leaning("trainer.py", "one call, one method and one request")
    assert "self._send_telemetry()" in base
    assert ours.RecipeTrainer._send_telemetry is not DPOTrainer._send_telemetry
    assert "send_telemetry" not in inspect.getsource(importlib.import_module("trl.trainer.dpo_trainer"))


@pytest.mark.parametrize(
    ("module", "name", "file"),
    [
        ("trl.trainer.utils", "use_adapter", "model.py"),
        ("accelerate.utils", "broadcast_object_list", "trainer.py"),
        ("transformers", "PrinterCallback", "train.py"),
        ("transformers.utils.logging", "disable_progress_bar", "train.py"),
        ("datasets", "disable_progress_bars", "train.py"),
        ("huggingface_hub.errors", "HFValidationError", "hub.py"),
        ("huggingface_hub.errors", "RevisionNotFoundError", "hub.py"),
        ("huggingface_hub.constants", "HF_HUB_OFFLINE", "hub.py"),
    ],
)
def test_a_name_that_we_import_is_there(module, name, file):
    assert hasattr(importlib.import_module(module), name), leaning(file, f"{module}.{name}")


# ------------------------------------------------------------------------------------------------------------- losses


@cache
def branches() -> dict[str, str]:
    """Loss name -> the source of its branch in DPOTrainer._compute_loss."""
    tree = ast.parse(textwrap.dedent(SOURCE["_compute_loss"]))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith("loss_type == "):
            found[ast.literal_eval(node.test.comparators[0])] = "\n".join(map(ast.unparse, node.body))
    return found


def test_the_losses_are_exactly_those_that_trl_computes_and_lists():
    listed = re.search(r"Should be one of (\[.*?\])", re.sub(r'"\s*f?"', "", SOURCE["_compute_loss"]), re.DOTALL)
    assert listed, leaning("losses.py", "TRL's message lists its losses")
    assert set(TRL_LOSSES) == set(ast.literal_eval(listed[1])), leaning("losses.py", "TRL_LOSSES")
    assert set(TRL_LOSSES) == set(branches()), leaning("losses.py", "TRL_LOSSES")
    assert len(TRL_LOSSES) == len(set(TRL_LOSSES)) == 15
    with_a_value = {name for name, loss in TRL_LOSSES.items() if loss.at_start is not None}
    assert with_a_value == set(TRL_LOSSES) - {"sft"}, leaning("losses/trl_losses.py", "a start value for each loss")


@pytest.mark.parametrize("option", ["label_smoothing", "discopop_tau"])
def test_an_option_of_some_losses_is_read_by_exactly_those(option):
    reads = {loss for loss, body in branches().items() if f".{option}" in body}
    assert reads == readers_of(option), leaning("losses/trl_losses.py", f"what reads {option!r}")


def test_the_divergences_and_the_losses_that_take_them_are_those_of_trl():
    accepted = re.search(r"f_divergence_loss_types = (\{.*?\})", SOURCE["__init__"], re.DOTALL)
    assert accepted and ast.literal_eval(accepted[1]) == F_DIVERGENCE_LOSSES, leaning(
        "losses/trl_losses.py", "F_DIVERGENCE_LOSSES"
    )
    known = re.findall(r'self\.f_divergence_type == "(\w+)"', SOURCE["_compute_loss"])
    assert tuple(known) == dpoconfig.CHOICES["f_divergence_type"], leaning("dpoconfig.py", "F_DIVERGENCES")


@pytest.mark.parametrize("option", dpoconfig.INSIDE_TRL_LOSSES)
def test_an_option_that_plugins_never_see_is_read_inside_trls_loss(option):
    assert f"self.{option}" in SOURCE["_compute_loss"], leaning("dpoconfig.py", f"INSIDE_TRL_LOSSES: {option}")


@pytest.mark.parametrize("loss", TRL_LOSSES)
def test_the_losses_that_couple_the_pairs_of_a_micro_batch_are_the_ones_we_name(loss):
    couples = "torch.sort(" in branches()[loss] or ".mean()" in branches()[loss]
    assert couples == (loss in COUPLED_LOSSES), leaning("settings.py", "COUPLED")


# ------------------------------------------------------------------------------------------------------ TRL, running


def bare(tiny, tmp_path, model=None, callbacks=None, **options) -> DPOTrainer:
    """TRL's own trainer on four pairs of the tiny model."""
    common = {
        "use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False, "disable_tqdm": True,
        "per_device_train_batch_size": 2, "max_length": 96, "logging_steps": 1, "save_strategy": "no", "max_steps": 3,
    }  # fmt: skip
    return DPOTrainer(
        model=model or AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32),
        args=DPOConfig(output_dir=str(tmp_path), **(common | options)),
        train_dataset=Dataset.from_list(make_pairs(4)),
        processing_class=AutoTokenizer.from_pretrained(tiny()),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if model is None else None,
        callbacks=callbacks,
    )


def first_batch(trainer) -> dict:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def test_without_a_loss_trl_returns_0_and_measures_everything(tiny, tmp_path):
    """A recipe with plugin losses alone asks TRL for no loss of its own, and TRL still fills the log."""
    measured = []
    for loss_type in ([], ["sigmoid"]):
        trainer = bare(tiny, tmp_path, loss_type=loss_type)
        batch = first_batch(trainer)
        with torch.no_grad():
            loss = float(trainer._compute_loss(trainer.model, batch, False))
        measured.append((loss, dict(trainer._metrics["train"])))
    (none, without), (some, beside) = measured
    assert none == 0.0 and some == pytest.approx(math.log(2), abs=1e-5), leaning("settings.py", "loss_type=[] is 0")
    assert without == beside and set(without) == {
        "entropy", "num_tokens", "logits/chosen", "logits/rejected", "mean_token_accuracy", "rewards/chosen",
        "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    }, leaning("trainer.py, evaluate.py, progress.py", "TRL's names of its metrics")  # fmt: skip


def test_the_forward_gives_log_probabilities_of_completion_tokens_and_0_elsewhere(tiny, tmp_path):
    trainer = bare(tiny, tmp_path)
    batch = first_batch(trainer)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    asked = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = trainer.model(**asked, labels=labels, use_cache=False, fused_lm_head=True)
        logits = trainer.model(**asked).logits
    mask = batch["completion_mask"][:, 1:].bool()
    taken = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    assert output.log_probs.shape == mask.shape, leaning("trainer.py", "outputs.log_probs of shape (2 pairs, T - 1)")
    assert (output.log_probs[~mask] == 0).all(), leaning("trainer.py", "0 outside the completion: sums need no mask")
    torch.testing.assert_close(output.log_probs[mask], taken[mask], rtol=1e-4, atol=1e-4)


def test_a_batch_holds_the_chosen_rows_first(tiny, tmp_path):
    trainer = bare(tiny, tmp_path)
    row = trainer.train_dataset[0]
    assert {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(row), leaning("trainer.py", "the tokenised columns")
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    for index, side in ((0, "chosen_ids"), (2, "rejected_ids")):
        ids = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
        assert ids == row["prompt_ids"] + row[side], leaning("trainer.py", "rows are [chosen; rejected]")
        assert batch["completion_mask"][index].sum() == len(row[side])


def test_the_reference_in_the_batch_is_used_in_place_of_a_forward(tiny, tmp_path):
    trainer = bare(tiny, tmp_path)
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
    assert loss == pytest.approx(math.log1p(math.exp(1.0)), abs=1e-4), leaning("trainer.py", "h = -10 at beta 0.1")
    assert len(calls) == 1 and calls[0]["fused_lm_head"] is True, leaning("trainer.py (_Recorder)", "one forward")
    assert not {"ref_chosen_logps", "completion_mask"} & set(calls[0])


def test_a_continued_adapter_gets_a_frozen_copy_named_ref(tiny, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    trainer = bare(tiny, tmp_path, model=model)
    assert set(trainer.model.peft_config) == {"default", "ref"}, leaning("model.py (Reference)", "adapter names")
    parameters = dict(trainer.model.named_parameters())
    copies = {name: p for name, p in parameters.items() if ".ref." in name}
    assert copies and not any(p.requires_grad for p in copies.values()), leaning("model.py", "the copy is frozen")
    for name, copy in copies.items():
        assert torch.equal(copy, parameters[name.replace(".ref.", ".default.")]) and copy.abs().max() > 0
    assert trainer.model.active_adapter == "default"


def test_callbacks_get_the_model_and_the_optimizer_in_the_order_the_guard_expects(tiny, tmp_path):
    seen = []

    class Spy(TrainerCallback):
        pass

    def record(event):
        def call(self, args, state, control, **given):
            logged = "grad_norm" in (given.get("logs") or {})
            seen.append((event, state.global_step, given["model"], given["optimizer"], logged))
            if event == "on_optimizer_step":
                rates.append(given["optimizer"].param_groups[0]["lr"])

        return call

    rates: list[float] = []
    for event in ("on_train_begin", "on_optimizer_step", "on_step_end", "on_log", "on_train_end"):
        setattr(Spy, event, record(event))
    trainer = bare(
        tiny, tmp_path, callbacks=[Spy()], warmup_steps=1, learning_rate=1e-3, lr_scheduler_type="constant_with_warmup"
    )
    trainer.train()
    step = ["on_optimizer_step", "on_step_end", "on_log"]
    assert [event for event, *_ in seen] == ["on_train_begin", *step * 3, "on_log", "on_train_end"], leaning(
        "guard.py (Watch), progress.py", "the order of events"
    )
    assert all(model is trainer.model for _, _, model, _, _ in seen), leaning("guard.py", "model= in every event")
    assert all(optimizer is trainer.optimizer for _, _, _, optimizer, _ in seen), leaning("guard.py", "optimizer=")
    assert rates == [0.0, 1e-3, 1e-3], leaning("guard.py", "on_optimizer_step sees the rate that the step used")
    assert trainer.optimizer.step_was_skipped is False, leaning("guard.py", "Accelerate's step_was_skipped")
    assert [(n, logged) for event, n, _, _, logged in seen if event == "on_log"] == [
        (1, True), (2, True), (3, True), (3, False)
    ], leaning("guard.py, progress.py", "every step logs its gradient norm, after its end")  # fmt: skip


def test_the_hash_of_a_module_is_its_weights(tiny):
    module = AutoModelForCausalLM.from_pretrained(tiny())
    first = ours.reference_cache.fingerprint(module)
    assert re.fullmatch("[0-9a-f]{64}", first) and ours.reference_cache.fingerprint(module) == first
    with torch.no_grad():
        module.lm_head.weight[3, 5] += 1e-3
    assert ours.reference_cache.fingerprint(module) != first, leaning("reference_cache.py", "a hash of every weight")


# -------------------------------------------------------------------------------------------- PEFT and bitsandbytes


def test_a_4bit_layer_repacks_itself_where_a_flag_allows_it():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(16, 16)
    assert layer.support_avx512bf16_for_cpu in (0, 1), leaning("model.py", "Linear4bit's flag")
    forward = inspect.getsource(bitsandbytes.nn.Linear4bit.forward)
    assert "self.support_avx512bf16_for_cpu\n" in forward, leaning("model.py", "the flag is asked at every forward")
    assert type(layer.weight).__name__ == "Params4bit", leaning("trainer.py (parameter_counts)", "the class's name")


def test_4bit_weights_hold_two_numbers_in_each_element():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False).to("cpu")
    assert layer.weight.numel() * 2 == 64 * 32, leaning("trainer.py (parameter_counts)", "two numbers in a byte")


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (PeftModel.from_pretrained, {"is_trainable"}),
        (PeftModel.set_adapter, {"adapter_name"}),
        (PeftModel.disable_adapter, set()),
        (LoraConfig, {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "task_type"}),
    ],
)
def test_peft_takes_what_we_give_it(function, names):
    assert names <= set(inspect.signature(function).parameters), leaning("model.py", f"PEFT: {function} takes {names}")


def test_a_dora_magnitude_has_the_name_that_is_kept_out_of_the_cast(tiny):
    base = AutoModelForCausalLM.from_pretrained(tiny())
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], use_dora=True))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_A" not in name]
    assert sum("lora_magnitude_vector" in name for name in names) == 2, leaning("model.py (_continued)", "DoRA's name")
    assert '"lora_magnitude_vector" not in name' in SOURCE["__init__"], leaning("model.py (_continued)", "TRL's cast")

"""Where models/reference.py finds the reference: the model with its adapter off, or its frozen copy.

Read again: in `DPOTrainer.__init__` what becomes of a model that has an adapter already, and in
`compute_ref_log_probs` and `_compute_loss` the adapter that is switched on for the reference.
"""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reading_trl import SOURCE, bare_trainer, leaning
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("method", ["_compute_loss", "compute_ref_log_probs"])
def test_the_frozen_copy_of_a_continued_adapter_is_called_ref(method):
    text = 'adapter_name="ref" if "ref" in '
    assert text in SOURCE[method], leaning("models/reference.py, commands/train.py", "the reference adapter is 'ref'")


def test_trl_switches_adapters_by_name():
    utils = importlib.import_module("trl.trainer.utils")
    assert hasattr(utils, "use_adapter"), leaning("models/reference.py", "trl.trainer.utils.use_adapter")
    parameters = inspect.signature(PeftModel.set_adapter).parameters
    assert "adapter_name" in parameters, leaning("models/reference.py", "PeftModel.set_adapter(adapter_name)")
    assert hasattr(PeftModel, "disable_adapter"), leaning("models/reference.py", "PeftModel.disable_adapter")


def test_a_continued_adapter_gets_a_frozen_copy_named_ref(tiny, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    trainer = bare_trainer(tiny, tmp_path, model=model)
    assert set(trainer.model.peft_config) == {"default", "ref"}, leaning("models/reference.py", "names of adapters")

    parameters = dict(trainer.model.named_parameters())
    copies = {name: parameter for name, parameter in parameters.items() if ".ref." in name}
    assert copies, leaning("models/reference.py", "the copy's parameters have .ref. in their names")
    assert not any(copy.requires_grad for copy in copies.values()), leaning("models/reference.py", "the copy is frozen")
    for name, copy in copies.items():
        assert torch.equal(copy, parameters[name.replace(".ref.", ".default.")])
        assert copy.abs().max() > 0
    assert trainer.model.active_adapter == "default"

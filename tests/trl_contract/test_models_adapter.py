"""What models/adapter.py gives to PEFT, and repeats of what DPOTrainer does to an adapter.

Read again: in `DPOTrainer.__init__` the cast of the adapter over quantised weights, and what it excludes.
"""

from __future__ import annotations

import inspect

import pytest
from peft import LoraConfig, get_peft_model
from reading_trl import SOURCE, leaning
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize(
    "name",
    ["r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "task_type"],
)
def test_lora_takes_what_we_give_it(name):
    assert name in inspect.signature(LoraConfig).parameters, leaning("models/adapter.py", f"LoraConfig({name}=)")


def test_over_quantised_weights_trl_trains_the_adapter_in_bf16_all_but_doras_magnitudes(tiny):
    cast = (
        'if param.requires_grad and "lora_magnitude_vector" not in name:\n'
        "                    param.data = param.data.to(torch.bfloat16)"
    )
    assert cast in SOURCE["__init__"], leaning("models/adapter.py", "TRL's cast of the adapter")


def test_a_dora_magnitude_has_the_name_that_is_kept_out_of_the_cast(tiny):
    base = AutoModelForCausalLM.from_pretrained(tiny())
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], use_dora=True))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    magnitudes = [name for name in trained if "lora_magnitude_vector" in name]
    assert len(magnitudes) == 2, leaning("models/adapter.py", "the name of DoRA's magnitudes, one a layer")

"""What exports/trl_run.py relies on in `trl dpo`: its options, and that it knows no model but the one it names.

Read again: `trl/scripts/dpo.py`, `ModelConfig.__post_init__`, `get_peft_config` and `get_quantization_config`.
tests/exports/test_trl_run.py compares the losses of what is written with ours.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from reading_trl import SOURCE, leaning
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config
from trl.scripts import dpo


def test_the_options_are_still_there():
    names = {field.name for kind in (ModelConfig, ScriptArguments) for field in dataclasses.fields(kind)}
    written = {
        "model_name_or_path",
        "model_revision",
        "dtype",
        "attn_implementation",
        "use_peft",
        "lora_r",
        "lora_alpha",
    }
    written |= {"lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "load_in_4bit", "use_bnb_nested_quant"}
    written |= {"dataset_name", "dataset_train_split", "dataset_test_split"}
    assert written <= names, leaning("exports/trl_run.py", f"options of `trl dpo`: {sorted(written - names)}")


def test_one_module_alone_is_a_pattern_and_4_bits_are_nf4():
    one = get_peft_config(ModelConfig(use_peft=True, lora_target_modules=["q_proj"]))
    assert one.target_modules == "q_proj", leaning("exports/trl_run.py", "a list of one name becomes that name")
    packed = get_quantization_config(ModelConfig(load_in_4bit=True, dtype="bfloat16"))
    assert packed.bnb_4bit_quant_type == "nf4", leaning("exports/trl_run.py", "4 bits are NF4 unless said otherwise")


@pytest.mark.parametrize("absent", ["ref_model=", "processing_class=", "PeftModel"])
def test_trl_dpo_takes_no(absent):
    knows_none = absent not in inspect.getsource(dpo.main)
    assert knows_none, leaning("exports/trl_run.py", f"`trl dpo` knows no {absent}, so no YAML is written")


def test_the_columns_of_a_pair():
    for column in ('example.get("tools")', 'example.get("chat_template_kwargs", {})', 'example["prompt"]'):
        assert column in SOURCE["_prepare_dataset"], leaning("exports/trl_run.py", f"DPOTrainer reads {column}")

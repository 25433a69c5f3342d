"""What yaml_files/trl.py takes for said where a file of `trl dpo` says nothing.

Read again: the defaults of ModelConfig and of ScriptArguments. Those of DPOConfig are read from its source.
"""

from __future__ import annotations

from reading_trl import leaning
from trl import ModelConfig, ScriptArguments


def test_the_defaults_are_those_that_were_read():
    model, script = ModelConfig(), ScriptArguments()
    lora = (model.use_peft, model.lora_r, model.lora_alpha, model.lora_target_modules, model.use_bnb_nested_quant)
    assert lora == (False, 16, 32, None, False), leaning("yaml_files/trl.py", "the defaults of ModelConfig")
    splits = (script.dataset_train_split, script.dataset_test_split)
    assert splits == ("train", "test"), leaning("yaml_files/trl.py", "the names of the splits")

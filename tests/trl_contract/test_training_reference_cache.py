"""What training/reference_cache.py takes for all that reference log-probabilities depend on.

Read again: `DPOTrainer.compute_ref_log_probs` for every option that it reads, `DataCollatorForPreference` for what it
does to token ids, and the columns that `_prepare_dataset` makes.
"""

from __future__ import annotations

import re

import torch
from reading_trl import SOURCE, leaning
from transformers import AutoModelForCausalLM
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_recipes.training.reference_cache import IDS, fingerprint


def test_the_hash_of_a_model_changes_with_any_of_its_weights(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny())
    first = fingerprint(model)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert fingerprint(model) == first
    with torch.no_grad():
        model.lm_head.weight[3, 5] += 1e-3
    assert fingerprint(model) != first, leaning("training/reference_cache.py", "a hash of every weight")


def test_the_columns_are_those_that_trls_collator_reads():
    example = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}
    assert set(IDS) == example.keys(), leaning("training/reference_cache.py", "the columns of token ids")
    batch = DataCollatorForPreference(pad_token_id=0)([example])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [1, 2, 4, 5]]


def test_the_reference_pass_reads_no_option_but_those_of_the_key():
    read = set(re.findall(r"self\.(?:args\.)?(\w+)", SOURCE["compute_ref_log_probs"]))
    decide_the_numbers = {"ld_alpha"}
    decide_the_way = {"accelerator", "model", "ref_model", "args", "gradient_checkpointing_kwargs"}
    unknown = read - decide_the_numbers - decide_the_way
    assert not unknown, leaning("training/reference_cache.py", f"ld_alpha alone, and not {sorted(unknown)}")

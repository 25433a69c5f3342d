"""TRL as the contract tests read it: its source, its own trainer on a few pairs, and the words of a failure."""

from __future__ import annotations

import inspect

import torch
from datasets import Dataset
from making import make_pairs
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

# Method of DPOTrainer -> its source.
SOURCE = {name: inspect.getsource(method) for name, method in vars(DPOTrainer).items() if inspect.isfunction(method)}


def leaning(module: str, fact: str) -> str:
    """What a failure says: which file of the package to read again, before anything else is believed."""
    return f"{module} leans on this, and it no longer holds: {fact}"


def assert_still_reads(module: str, method: str, text: str, why: str) -> None:
    """A line of DPOTrainer's source stands as it did."""
    assert text in SOURCE[method], leaning(module, f"DPOTrainer.{method}: {why} ({text!r})")


def bare_trainer(tiny, tmp_path, model=None, callbacks=None, **options) -> DPOTrainer:
    """TRL's own trainer on four pairs of the tiny model, with a new adapter unless a model is given."""
    arguments = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "per_device_train_batch_size": 2,
        "max_length": 96,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_steps": 3,
        **options,
    }
    adapter = None
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
        adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    return DPOTrainer(
        model=model,
        args=DPOConfig(output_dir=str(tmp_path), **arguments),
        train_dataset=Dataset.from_list(make_pairs(4)),
        processing_class=AutoTokenizer.from_pretrained(tiny()),
        peft_config=adapter,
        callbacks=callbacks,
    )


def first_batch(trainer) -> dict:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))

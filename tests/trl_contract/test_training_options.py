"""What training/options.py finds in Transformers' Trainer, from which TRL's inherits.

Read again: `Trainer.get_optimizer_cls_and_kwargs`, `get_scheduler`, and the names of integrations and optimizers.
"""

from __future__ import annotations

import pytest
import torch
from reading_trl import leaning
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames
from trl import DPOConfig

from dpo_recipes.recipe.trl_options import PACKAGES, options


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
def test_an_optimizer_and_a_schedule_can_be_made_without_a_model(name, tmp_path):
    arguments = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, optim=name)
    optimizer_class, numbers = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(1))], **numbers)
    kwargs = {"num_warmup_steps": 1, "num_training_steps": 10, "scheduler_specific_kwargs": {}}
    assert get_scheduler("linear", optimizer=optimizer, **kwargs), leaning("training/options.py", "get_scheduler")


def test_the_loggers_and_optimizers_are_those_of_the_tables():
    loggers = {*INTEGRATION_TO_CALLBACK, "all", "none"}
    assert set(options()["report_to"].choices) == loggers, leaning("training/options.py", "the integrations")
    assert loggers >= PACKAGES["report_to"].keys()
    names = {member.value for member in OptimizerNames}
    assert names >= PACKAGES["optim"].keys(), leaning("training/options.py", "the optimizers")

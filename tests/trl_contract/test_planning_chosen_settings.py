"""What planning/chosen_settings.py leans on. Read again: DPOConfig's own defaults, `DPOTrainer.__init__` where it asks
for a router's loss, and `Trainer.training_step`, which takes the mean of the micro-batches of a step.
"""

from __future__ import annotations

import inspect

from reading_trl import SOURCE, leaning
from transformers import Trainer
from trl import DPOConfig


def test_activations_are_computed_twice_unless_somebody_says_otherwise():
    default = DPOConfig.__dataclass_fields__["gradient_checkpointing"].default
    assert default is True, leaning("planning/chosen_settings.py", "TRL switches gradient checkpointing on")


def test_a_model_has_a_routers_loss_where_its_config_has_output_router_logits():
    says_so = (
        'self.aux_loss_enabled = hasattr(text_config, "output_router_logits") and self.router_aux_loss_coef != 0.0'
    )
    assert says_so in SOURCE["__init__"], leaning(
        "planning/chosen_settings.py", "which models have a loss of all tokens of a micro-batch"
    )


def test_a_step_is_the_mean_of_its_micro_batches_whatever_their_sizes():
    divided = "loss = loss / self.current_gradient_accumulation_steps"
    assert divided in inspect.getsource(Trainer.training_step), leaning(
        "planning/chosen_settings.py", "micro-batches weigh alike"
    )


def test_the_fused_optimiser_is_inherited():
    default = DPOConfig.__dataclass_fields__["optim"].default
    assert default == "adamw_torch_fused", leaning("planning/chosen_settings.py", "there is no optimiser to be chosen")

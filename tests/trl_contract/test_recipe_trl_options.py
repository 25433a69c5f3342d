"""What recipe/trl_options.py and its tables say of DPOConfig's fields.

Read again: DPOConfig and what it inherits from, field by field, against trl_options.toml: a new name may be an alias of
ours or do nothing in DPO; a name that is gone needs its remedy. That names, defaults and choices are those of the
imported class, and that every removed name is, is held by tests/recipe/test_trl_options.py.
"""

from __future__ import annotations

import inspect
import re

import pytest
from reading_trl import SOURCE, bare_trainer, leaning
from transformers import TrainingArguments
from trl import DPOConfig
from trl.trainer.base_config import _BaseConfig

from dpo_recipes.recipe.trl_options import CHOICES, EVALUATED, INSIDE_TRL_LOSSES, SOURCES


def test_dpoconfig_inherits_from_the_classes_that_are_read_in_that_order():
    inherited = [DPOConfig, _BaseConfig, TrainingArguments, object]
    assert list(DPOConfig.__mro__) == inherited, leaning("recipe/trl_options.py", "DPOConfig's bases")
    names = [cls.__name__ for cls in inherited[:-1]]
    assert list(SOURCES.values()) == names[::-1], leaning("recipe/trl_options.py", "a later class overrides")


def test_the_divergences_are_those_that_trl_computes():
    computed = re.findall(r'self\.f_divergence_type == "(\w+)"', SOURCE["_compute_loss"])
    assert tuple(computed) == CHOICES["f_divergence_type"], leaning("recipe/trl_options.py", "f_divergence_type")


@pytest.mark.parametrize("option", INSIDE_TRL_LOSSES)
def test_an_option_that_plugins_never_see_is_read_inside_trls_loss(option):
    assert f"self.{option}" in SOURCE["_compute_loss"], leaning("recipe/trl_options.py", f"{option} acts in the loss")


def test_label_smoothing_from_a_half_on_is_refused_for_robust():
    text = 'if "robust" in self.loss_types and not (0.0 <= self.label_smoothing < 0.5):'
    assert text in SOURCE["__init__"], leaning("recipe/trl_options.py", "label_smoothing lies in [0, 0.5)")


def test_padding_free_is_switched_off():
    assert "self.padding_free = False" in SOURCE["__init__"], leaning("recipe/trl_options.py", "padding_free is inert")


@pytest.mark.parametrize("option", ["label_smoothing_factor", "average_tokens_across_devices"])
def test_an_inert_option_is_not_read_by_the_trainer(option):
    read = [name for name, source in SOURCE.items() if re.search(rf"args\.{option}\b", source)]
    assert read == [], leaning("recipe/trl_options.py", f"{option} is inert")


def test_removed_names_have_not_come_back_under_a_deprecation():
    """A name that DPOConfig takes again, with a warning, would be refused here with a remedy of yesterday."""
    taken = inspect.signature(DPOConfig).parameters
    assert "max_prompt_length" not in taken, leaning("recipe/trl_options.py", "max_prompt_length is gone")
    assert "warmup_ratio" not in taken, leaning("recipe/trl_options.py", "warmup_ratio is gone")


def test_the_numbers_that_tell_the_best_model_are_those_of_an_evaluation_while_training(tiny, tmp_path):
    trainer = bare_trainer(tiny, tmp_path)
    given = {name.removeprefix("eval_") for name in trainer.evaluate(trainer.train_dataset) if name.startswith("eval_")}
    tells_nothing = {"runtime", "samples_per_second", "steps_per_second", "num_tokens", "model_preparation_time"}
    assert given - tells_nothing == {*EVALUATED} - {"aux_loss"}, leaning(
        "recipe/trl_options.py", "what an evaluation gives"
    )
    assert '_metrics[mode]["aux_loss"]' in SOURCE["_compute_loss"], leaning("recipe/trl_options.py", "aux_loss")


def test_a_router_is_seen_in_the_configuration():
    text = 'hasattr(text_config, "output_router_logits") and self.router_aux_loss_coef != 0.0'
    assert text in SOURCE["__init__"], leaning("recipe/trl_options.py", "when there is an aux_loss")

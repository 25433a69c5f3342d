"""DPOConfig as read from its source is DPOConfig as imported; and what may not stand in `trl={...}`."""

from __future__ import annotations

import dataclasses
import math

import pytest

from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.recipe import trl_options as dpoconfig
from dpo_recipes.recipe.trl_options import ALIASES, INERT, NEEDS, OURS, READ_BY, REMOVED, check, options


@pytest.fixture(scope="module")
def real():
    from trl import DPOConfig

    return {f.name: f for f in dataclasses.fields(DPOConfig) if f.init}


def test_names_are_those_of_the_imported_class(real):
    assert options().keys() == real.keys()


def test_defaults_are_those_of_the_imported_class(real):
    for name, f in real.items():
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        default = getattr(default, "value", default)  # an enum by its text
        assert options()[name].default == default, name


def test_choices_are_those_of_the_imported_classes(real):
    from transformers import SchedulerType
    from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
    from transformers.training_args import OptimizerNames

    enums = {
        "lr_scheduler_type": SchedulerType, "optim": OptimizerNames, "eval_strategy": IntervalStrategy,
        "logging_strategy": IntervalStrategy, "save_strategy": SaveStrategy, "hub_strategy": HubStrategy,
    }  # fmt: skip
    for name, enum in enums.items():
        assert options()[name].choices == tuple(member.value for member in enum), name
    for name, f in real.items():
        if isinstance(f.metadata.get("choices"), list) and name != "truncation_mode":
            assert options()[name].choices == tuple(f.metadata["choices"]), name


def test_the_tables_name_fields_that_exist_and_the_removed_do_not(real):
    needed = {other for alternatives in NEEDS.values() for other in alternatives}
    for table in (OURS, INERT, NEEDS, READ_BY, dpoconfig.INSIDE_TRL_LOSSES, needed):
        assert set(table) <= real.keys()
    assert not (REMOVED.keys() | ALIASES.keys()) & real.keys()


def test_no_name_stands_in_two_tables():
    seen = [*OURS, *INERT, *REMOVED, *ALIASES, *NEEDS]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_name_raises_type_error_in_trl_and_says_what_to_write_here(name, tmp_path):
    from trl import DPOConfig

    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        DPOConfig(output_dir=str(tmp_path), **{name: None})
    assert message({name: 1}) == f"trl.{name}=1 is {REMOVED[name]}."


def test_a_package_that_is_not_there_is_a_sentence():
    with pytest.raises(RecipeError, match=r"no_such_package is not installed: run `make install`"):
        dpoconfig._classes("no_such_package/x.py")


def message(given, losses=("sigmoid",), plugins=False, precomputes=False) -> str:
    with pytest.raises(UsageError) as error:
        check(given, set(losses), plugins, precomputes)
    return str(error.value)


@pytest.mark.parametrize("name", OURS)
def test_what_has_a_field_of_its_own_is_refused(name):
    assert message({name: 1}) == f"trl.{name}=1 has a place of its own: set {OURS[name]}."


@pytest.mark.parametrize("name", INERT)
def test_what_does_nothing_is_refused(name):
    assert message({name: 1}) == f"trl.{name}=1 does nothing: {INERT[name]}."


# option -> (off, on), for the options that others need
SWITCHES = {
    "f_divergence_type": ("js_divergence", "alpha_divergence"),
    "eval_strategy": ("no", "steps"), "save_strategy": ("no", "steps"),
    "logging_strategy": ("epoch", "steps"), "report_to": ("none", ["wandb"]), "fsdp": (None, "full_shard"),
    "dataloader_num_workers": (0, 2), "lr_scheduler_type": ("linear", "reduce_lr_on_plateau"),
}  # fmt: skip
VALUES = {"bool": True, "int": 3, "float": 0.3, "dict": {"key": 1}, "str": "other"}


@pytest.mark.parametrize("name", NEEDS)
def test_what_needs_another_option_is_refused_without_it_and_taken_with_each_alternative(name):
    default = options()[name].default
    value = [v for t, v in VALUES.items() if t in options()[name].annotation and v != default][0]
    value = ([c for c in options()[name].choices if c != default] or [value])[0]
    off = {other: SWITCHES.get(other, (False, True))[0] for other in NEEDS[name]}
    assert f"trl.{name}={value!r} would do nothing here: read with {next(iter(NEEDS[name]))}" in message(
        {**off, name: value}
    )
    for other, wanted in NEEDS[name].items():
        on = SWITCHES.get(other, (False, True))[1] if wanted is True else wanted
        check({**off, other: on, name: value}, {"sigmoid"}, False)


@pytest.mark.parametrize(
    ("given", "losses", "text"),
    [
        ({"max_grad_nrom": 1.0}, (), "is not a field of the installed DPOConfig. Did you mean 'max_grad_norm'?"),
        ({"lora_r": 1}, (), "trl.lora_r=1 is not a field of the installed DPOConfig. It is adapter.r, a"),
        ({"max_grad_norm": "big"}, (), "='big' has the wrong type: DPOConfig declares max_grad_norm: float."),
        ({"max_grad_norm": math.nan}, (), "trl.max_grad_norm=nan has the wrong type"),
        ({"max_grad_norm": True}, (), "trl.max_grad_norm=True has the wrong type"),
        ({"max_grad_norm": -1}, (), "trl.max_grad_norm=-1 is too small to mean anything: TRL's own is 1.0."),
        ({"max_steps": 0}, (), "trl.max_steps=0 is too small to mean anything: TRL's own is -1."),
        ({"logging_nan_inf_filter": 1}, (), "wrong type: DPOConfig declares logging_nan_inf_filter: bool."),
        ({"lr_scheduler_kwargs": "num_cycles:2"}, (), "wrong type: DPOConfig declares lr_scheduler_kwargs: dict"),
        ({"lr_scheduler_type": "cosin"}, (), "trl.lr_scheduler_type='cosin' is not one of linear, cosine, "),
        ({"lr_scheduler_type": "cosin"}, (), "greedy. Did you mean 'cosine'?"),
        ({"eval_strategy": "step"}, (), "is not one of no, steps, epoch. Did you mean 'steps'?"),
        ({"f_divergence_type": "js"}, (), "is not one of reverse_kl, forward_kl, js_divergence, alpha_divergence."),
        ({"truncation_mode": "keep_end"}, (), "trl.truncation_mode='keep_end' is not one of keep_start."),
        ({"label_smoothing": 0.1}, (), "read by loss aot, aot_unpaired, exo_pair, robust only; TRL's"),
        ({"label_smoothing": 0.1}, ("cdpo",), "loss='cdpo' is label smoothing."),
        ({"discopop_tau": 0.1}, (), "trl.discopop_tau=0.1 would do nothing here: read by loss discopop only."),
        ({"f_divergence_type": "js_divergence"}, ("apo_zero",), "it has no meaning for loss='apo_zero'. Delete it."),
        ({"use_weighting": True}, ("aot",), "do nothing here: it has no meaning for loss='aot'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(given, losses, text):
    assert text in message(given, losses or ("sigmoid",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ld_alpha", 0.5),
        ("f_divergence_type", "js_divergence"),
        ("use_weighting", True),
        ("f_alpha_divergence_coef", 0.3),
    ],
)
def test_what_trl_applies_inside_its_own_losses_is_refused_beside_a_plugin(name, value):
    beside = {"f_alpha_divergence_coef": {"f_divergence_type": "alpha_divergence"}}.get(name, {})
    text = message({name: value, **beside}, ("cdpo", "sigmoid"), plugins=True)
    assert (
        f"trl.{name}={value!r} would do nothing here: it acts inside TRL's own losses and would never reach the "
        in text
    )
    check({name: value, **beside}, {"sigmoid"}, False)
    check({name: options()[name].default}, {"cdpo"}, True)


@pytest.mark.parametrize(
    "given",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "max_grad_norm": 0.5, "weight_decay": 0, "max_steps": 7},
        {"lr_scheduler_kwargs": {"num_cycles": 2}}, {"lr_scheduler_kwargs": '{"num_cycles": 2}'},
        {"deepspeed": "zero3.json"},
        {"report_to": "none"}, {"report_to": ["wandb", "trackio"], "run_name": "one"},
        {"eval_strategy": "steps", "eval_steps": 5},
        {"pad_to_multiple_of": None}, {"label_smoothing": 0.0}, {"truncation_mode": "keep_start"},
        {"optim_args": "a=1,b=2"},
        {"warmup_steps": 10, "logging_steps": 5, "save_steps": 0.5}, {"gradient_checkpointing": False}, {},
    ],
)  # fmt: skip
def test_what_works_is_taken(given):
    check(given, {"sigmoid"}, False)


def test_the_batch_of_the_precomputation_is_taken_where_the_mode_precomputes():
    assert "read with precompute_ref_log_probs only" in message({"precompute_ref_batch_size": 4})
    check({"precompute_ref_batch_size": 4}, {"sigmoid"}, False, precomputes=True)

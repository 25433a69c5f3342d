"""DPOConfig as read from its source is DPOConfig as imported; and what may not stand in `trl={...}`."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.losses.trl_losses import TRL_LOSSES, readers_of
from dpo_recipes.recipe import trl_options
from dpo_recipes.recipe.trl_options import (
    ALIASES,
    EVALUATED,
    HARMFUL,
    INERT,
    INSIDE_TRL_LOSSES,
    LIMITS,
    NEEDS,
    OURS,
    REMOVED,
    _refuse_out_of_range,
    fits_annotation,
    options,
    refuse_unusable_options,
)

# --- the fields, as read


@pytest.fixture(scope="module")
def real():
    """Name -> dataclass field of the imported DPOConfig."""
    from trl import DPOConfig

    return {field.name: field for field in dataclasses.fields(DPOConfig) if field.init}


def test_names_are_those_of_the_imported_class(real):
    assert options().keys() == real.keys()


def test_defaults_are_those_of_the_imported_class(real):
    for name, field in real.items():
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        default = getattr(default, "value", default)  # an enum by its text
        assert options()[name].default == default, name


def test_choices_are_those_of_the_imported_classes(real):
    from transformers import SchedulerType
    from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
    from transformers.training_args import OptimizerNames

    enums = {
        "lr_scheduler_type": SchedulerType,
        "optim": OptimizerNames,
        "eval_strategy": IntervalStrategy,
        "logging_strategy": IntervalStrategy,
        "save_strategy": SaveStrategy,
        "hub_strategy": HubStrategy,
    }
    for name, enum in enums.items():
        assert options()[name].choices == tuple(member.value for member in enum), name
    for name, field in real.items():
        choices = field.metadata.get("choices")
        if isinstance(choices, list) and name not in ("truncation_mode", "train_sampling_strategy"):
            assert options()[name].choices == tuple(choices), name


def test_a_package_that_is_not_there_is_a_sentence():
    with pytest.raises(RecipeError, match=r"no_such_package is not installed: run `make install`"):
        trl_options._classes("no_such_package/x.py")


@pytest.mark.parametrize(
    ("value", "annotation", "fitting"),
    [
        (1, "int", True),
        (1, "float | None", True),
        (1, "bool", False),
        (True, "bool", True),
        (True, "float", False),
        (0.5, "float", True),
        (0.5, "int", False),
        (math.inf, "float", False),
        (None, "float | None", True),
        (None, "float", False),
        ("cosine", "SchedulerType | str", True),
        ("cosine", "IntervalStrategy", True),
        ("cosine", "float | None", False),
        ("steps", "dict[str, Any] | str | None", False),
        ('{"a": 1}', "dict[str, Any] | str | None", True),
        ("zero3.json", "dict | str | None", True),
        ({"a": 1}, "dict[str, Any] | str | None", True),
        (["wandb"], "None | str | list[str]", True),
        (["wandb"], "str", False),
        (False, "str | None | Literal[False]", True),
        (True, "str | None | Literal[False]", False),
    ],
)
def test_a_value_fits_an_annotation_as_dpoconfig_writes_it(value, annotation, fitting):
    assert fits_annotation(value, annotation) is fitting


# --- the tables


def test_the_tables_name_fields_that_exist_and_the_removed_do_not(real):
    needed = set().union(*NEEDS.values())
    read_by_some = set().union(*[loss.reads for loss in TRL_LOSSES.values()])
    for names in (OURS, INERT, HARMFUL, LIMITS, NEEDS, INSIDE_TRL_LOSSES, needed, read_by_some):
        assert set(names) <= real.keys()
    assert not (REMOVED.keys() | ALIASES.keys()) & real.keys()


def test_no_name_stands_in_two_tables():
    names = [*OURS, *INERT, *HARMFUL, *REMOVED, *ALIASES, *NEEDS]
    assert len(names) == len(set(names))


# --- what is refused


def message(given, losses=("sigmoid",), precomputes=False) -> str:
    with pytest.raises(UsageError) as error:
        refuse_unusable_options(given, losses, precomputes)
    return str(error.value)


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_name_raises_type_error_in_trl_and_says_what_to_write_here(name, tmp_path):
    from trl import DPOConfig

    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        DPOConfig(output_dir=str(tmp_path), **{name: None})
    assert message({name: 1}) == f"trl.{name}=1 is {REMOVED[name]}."


@pytest.mark.parametrize("name", OURS)
def test_what_has_a_field_of_its_own_is_refused(name):
    assert message({name: 1}) == f"trl.{name}=1 has a place of its own: set {OURS[name]}."


@pytest.mark.parametrize("name", INERT)
def test_what_does_nothing_is_refused(name):
    assert message({name: 1}) == f"trl.{name}=1 does nothing: {INERT[name]}."


# Options that others need: a value that switches each off, and one that switches it on; any other is False or True.
SWITCHED_OFF = {
    "f_divergence_type": "js_divergence",
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "epoch",
    "report_to": "none",
    "fsdp": None,
    "dataloader_num_workers": 0,
    "lr_scheduler_type": "linear",
}
SWITCHED_ON = {
    "eval_strategy": "steps",
    "report_to": ["wandb"],
    "fsdp": "full_shard",
    "dataloader_num_workers": 2,
}
VALUES_OF_TYPES = {
    "bool": True,
    "int": 3,
    "float": 0.3,
    "dict": {"key": 1},
    "str": "other",
}


def other_than_the_default(name):
    """A value that an option may have and that is not its default."""
    option = options()[name]
    if name == "metric_for_best_model":
        return EVALUATED[1]
    for choice in option.choices:
        if choice != option.default:
            return choice
    if option.annotation == "bool":
        return not option.default
    for type_name, value in VALUES_OF_TYPES.items():
        if type_name in option.annotation and value != option.default:
            return value
    raise AssertionError(f"no value for {name}: {option}")


@pytest.mark.parametrize("name", NEEDS)
def test_what_needs_another_option_is_refused_without_it_and_taken_with_each_alternative(name):
    value = other_than_the_default(name)
    off = {other: SWITCHED_OFF.get(other, False) for other in NEEDS[name]}
    first = next(iter(NEEDS[name]))
    expected = f"trl.{name}={value!r} would do nothing here: read with {first}"
    assert expected in message({**off, name: value})
    for other, wanted in NEEDS[name].items():
        on = SWITCHED_ON.get(other, True) if wanted is True else wanted
        beside = {}
        if other == "load_best_model_at_end" or on == "best":  # which need more themselves
            beside = {"eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "loss"}
        refuse_unusable_options({**off, **beside, other: on, name: value}, {"sigmoid"})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"max_grad_nrom": 1.0}, "is not a field of the installed DPOConfig. Did you mean 'max_grad_norm'?"),
        ({"lora_r": 1}, "trl.lora_r=1 is not a field of the installed DPOConfig. It is adapter.r, a"),
        ({"max_grad_norm": "big"}, "='big' has the wrong type: DPOConfig declares max_grad_norm: float."),
        ({"max_grad_norm": math.nan}, "trl.max_grad_norm=nan has the wrong type"),
        ({"max_grad_norm": True}, "trl.max_grad_norm=True has the wrong type"),
        (
            {"max_grad_norm": -1},
            "trl.max_grad_norm=-1 must be at least 0: it is a length, and 0 switches clipping off.",
        ),
        ({"max_steps": 0}, "trl.max_steps=0 must be at least 1 and at most 10,000,000: leave it out to train for"),
        ({"logging_nan_inf_filter": 1}, "wrong type: DPOConfig declares logging_nan_inf_filter: bool."),
        ({"lr_scheduler_kwargs": "num_cycles:2"}, "wrong type: DPOConfig declares lr_scheduler_kwargs: dict"),
        ({"lr_scheduler_type": "cosin"}, "trl.lr_scheduler_type='cosin' is not one of linear, cosine, "),
        ({"lr_scheduler_type": "cosin"}, "greedy. Did you mean 'cosine'?"),
        ({"eval_strategy": "step"}, "is not one of no, steps, epoch. Did you mean 'steps'?"),
        ({"f_divergence_type": "js"}, "is not one of reverse_kl, forward_kl, js_divergence, alpha_divergence."),
        ({"report_to": "wandbb"}, "wandb. Did you mean 'wandb'?"),
        ({"report_to": ["wandb", "trakio"]}, "Did you mean 'trackio'?"),
        ({"truncation_mode": "keep_end"}, "trl.truncation_mode='keep_end' is not one of keep_start."),
    ],
)
def test_what_is_no_field_or_no_value_of_it_is_refused(given, text):
    assert text in message(given)


@pytest.mark.parametrize(
    ("given", "loss", "text"),
    [
        ({"label_smoothing": 0.1}, "sigmoid", "read by loss aot, aot_unpaired, exo_pair, robust only; TRL's"),
        ({"label_smoothing": 0.1}, "cdpo", "loss='cdpo' is label smoothing."),
        ({"discopop_tau": 0.1}, "sigmoid", "trl.discopop_tau=0.1 would do nothing here: read by loss discopop only."),
        ({"f_divergence_type": "js_divergence"}, "apo_zero", "it has no meaning for loss='apo_zero'. Delete it."),
        ({"use_weighting": True}, "aot", "do nothing here: it has no meaning for loss='aot'"),
    ],
)
def test_what_the_chosen_loss_does_not_read_is_refused(given, loss, text):
    assert text in message(given, [loss])


@pytest.mark.parametrize("loss", sorted(readers_of("label_smoothing")))
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_of_wrong_labels_from_which_nothing_can_be_learned_is_refused(loss, share):
    expected = f"trl.label_smoothing={share} must be at least 0 and below 0.5: it is the share of labels that are wrong"
    assert expected in message({"label_smoothing": share}, [loss])


def test_a_share_of_wrong_labels_that_nothing_reads_is_told_what_would_read_it():
    assert "loss='cdpo' is label smoothing" in message({"label_smoothing": 0.5}, ["sigmoid"])


@pytest.mark.parametrize("name", HARMFUL)
def test_what_would_go_wrong_in_silence_is_refused(name):
    assert message({name: True}) == f"trl.{name}=True cannot be used: {HARMFUL[name]}."


def just_inside_and_just_outside(limit):
    """(values that a limit takes, values that it refuses)."""
    inside, outside = [], []
    if "least" in limit:
        inside.append(limit["least"])
        outside.append(limit["least"] - 1)
    if "above" in limit:
        outside.append(limit["above"])
    if "most" in limit:
        inside.append(limit["most"])
        outside.append(limit["most"] + 1)
    if "below" in limit:
        outside.append(limit["below"])
    return inside, outside


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_is_refused_from_its_limit_on(name):
    limit = LIMITS[name]
    inside, outside = just_inside_and_just_outside(limit)
    for value in outside:
        with pytest.raises(UsageError, match=rf"trl\.{name}=.* must be .*{re.escape(limit['why'])}"):
            _refuse_out_of_range(name, value)
    for value in inside:
        _refuse_out_of_range(name, value)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "needs evaluations while training"),
        ({"eval_strategy": "epoch"}, "set trl.save_strategy=epoch, or best"),
        ({"eval_strategy": "steps", "eval_steps": 3, "save_steps": 10}, "saved every 10 steps and evaluated every 3"),
        ({"eval_strategy": "steps", "logging_steps": 3}, "saved every 500 steps and evaluated every 3"),
    ],
)
def test_a_best_model_that_cannot_be_known_is_refused(given, text):
    assert text in message({"load_best_model_at_end": True, **given})


@pytest.mark.parametrize(
    "given",
    [
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_strategy": "epoch", "save_strategy": "best"},
        {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 10},
        {"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.2},
        {"eval_strategy": "steps"},
    ],
)
def test_a_best_model_that_can_be_known_is_taken(given):
    refuse_unusable_options({"load_best_model_at_end": True, **given}, {"sigmoid"})


BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("rewards/margin", "Did you mean 'rewards/margins'?"),
        ("eval_rewards/accuracy", "Did you mean 'rewards/accuracies'?"),
        ("margin", "Did you mean 'rewards/margins'?"),
        ("eval_los", "Did you mean 'loss'?"),
        ("win_rate", "measured before and after training alone"),
        ("eval_runtime", "It can be loss, rewards/accuracies, rewards/margins, "),
        ("", "It can be loss"),
    ],
)
def test_a_number_that_no_evaluation_has_tells_no_best_model(metric, text):
    refused = message({**BEST, "metric_for_best_model": metric})
    assert refused.startswith(f"trl.metric_for_best_model={metric!r} is no number") and text in refused


@pytest.mark.parametrize("metric", [None, *EVALUATED, "eval_loss", "eval_rewards/margins"])
def test_a_number_of_each_evaluation_tells_the_best_model(metric):
    refuse_unusable_options({**BEST, "metric_for_best_model": metric}, {"sigmoid"})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "needs evaluations while training"),
        ({"eval_strategy": "epoch"}, "needs to know by which number"),
    ],
)
def test_the_best_checkpoint_of_nothing_is_refused(given, text):
    assert text in message({"save_strategy": "best", **given})
    enough = {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "loss"}
    refuse_unusable_options(enough, {"sigmoid"})
    plateau = {"save_strategy": "best", "eval_strategy": "epoch", "lr_scheduler_type": "reduce_lr_on_plateau"}
    refuse_unusable_options(plateau, {"sigmoid"})


@pytest.mark.parametrize("loss", TRL_LOSSES)
def test_an_option_of_some_losses_is_taken_beside_those(loss):
    for option in TRL_LOSSES[loss].reads:
        refuse_unusable_options({option: 0.1}, {loss})


@pytest.mark.parametrize(
    ("name", "value", "beside"),
    [
        ("ld_alpha", 0.5, {}),
        ("f_divergence_type", "js_divergence", {}),
        ("use_weighting", True, {}),
        ("f_alpha_divergence_coef", 0.3, {"f_divergence_type": "alpha_divergence"}),
    ],
)
def test_what_trl_applies_inside_its_own_losses_is_refused_beside_a_plugin(name, value, beside):
    text = message({name: value, **beside}, ("cdpo", "sigmoid"))
    expected = (
        f"trl.{name}={value!r} would do nothing here: it acts inside TRL's own losses and would never reach the "
        "plugin loss in ['cdpo', 'sigmoid']"
    )
    assert expected in text
    refuse_unusable_options({name: value, **beside}, {"sigmoid"})
    refuse_unusable_options({name: options()[name].default}, {"cdpo"})


@pytest.mark.parametrize(
    "given",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "max_grad_norm": 0.5, "weight_decay": 0, "max_steps": 7},
        {"lr_scheduler_kwargs": {"num_cycles": 2}},
        {"lr_scheduler_kwargs": '{"num_cycles": 2}'},
        {"deepspeed": "zero3.json"},
        {"report_to": "none"},
        {"report_to": ["wandb", "trackio"], "run_name": "one"},
        {"eval_strategy": "steps", "eval_steps": 5},
        {"pad_to_multiple_of": None},
        {"label_smoothing": 0.0},
        {"truncation_mode": "keep_start"},
        {"optim_args": "a=1,b=2"},
        {"warmup_steps": 10, "logging_steps": 5, "save_steps": 0.5},
        {"gradient_checkpointing": False},
        {},
    ],
)
def test_what_works_is_taken(given):
    refuse_unusable_options(given, {"sigmoid"})


def test_the_batch_of_the_precomputation_is_taken_where_the_mode_precomputes():
    assert "read with precompute_ref_log_probs only" in message({"precompute_ref_batch_size": 4})
    refuse_unusable_options({"precompute_ref_batch_size": 4}, {"sigmoid"}, precomputes=True)

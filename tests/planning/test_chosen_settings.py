"""What is chosen for a device: the least that costs time, as far as it fits; and never what the recipe has set."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from making import SIZES, recipe_for

from dpo_recipes import LoRA, QLoRA
from dpo_recipes.planning.chosen_settings import BELIEVED, Situation, adopt_of, choose
from dpo_recipes.planning.memory import Unplannable
from dpo_recipes.planning.pair_lengths import PairLength
from dpo_recipes.recipe.choices import Choice, with_choices, without_choices
from dpo_recipes.recipe.origins import values_with_origins
from dpo_recipes.recipe.resolve import Device, resolve

GPU = Device("cuda", bf16=True, processes=1)
CPU = Device("cpu", processes=1)
PAIRS = [PairLength(prompt=10, chosen=20, rejected=20)]
MEMORY = 1000
MIXTURE = {"model_type": "qwen3_moe", "output_router_logits": False}


def planned(recipe):
    """A step of 100 for the weights and 100 a pair; with checkpoints a quarter of that a pair."""
    a_pair = 25 if recipe.trl.get("gradient_checkpointing", True) else 100
    return SimpleNamespace(peak=100 + a_pair * resolve(recipe, GPU).micro_batch_size)


def decide(device=GPU, memory=MEMORY, train_pairs=160, config=None, why_padded=None, plan=planned, amx=False, **given):
    """What is chosen for a recipe, where nothing is known of a model but what `planned` says."""
    recipe = recipe_for("m", **{"trl": {}, "global_batch_size": 16, **given})
    situation = Situation(device, memory, config, train_pairs, lambda: PAIRS, plan, lambda: why_padded, amx)
    return choose(recipe, situation)


def chosen(**given):
    return {choice.key: choice.value for choice in decide(**given).choices}


# What is chosen


def test_activations_are_kept_and_as_many_pairs_read_at_once_as_fit():
    assert BELIEVED * MEMORY == 700
    assert chosen() == {"trl.gradient_checkpointing": False, "micro_batch_size": 4}
    assert chosen(global_batch_size=15, train_pairs=150)["micro_batch_size"] == 5
    assert chosen(memory=10**6) == {"trl.gradient_checkpointing": False, "micro_batch_size": 16}


def test_a_reason_says_what_was_planned():
    reasons = [choice.reason for choice in decide(memory=10**9, plan=lambda _: SimpleNamespace(peak=10**8)).choices]
    assert reasons == [
        "activations are kept, and not computed twice: a step is planned to need 0.10 GB of 1.00 GB",
        "the most pairs in a forward that fit: a step is planned to need 0.10 GB of 1.00 GB",
    ]


def test_where_not_one_pair_fits_activations_are_computed_twice():
    few = chosen(memory=280)
    assert few == {"trl.gradient_checkpointing": True, "micro_batch_size": 2}
    assert "computed twice" in decide(memory=280).choices[0].reason


def test_what_fits_with_little_left_free_is_better_than_what_does_not_fit():
    assert chosen(memory=140) == {"trl.gradient_checkpointing": True, "micro_batch_size": 1}


def test_where_nothing_fits_all_stays_as_it_is_and_is_said():
    nothing = decide(memory=100)
    assert nothing.choices == []
    assert nothing.left == (
        "micro_batch_size and trl.gradient_checkpointing stay as they are: not even the smallest step fits."
    )


def test_pairs_of_unknown_length_leave_all_that_memory_decides():
    def unknown():
        raise Unplannable("Neither the pairs nor max_length say how long a pair can be.")

    recipe = recipe_for("m", max_length=None)
    left = choose(recipe, Situation(CPU, MEMORY, None, None, unknown, lambda _: unknown(), lambda: None))
    assert left.choices == [] and "Neither the pairs nor max_length" in left.left


def test_a_model_that_cannot_be_planned_stays_as_it_is():
    def unplannable(recipe):
        raise Unplannable("This model does not run on fake tensors: KeyError: 'x'")

    left = decide(plan=unplannable)
    assert left.choices == [] and "what a step needs is not known. This model does not run" in left.left


def test_where_a_formula_says_that_anything_fits_there_is_no_plan():
    config = {"model_type": "llama", **SIZES}
    assert chosen(config=config, memory=10**11, plan=None, device=CPU) == {"trl.gradient_checkpointing": False}
    assert decide(config=config, memory=10**9, plan=None, device=CPU).left.startswith("trl.gradient_checkpointing: ")


WIDE = {"model_type": "llama", **SIZES, "hidden_size": 576}


@pytest.mark.parametrize(("adapter", "weights"), [(LoRA(r=4), "bfloat16"), (None, "float32")])
def test_a_cpu_that_multiplies_bf16_trains_a_wide_model_so(adapter, weights):
    choices = decide(device=CPU, config=WIDE, memory=10**12, adapter=adapter, amx=True).choices
    assert [choice.key for choice in choices] == ["dtype", "trl.gradient_checkpointing"]
    changed = with_choices(recipe_for("m", adapter=adapter), choices)
    settings = resolve(changed, CPU)
    assert (settings.weights, settings.autocast) == (weights, "bf16") == (weights, resolve(changed, GPU).autocast)
    assert values_with_origins(changed, settings)["dtype"] == (f"{weights} weights, bf16 autocast", "chosen")
    assert resolve(without_choices(changed), CPU).autocast is None


@pytest.mark.parametrize(
    "given",
    [
        {"amx": False},
        {"config": WIDE | {"hidden_size": 255}},
        {"dtype": "float32"},
        {"adapter": QLoRA(r=4)},
        {"device": GPU},
    ],
)
def test_otherwise_the_precision_stays_that_of_the_recipe(given):
    given = {"device": CPU, "config": WIDE, "memory": 10**12, "adapter": LoRA(r=4), "amx": True, **given}
    assert "dtype" not in chosen(**given)


# What the recipe sets


def test_what_the_recipe_sets_is_never_chosen():
    assert chosen(micro_batch_size=2) == {"trl.gradient_checkpointing": False}
    assert chosen(micro_batch_size=4, trl={"gradient_checkpointing": True}) == {}
    assert chosen(trl={"gradient_checkpointing": True}) == {"micro_batch_size": 16}
    assert chosen(trl={"gradient_checkpointing": False}) == {"micro_batch_size": 4}
    assert chosen(trl={"gradient_checkpointing_kwargs": {"use_reentrant": True}}) == {"micro_batch_size": 16}
    assert chosen(trl={"activation_offloading": True}) == {"micro_batch_size": 16}


@pytest.mark.parametrize("changes", [{"dtype": "float32"}, {"trl": {"optim": "sgd"}}])
def test_no_choice_touches_the_precision_or_the_optimiser(changes):
    choices = decide(adapter=LoRA(r=4), **changes).choices
    assert {choice.key for choice in choices} == {"trl.gradient_checkpointing", "micro_batch_size"}
    recipe = recipe_for("m", adapter=LoRA(r=4), **changes)
    changed = with_choices(recipe, choices)
    assert (changed.dtype, changed.trl.get("optim")) == (recipe.dtype, recipe.trl.get("optim"))


# The maths of a step


def test_on_a_cpu_the_pairs_of_a_forward_stay():
    assert "micro_batch_size" not in chosen(device=CPU)


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "aot", "micro_batch_size": 4},
        {"sft_weight": 0.1},
        {"trl": {"disable_dropout": False}},
        {"trl": {"dataloader_drop_last": True}},
        {"config": MIXTURE},
    ],
)
def test_the_pairs_of_a_forward_stay_where_they_change_more_than_rounding(given):
    assert set(chosen(memory=10**6, **given)) == {"trl.gradient_checkpointing"}


def test_a_mixture_of_experts_without_its_routers_loss_may_read_more_pairs():
    assert chosen(memory=10**6, config=MIXTURE, trl={"router_aux_loss_coef": 0.0})["micro_batch_size"] == 16


@pytest.mark.parametrize(("left_over", "sizes"), [(0, 8), (8, 8), (4, 8), (7, 8), (9, 4), (10, 4), (12, 4)])
def test_a_last_step_of_fewer_pairs_weighs_them_all_alike_or_as_before(left_over, sizes):
    """In TRL's mean, the pairs of a smaller last micro-batch weigh more: 12 pairs would be cut into 8 and 4."""
    size = chosen(memory=1400, train_pairs=160 + left_over)["micro_batch_size"]
    assert size == sizes
    weighs_all_alike = left_over % size == 0 or left_over < size
    assert weighs_all_alike or size == 4  # which the recipe would take itself


def test_a_stream_whose_pairs_nobody_has_counted_reads_all_of_a_step_at_once_or_as_many_as_before():
    assert chosen(memory=10**6, train_pairs=None)["micro_batch_size"] == 16
    assert chosen(memory=1200, train_pairs=None)["micro_batch_size"] == 4


def test_pairs_that_are_padded_come_by_length_within_a_step():
    padded = {"device": CPU, "why_padded": "it has recurrent layers", "memory": 10**6}
    choices = decide(**padded).choices
    assert [choice.key for choice in choices] == ["trl.gradient_checkpointing", "trl.train_sampling_strategy"]
    assert choices[1].value == "random" and choices[1].reason.endswith("pairs are padded, as it has recurrent layers")


@pytest.mark.parametrize(
    "given",
    [
        {"why_padded": None},
        {"trl": {"train_sampling_strategy": "random"}},
        {"trl": {"train_sampling_strategy": "group_by_length"}},
        {"pair_sharing": "off"},
        {"micro_batch_size": 16},
        {"loss": "aot", "micro_batch_size": 4},
        {"sft_weight": 0.1},
        {"config": MIXTURE},
    ],
)
def test_otherwise_pairs_come_as_they_are_drawn(given):
    given = {"device": CPU, "why_padded": "it has recurrent layers", "memory": 10**6, **given}
    assert "trl.train_sampling_strategy" not in chosen(**given)


# Where a value came from


def test_a_choice_has_its_origin_and_its_reason_and_can_be_taken_back():
    recipe = recipe_for("m", trl={"warmup_steps": 2})
    changed = with_choices(recipe, decide().choices)
    values = values_with_origins(changed, resolve(changed, GPU))
    assert values["trl.gradient_checkpointing"] == (False, "chosen")
    assert values["micro_batch_size"] == (4, "chosen")
    assert values["trl.warmup_steps"] == (2, "recipe file")
    assert "planned to need" in changed.reasons["trl.gradient_checkpointing"]
    assert without_choices(changed) == recipe and not without_choices(changed).reasons


def test_a_recipe_without_options_has_none_again_when_choices_are_taken_back():
    recipe = recipe_for("m")
    changed = with_choices(recipe, [Choice("trl.gradient_checkpointing", False, "it fits")])
    assert changed.trl == {"gradient_checkpointing": False}
    assert without_choices(changed).given == recipe.given


@pytest.mark.parametrize(("processes", "pairs_at_once"), [(1, 16), (2, 16), (4, 8)])
def test_a_run_that_goes_on_in_more_processes_reads_no_more_pairs_at_once_than_a_step_of_each_has(
    processes, pairs_at_once
):
    recipe = recipe_for("model", global_batch_size=32)
    entry = {"value": 16, "origin": "chosen", "reason": "that fit"}
    session = SimpleNamespace(recipe=recipe, device=Device("cuda", True, processes))
    adopt_of(session, SimpleNamespace(recipe={"micro_batch_size": entry}))
    assert session.settings.micro_batch_size == pairs_at_once
    assert session.recipe.reasons == {"micro_batch_size": "that fit"}

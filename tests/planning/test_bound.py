"""The formula that spares a plan: above the plan for each model that it knows, and silent about any other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from making import SIZES, recipe_for

from dpo_recipes import LoRA, QLoRA
from dpo_recipes.planning.bound import KNOWN, at_most, shape_of
from dpo_recipes.planning.memory import plan, skeletons
from dpo_recipes.planning.pair_lengths import PairLength
from dpo_recipes.recipe.resolve import Device, resolve

CPU = Device("cpu", processes=1)
PAIRS = [PairLength(prompt=30, chosen=170, rejected=120)]


def margin(folder, **changes):
    """The bound over the plan, both without what the process holds beside the model."""
    recipe = recipe_for(folder, micro_batch_size=2, trl={"gradient_checkpointing": False}, **changes)
    settings = resolve(recipe, CPU)
    session = SimpleNamespace(recipe=recipe, model_path=recipe.model, reference_path="")
    policy, _ = skeletons(session, recipe, settings)
    shape = shape_of(policy.config.to_dict())
    bound = at_most(shape, recipe, PAIRS, 2, on_cpu=False)
    return bound / plan(policy, recipe, settings, pairs=PAIRS).peak


@pytest.mark.slow
@pytest.mark.parametrize("kind", KNOWN)
def test_the_formula_is_above_the_plan(tiny, kind):
    assert margin(tiny(kind, head_dim=16), pair_sharing="off", adapter=LoRA(r=4)) > 1.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": None},
        {"adapter": LoRA(r=16, target_modules=["q_proj", "up_proj"])},
        {"adapter": QLoRA(r=4)},
        {"pair_sharing": "off"},
        {"pair_sharing": "off", "attn_implementation": "eager"},
    ],
)
def test_it_is_above_the_plan_however_a_llama_is_trained(tiny, changes):
    assert margin(tiny(vocab_size=4000), **changes) > 1.1


def test_of_more_pairs_it_says_more(tiny):
    recipe = recipe_for(tiny())
    shape = shape_of({"model_type": "llama", **SIZES})
    sizes = [at_most(shape, recipe, PAIRS, size, on_cpu=False) for size in (1, 2, 8)]
    assert sizes == sorted(sizes)
    longer = [PairLength(prompt=30, chosen=1700, rejected=120)]
    assert at_most(shape, recipe, longer, 1, on_cpu=False) > sizes[0]


@pytest.mark.parametrize("changes", [{"reference": "other"}, {"trl": {"sync_ref_model": True}}])
def test_of_a_second_model_it_says_nothing(changes):
    shape = shape_of({"model_type": "llama", **SIZES})
    assert at_most(shape, recipe_for("m", adapter=None, **changes), PAIRS, 1, on_cpu=True) is None


@pytest.mark.parametrize("config", [{}, {"model_type": "mamba", **SIZES}, {"model_type": "llama", "hidden_size": 8}])
def test_of_a_model_that_it_does_not_know_it_says_nothing(config):
    assert shape_of(config) is None

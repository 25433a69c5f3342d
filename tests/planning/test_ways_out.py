"""What to change where a recipe does not fit: the order, where it ends, and what is never proposed."""

from __future__ import annotations

from dpo_recipes import Data, QLoRA, Recipe
from dpo_recipes.planning.memory import Plan
from dpo_recipes.planning.ways_out import ways_out

OPEN = {"gradient_checkpointing": False}


def made_up_plan(recipe: Recipe) -> Plan:
    """100 bytes for each pair and 1,024 tokens, twice that without checkpointing, and the weights."""
    pairs = recipe.micro_batch_size or 4
    activations = 100 * pairs * (recipe.max_length or 1024) // 1024
    if recipe.trl.get("gradient_checkpointing") is False:
        activations *= 2

    weights = 200
    if recipe.adapter is None:
        weights = 1000
    elif isinstance(recipe.adapter, QLoRA):
        weights = 50
    return Plan(
        trainable=0,
        total=0,
        moment="step",
        weights=weights,
        adapter=0,
        gradients=0,
        optimizer=0,
        reference=0,
        activations=activations,
        head=0,
        peak=weights + activations,
    )


def changes(recipe: Recipe, memory: int) -> list[str]:
    return [text for text, _ in ways_out(recipe, memory, made_up_plan)]


def test_ways_out_come_nearest_first_and_stop_where_one_fits():
    recipe = Recipe(model="m", data=Data("d"), max_length=2048, micro_batch_size=4, trl=OPEN)
    same_maths = "micro_batch_size=1 trl.gradient_checkpointing=true"
    assert [(text, changed.peak) for text, changed in ways_out(recipe, 10, made_up_plan)] == [
        ("micro_batch_size=1", 1400),
        (same_maths, 1200),
        (f"{same_maths} max_length=1024", 1100),
        (f"{same_maths} max_length=512", 1050),
        (f"{same_maths} max_length=256", 1025),
        (f"{same_maths} adapter=lora", 400),
        (f"{same_maths} adapter=qlora", 250),
    ]
    assert changes(recipe, 1200) == ["micro_batch_size=1", same_maths]
    assert changes(recipe, 400)[-1] == f"{same_maths} adapter=lora"


def test_where_nothing_is_left_there_is_no_way_out():
    smallest = Recipe(model="m", data=Data("d"), max_length=256, micro_batch_size=1, adapter=QLoRA())
    assert changes(smallest, 10) == []


def test_no_way_out_is_as_long_as_the_longest_pair():
    recipe = Recipe(model="m", data=Data("d"), max_length=None, micro_batch_size=1, adapter=QLoRA())
    shorter = [text for text, _ in ways_out(recipe, 10, made_up_plan, tokens=512)]
    assert shorter == ["max_length=256"]


def test_no_way_out_changes_the_pairs_that_share_a_loss_or_what_the_recipe_refuses():
    coupled = Recipe(model="m", data=Data("d"), loss="aot", micro_batch_size=4, max_length=512)
    assert changes(coupled, 10) == ["max_length=256", "adapter=lora", "adapter=qlora"]
    moving = Recipe(model="m", data=Data("d"), micro_batch_size=1, max_length=512, trl={"sync_ref_model": True})
    assert changes(moving, 10) == ["max_length=256"]

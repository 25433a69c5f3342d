"""What to change where a recipe does not fit: the order, what each change saves, and what is never proposed."""

from __future__ import annotations

from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.planning.memory import PARTS, Plan
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
        weights = 4000
    elif isinstance(recipe.adapter, QLoRA):
        weights = 50
    parts = dict.fromkeys(PARTS, 0) | {"weights": weights, "activations": activations}
    return Plan(trainable=0, total=0, moment="step", peak=weights + activations, **parts)


def found(recipe: Recipe, memory: int, **options) -> list[tuple]:
    ways = ways_out(recipe, made_up_plan(recipe).peak, memory, made_up_plan, **options)
    return [(way.change, way.saves, way.peak, way.fits) for way in ways]


def changes(recipe: Recipe, memory: int, **options) -> list[str]:
    return [change for change, *_ in found(recipe, memory, **options)]


FULL = Recipe(model="m", data=Data("d"), max_length=1024, micro_batch_size=4, trl=OPEN)  # 4,800 bytes


def test_what_saves_most_comes_first_and_says_what_it_saves():
    assert found(FULL, 2000) == [
        ("adapter=qlora", 3950, 850, True),
        ("adapter=lora", 3800, 1000, True),
        ("micro_batch_size=1", 600, 4200, False),
        ("max_length=256", 600, 4200, False),
        ("trl.gradient_checkpointing=true", 400, 4400, False),
        ("max_length=512", 400, 4400, False),
    ]


def test_of_what_is_enough_the_same_maths_comes_first():
    assert changes(FULL, 4400)[:2] == ["micro_batch_size=1", "trl.gradient_checkpointing=true"]
    assert changes(FULL, 4400)[2:4] == ["adapter=qlora", "adapter=lora"]


def test_where_no_change_is_enough_the_sum_of_few_comes_first():
    both = "micro_batch_size=1 trl.gradient_checkpointing=true adapter=qlora"
    assert found(FULL, 200)[0] == (both, 4650, 150, True)
    assert not any(fits for _, _, _, fits in found(FULL, 200)[1:])
    same_maths = "micro_batch_size=1 trl.gradient_checkpointing=true"
    assert found(FULL, 4100)[0][0] != same_maths  # as an adapter alone is enough
    moving = FULL.evolve(trl={**OPEN, "sync_ref_model": True})  # which goes with full fine-tuning alone
    assert found(moving, 4100)[0] == (same_maths, 700, 4100, True)


def test_the_sum_of_all_is_said_where_not_even_that_is_enough():
    change, _, _, fits = found(FULL, 10)[0]
    assert change == "micro_batch_size=1 trl.gradient_checkpointing=true adapter=qlora max_length=256" and not fits


def test_where_nothing_is_left_there_is_no_way_out():
    smallest = Recipe(model="m", data=Data("d"), max_length=256, micro_batch_size=1, adapter=QLoRA())
    assert changes(smallest, 10) == []


def test_no_way_out_is_as_long_as_the_longest_pair():
    recipe = Recipe(model="m", data=Data("d"), max_length=None, micro_batch_size=1, adapter=QLoRA())
    assert changes(recipe, 10, tokens=512) == ["max_length=256"]


def test_no_way_out_saves_next_to_nothing():
    large = Recipe(model="m", data=Data("d"), max_length=600, micro_batch_size=1)
    assert [change for change in changes(large, 10) if "max_length=512" in change.split()] == []


def test_16_bits_are_a_way_out_on_a_cpu_where_they_are_not_the_default():
    adapter = Recipe(model="m", data=Data("d"), micro_batch_size=1, adapter=LoRA())

    def halved(recipe: Recipe) -> Plan:
        plan = made_up_plan(recipe)
        return plan if recipe.dtype == "auto" else made_up_plan(recipe.evolve(max_length=256))

    ways = ways_out(adapter, halved(adapter).peak, 10, halved, on_cpu=True)
    assert "dtype=bfloat16" in [way.change for way in ways]
    assert "dtype=bfloat16" not in [way.change for way in ways_out(adapter, halved(adapter).peak, 10, halved)]


def test_no_way_out_changes_the_pairs_that_share_a_loss_or_what_the_recipe_refuses():
    coupled = Recipe(model="m", data=Data("d"), loss="aot", micro_batch_size=4, max_length=512)
    assert not any("micro_batch_size" in change for change in changes(coupled, 10))
    moving = Recipe(model="m", data=Data("d"), micro_batch_size=1, max_length=512, trl={"sync_ref_model": True})
    assert not any("adapter" in change for change in changes(moving, 10))

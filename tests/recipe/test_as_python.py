"""A recipe as Python: it makes the same recipe again, with the same fields given."""

from __future__ import annotations

import pytest
from making import make_recipe

from dpo_recipes import Data, LoRA, QLoRA, load
from dpo_recipes.recipe.as_python import as_python
from dpo_recipes.recipe.judges import RewardModel


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": Data("set", train="a[:10]", chat_template_kwargs={"enable_thinking": False}), "beta": 0.3},
        {"data": Data(mix={"a": 0.5, "b": 1.0}), "loss": {"sigmoid": 1.0, "sft": 0.1}, "micro_batch_size": 2},
        {"adapter": QLoRA(continue_from="folder", double_quant=False)},
        {"adapter": LoRA(r=4, target_modules=[f"layers.{n}.self_attn.q_proj" for n in range(9)])},
        {"reward": RewardModel("org/model"), "trl": {"max_steps": 3}},
    ],
)
def test_what_is_written_makes_the_same_recipe(changes, tmp_path):
    recipe = make_recipe(**changes)
    (tmp_path / "again.py").write_text(as_python(recipe), encoding="utf-8")
    again = load(tmp_path / "again.py")
    assert again == recipe and again.given == recipe.given and again.data.given == recipe.data.given
    if recipe.adapter is not None:
        assert again.adapter.given == recipe.adapter.given


def test_it_reads_as_a_recipe_file():
    assert as_python(make_recipe(beta=0.3)).splitlines() == [
        "from dpo_recipes import Data, Recipe",
        "",
        "recipe = Recipe(",
        "    model='m',",
        "    data=Data('d'),",
        "    beta=0.3,",
        ")",
    ]

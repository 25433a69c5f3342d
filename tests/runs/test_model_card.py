"""The model card says who was trained against whom, on what, and how far it got."""

from __future__ import annotations

import pytest

from dpo_recipes import Data, LoRA, Recipe
from dpo_recipes.runs.model_card import model_card

WHO = {"policy": "someone/model + LoRA of rank 4", "reference": "the same model with the adapter off"}
RESULTS = [("pairs ranked as labelled", "50.0%", "78.1%", "66.6% to 86.5%"), ("a|b", "", "0.5", "")]


def card(base_model="someone/model", **changes) -> str:
    values = {"model": "someone/model", "data": Data("some/pairs", train="train_prefs"), "adapter": LoRA(r=4)}
    return model_card(Recipe(**values | changes), base_model=base_model, who=WHO, pairs=64, results=RESULTS)


def test_the_whole_card():
    assert card(beta=0.25) == (
        "---\n"
        "library_name: peft\n"
        "base_model: someone/model\n"
        "tags: [trl, dpo]\n"
        "---\n"
        "# recipe\n"
        "\n"
        "Trained with Direct Preference Optimization (arXiv 2305.18290) through TRL, by dpo-recipes.\n"
        "\n"
        "* Policy: someone/model + LoRA of rank 4.\n"
        "* Reference: the same model with the adapter off.\n"
        "* Data: some/pairs, split train_prefs.\n"
        "* Loss: sigmoid, beta 0.25.\n"
        "\n"
        "## Held out: 64 pairs\n"
        "\n"
        "|  | before | after | 95 % interval or s.e. |\n"
        "| --- | ---: | ---: | --- |\n"
        "| pairs ranked as labelled | 50.0% | 78.1% | 66.6% to 86.5% |\n"
        "| a\\|b |  | 0.5 |  |\n"
    )


def test_a_base_that_is_a_folder_is_no_name_for_the_hub():
    assert "base_model" not in card(base_model=None)


@pytest.mark.parametrize(("adapter", "library"), [(LoRA(r=4), "peft"), (None, "transformers")])
def test_the_library_is_the_one_that_loads_the_weights(adapter, library):
    assert f"library_name: {library}\n" in card(adapter=adapter)


def test_all_losses_of_a_mix_are_named_in_one_order():
    assert "* Loss: hinge, sigmoid, beta" in card(loss={"sigmoid": 1.0, "hinge": 0.5})

"""The model card says who was trained against whom, on what, and how far it got."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.runs.model_card import model_card

WHO = {"policy": "someone/model + LoRA of rank 4", "reference": "the same model with the adapter off"}
RESULTS = [("pairs ranked as labelled", "50.0%", "78.1%", "66.6% to 86.5%"), ("a|b", "", "0.5", "")]


READING = {"read_once": True, "why_not": None, "largest_difference": 2.9e-6}
DATA = {"train": {"kept": 1200}, "fingerprint": "c0ffee"}
VERSIONS = {"torch": "2.13.0", "trl": "1.16.0"}


def card(
    on_the_hub: bool = True,
    data: dict = DATA,
    reading: dict = READING,
    observations: list[dict] | None = None,
    **changes,
) -> str:
    values = {"model": "someone/model", "data": Data("some/pairs", train="train_prefs"), "adapter": LoRA(r=4)}
    recipe = Recipe(**values | changes)
    return model_card(
        recipe,
        resolve(recipe, Device()),
        base="someone/model",
        base_is_on_the_hub=on_the_hub,
        folder=Path("runs/mine/model"),
        who=WHO,
        data=data,
        reading=reading,
        versions=VERSIONS,
        pairs=64,
        results=RESULTS,
        observations=observations or [],
    )


def loading_code(text: str) -> str:
    return text.partition("```python\n")[2].partition("```")[0]


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
        "* Data: some/pairs, split train_prefs, 1,200 pairs (fingerprint c0ffee).\n"
        "* Loss: sigmoid, beta 0.25.\n"
        "* Training: learning rate 5e-06, 1 epoch, 16 pairs a step, seed 42, at most 1,024 tokens a pair's side.\n"
        "* Pairs: each read once, with log-probabilities within 3e-06 nats per token of TRL's own forward, where both "
        "were computed.\n"
        "* Versions: torch 2.13.0, trl 1.16.0.\n"
        "\n"
        "## Held out: 64 pairs\n"
        "\n"
        "|  | before | after | 95 % interval or s.e. |\n"
        "| --- | ---: | ---: | --- |\n"
        "| pairs ranked as labelled | 50.0% | 78.1% | 66.6% to 86.5% |\n"
        "| a\\|b |  | 0.5 |  |\n"
        "\n"
        "## Seen while training\n"
        "\n"
        "Nothing: none of the rules that watch over the log has spoken.\n"
        "\n"
        "## Load it\n"
        "\n"
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "\n"
        'folder = "runs/mine/model"  # or wherever this card lies now\n'
        'base = AutoModelForCausalLM.from_pretrained("someone/model", dtype="float32")\n'
        "model = PeftModel.from_pretrained(base, folder)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "```\n"
    )


def test_a_base_that_is_a_folder_is_no_name_for_the_hub():
    assert "base_model" not in card(on_the_hub=False)


def test_of_a_stream_no_pairs_are_counted():
    assert "* Data: some/pairs, split train_prefs.\n" in card(data={"train": {"dropped": {}}})


@pytest.mark.parametrize(
    ("why_not", "words"),
    [
        ("it has recurrent layers", "* Pairs: each read twice and padded, as in TRL: it has recurrent layers.\n"),
        (None, "* Pairs: each read twice and padded, as in TRL, because pair_sharing is off.\n"),
    ],
)
def test_a_model_whose_pairs_were_read_twice_says_why(why_not, words):
    assert words in card(reading={"read_once": False, "why_not": why_not, "largest_difference": None})


@pytest.mark.parametrize(
    ("changes", "duration"),
    [({"num_train_epochs": 2.5}, "2.5 epochs"), ({"trl": {"max_steps": 1200}}, "1,200 steps")],
)
def test_how_long_it_was_trained_is_what_ended_it(changes, duration):
    assert f"learning rate 5e-06, {duration}, 16 pairs a step" in card(**changes)


@pytest.mark.parametrize("adapter", [None, LoRA(r=4), QLoRA(r=4)])
def test_the_code_that_loads_is_python_and_names_the_revision_where_there_is_a_base(adapter):
    code = loading_code(card(adapter=adapter, revision="v1"))
    compile(code, "card", "exec")
    assert ('revision="v1"' in code) == (adapter is not None)
    assert ("quantization_config=four_bit" in code) == isinstance(adapter, QLoRA)


@pytest.mark.parametrize(("adapter", "library"), [(LoRA(r=4), "peft"), (None, "transformers")])
def test_the_library_is_the_one_that_loads_the_weights(adapter, library):
    assert f"library_name: {library}\n" in card(adapter=adapter)


def test_all_losses_of_a_mix_are_named_in_one_order():
    assert "* Loss: hinge, sigmoid, beta" in card(loss={"sigmoid": 1.0, "hinge": 0.5})


def test_what_the_guard_has_seen_is_told_a_line_each():
    seen = [
        {"step": 1200, "rule": "epoch_jump", "level": "warning", "seen": "The loss fell.", "advice": "Fewer epochs."},
        {"step": 1300, "rule": "mine", "level": "note", "seen": "In two\n\nlines.", "advice": ""},
    ]
    section = card(observations=seen).partition("## Seen while training\n\n")[2].partition("\n\n## ")[0]
    assert section.splitlines() == [
        "* Step 1,200, warning, `epoch_jump`: The loss fell.",
        "* Step 1,300, note, `mine`: In two lines.",
    ]

"""What is remarked on as unusual: nothing that has been published, and each slip by its name."""

from __future__ import annotations

import pytest

from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.recipe import catalogue
from dpo_recipes.recipe.unusual import unusual_findings


def remarks(**fields) -> dict[str, str]:
    recipe = Recipe(model="m", data=Data("d"), **{"adapter": LoRA(r=16), **fields})
    findings = unusual_findings(recipe)
    assert all(finding.level == "warn" for finding in findings)
    return {finding.name: finding.text for finding in findings}


def own_loss(pairs, *, beta):
    return -beta * pairs.h


# Published: who -> the fields that they set.
PUBLISHED = {
    "DPO paper, TL;DR": {"adapter": None, "beta": 0.5, "learning_rate": 1e-6, "trl": {"optim": "rmsprop"}},
    "DPO paper, frontier": {"adapter": None, "beta": 5.0, "learning_rate": 1e-6},
    "Zephyr": {"adapter": None, "beta": 0.01, "learning_rate": 5e-7},
    "Zephyr, LoRA of 2023": {"adapter": LoRA(r=64, alpha=16), "learning_rate": 5e-7, "num_train_epochs": 3},
    "Zephyr, QLoRA": {"adapter": QLoRA(r=128, alpha=128), "beta": 0.01, "learning_rate": 5e-6},
    "SmolLM2": {"adapter": None, "beta": 0.5, "learning_rate": 1e-6, "num_train_epochs": 3},
    "SmolLM3": {"adapter": None, "loss": "apo_zero", "beta": 0.05, "learning_rate": 1e-6},
    "Tulu 3": {"adapter": None, "loss": "sigmoid_norm", "beta": 5.0, "learning_rate": 5e-7},
    "Tulu 3, 70B": {"adapter": None, "loss": "sigmoid_norm", "beta": 5.0, "learning_rate": 2e-7},
    "torchtune, LoRA": {"adapter": LoRA(r=8, alpha=16), "learning_rate": 5e-4},
    "torchtune, full": {"adapter": None, "beta": 0.05, "learning_rate": 2e-5},
    "smol course": {"adapter": None, "learning_rate": 5e-5},
    "open-instruct, QLoRA": {"adapter": QLoRA(r=64, alpha=16), "learning_rate": 1e-4, "num_train_epochs": 5},
    "alpha 32 at rank 1": {"adapter": LoRA(r=1, alpha=32)},
    "alpha 32 at rank 512": {"adapter": LoRA(r=512, alpha=32)},
    "rsLoRA at its defaults": {"adapter": LoRA(r=256, use_rslora=True)},
    "NCA": {"loss": "nca_pair", "beta": 0.01, "learning_rate": 5e-6},
    "SPPO": {"adapter": None, "loss": "sppo_hard", "beta": 0.001, "learning_rate": 5e-7},
    "IPO in the handbook's scan": {"loss": "ipo", "beta": 0.01},
    "cDPO": {"loss": "cdpo", "loss_args": {"label_smoothing": 0.1}, "beta": 0.9},
    "RPO": {"loss": {"sigmoid": 1.0, "sft": 0.005}, "beta": 0.01, "adapter": None, "learning_rate": 5e-7},
    "likelihood alone": {"loss": "sft", "micro_batch_size": 4},
}


@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_what_is_published_is_not_remarked_on(fields):
    assert remarks(**fields) == {}


@pytest.mark.parametrize("name", catalogue.shipped_names())
def test_no_shipped_recipe_is_unusual(name):
    assert unusual_findings(catalogue.load(name)) == []


# A slip -> its field, and a telling part of what is said.
SLIPS = {
    "an adapter's rate for all weights": ({"adapter": None, "learning_rate": 1e-3}, "learning_rate", "5e-07 or 1e-06"),
    "a rate without its exponent": ({"learning_rate": 0.05}, "learning_rate", "broken text"),
    "an exponent too many": ({"learning_rate": 5e-10}, "learning_rate", "next to nothing is learned"),
    "all weights, an exponent too many": (
        {"adapter": None, "learning_rate": 5e-9},
        "learning_rate",
        "full fine-tuning",
    ),
    "a beta of another loss": ({"loss": "sigmoid_norm"}, "beta", "0.1 is unusual for loss='sigmoid_norm': published"),
    "a beta of a hundred": ({"beta": 100.0}, "beta", "holds the policy at its reference"),
    "SPPO's beta in DPO": ({"beta": 0.001}, "beta", "drift far"),
    "in a mix": ({"loss": {"sigmoid": 1.0, "sft": 0.1}, "beta": 50.0}, "beta", "loss='sigmoid'"),
    "in a loss of ours": ({"loss": "reference_free", "beta": 50.0}, "beta", "loss='reference_free'"),
    "a large scale": ({"adapter": LoRA(r=4, alpha=256)}, "adapter.alpha", "by 64: published are 0.25 to 2"),
    "a small scale": ({"adapter": LoRA(r=256, alpha=1)}, "adapter.alpha", "by 0.00391"),
    "a large scale of rsLoRA": (
        {"adapter": LoRA(r=16, alpha=512, use_rslora=True)},
        "adapter.alpha",
        "over sqrt(adapter.r=16) multiplies what the adapter adds by 128",
    ),
    "many epochs": ({"num_train_epochs": 50.0}, "num_train_epochs", "published runs take 1 to 5"),
}


@pytest.mark.parametrize(("fields", "name", "words"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_named(fields, name, words):
    said = remarks(**fields)
    assert list(said) == [name] and words in said[name]


@pytest.mark.parametrize("optimizer", ["sgd", "lion_32bit", "adafactor"])
def test_of_other_optimizers_no_usual_rate_is_known(optimizer):
    assert remarks(learning_rate=0.1, trl={"optim": optimizer}) == {}
    assert list(remarks(learning_rate=0.1, trl={"optim": "adamw_torch_fused"})) == ["learning_rate"]


def test_nothing_is_known_of_the_beta_of_a_loss_of_ones_own():
    assert remarks(loss=own_loss, beta=500.0) == {}


def test_a_continued_adapter_brings_its_own_scale():
    assert remarks(adapter=LoRA(continue_from="./adapter")) == {}

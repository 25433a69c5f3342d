"""The model card: the README.md beside the trained weights."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..recipe.recipe import QLoRA, Recipe
from ..recipe.resolve import Settings


def model_card(
    recipe: Recipe,
    settings: Settings,
    *,
    base: str,
    base_is_on_the_hub: bool,
    folder: Path,
    who: Mapping[str, Any],
    data: Mapping[str, Any],
    reading: Mapping[str, Any],
    versions: Mapping[str, str],
    pairs: int,
    results: Iterable[tuple[str, str, str, str]],
) -> str:
    """What was trained, from what, on what, how, and how far it got, as Markdown with the hub's front matter.

    `base` is the hub id or the folder of the start, `folder` that of the trained model. `who` holds policy and
    reference in words, as in reference.json; `data` is data.json, `reading` is `pair_sharing` of evaluation.json.
    `results` are the rows of the closing table, measured
    on so many held-out `pairs`: what is measured, its value before, its value after, and its interval or error.
    """
    front_matter = ["---", f"library_name: {'peft' if recipe.adapter else 'transformers'}"]
    if base_is_on_the_hub:
        front_matter.append(f"base_model: {base}")
    front_matter += ["tags: [trl, dpo]", "---"]

    text = [
        f"# {recipe.name}",
        "",
        "Trained with Direct Preference Optimization (arXiv 2305.18290) through TRL, by dpo-recipes.",
        "",
        f"* Policy: {who['policy']}.",
        f"* Reference: {who['reference']}.",
        f"* Data: {_data(recipe, data)}.",
        f"* Loss: {', '.join(sorted(recipe.loss_names))}, beta {recipe.beta:g}.",
        f"* Training: {_training(recipe, settings)}.",
        f"* Pairs: {reading_in_words(reading)}.",
        f"* Versions: {', '.join(f'{package} {version}' for package, version in versions.items())}.",
        "",
        f"## Held out: {pairs} pairs",
        "",
        _table_row("", "before", "after", "95 % interval or s.e."),
        "| --- | ---: | ---: | --- |",
    ]
    text += [_table_row(*result) for result in results]
    text += ["", "## Load it", "", "```python", *_loading_code(recipe, settings, base, folder), "```"]
    return "\n".join([*front_matter, *text]) + "\n"


def _data(recipe: Recipe, data: Mapping[str, Any]) -> str:
    """The data set, its split and, where they were counted, its pairs and what tells them from all others."""
    text = f"{recipe.data.name}, split {recipe.data.train}"
    if "kept" in data["train"]:  # of a stream nothing is counted beforehand
        text += f", {data['train']['kept']:,} pairs"
    if "fingerprint" in data:
        text += f" (fingerprint {data['fingerprint']})"
    return text


def _training(recipe: Recipe, settings: Settings) -> str:
    """The numbers of the optimisation."""
    if recipe.max_steps is not None:
        duration = f"{recipe.max_steps:,} steps"
    elif recipe.num_train_epochs == 1:
        duration = "1 epoch"
    else:
        duration = f"{recipe.num_train_epochs:g} epochs"

    text = (
        f"learning rate {settings.learning_rate:g}, {duration}, {recipe.global_batch_size} pairs a step, "
        f"seed {recipe.seed}"
    )
    if recipe.max_length is not None:
        text += f", at most {recipe.max_length:,} tokens a pair's side"
    return text


def reading_in_words(reading: Mapping[str, Any]) -> str:
    """Whether each pair was read once, and how far that was measured to be from TRL's own forward."""
    if reading["read_once"]:
        return (
            f"each read once, with log-probabilities within {reading['largest_difference']:.1g} nats per token of "
            "TRL's own forward, where both were computed"
        )
    if reading["why_not"] is not None:
        return f"each read twice and padded, as in TRL: {reading['why_not']}"
    return "each read twice and padded, as in TRL, because pair_sharing is off"


def _loading_code(recipe: Recipe, settings: Settings, base: str, folder: Path) -> list[str]:
    """Lines of Python that make `model` and `tokenizer`, as the model was when it was measured."""
    options = f'dtype="{settings.weights}"'
    if recipe.trust_remote_code:
        options += f", trust_remote_code={recipe.trust_remote_code}"
    tokenizer = "tokenizer = AutoTokenizer.from_pretrained(folder)"
    where = f'folder = "{folder.as_posix()}"  # or wherever this card lies now'

    if recipe.adapter is None:
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            where,
            f"model = AutoModelForCausalLM.from_pretrained(folder, {options})",
            tokenizer,
        ]

    if recipe.revision:
        options += f', revision="{recipe.revision}"'
    imported = "AutoModelForCausalLM, AutoTokenizer"
    four_bit = []
    if isinstance(recipe.adapter, QLoRA):
        imported += ", BitsAndBytesConfig"
        options += ", quantization_config=four_bit"
        four_bit = [
            "four_bit = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f'bnb_4bit_use_double_quant={recipe.adapter.double_quant}, bnb_4bit_compute_dtype="{settings.weights}"',
            ")",
        ]
    return [
        "from peft import PeftModel",
        f"from transformers import {imported}",
        "",
        where,
        *four_bit,
        f'base = AutoModelForCausalLM.from_pretrained("{base}", {options})',
        "model = PeftModel.from_pretrained(base, folder)",
        tokenizer,
    ]


def _table_row(*cells: str) -> str:
    """One line of a Markdown table; a recipe's own measure may have any name."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"

"""The model card: the README.md beside the trained weights."""

from collections.abc import Iterable
from typing import Any

from ..recipe.recipe import Recipe


def model_card(
    recipe: Recipe,
    *,
    base_model: str | None,
    who: dict[str, Any],
    pairs: int,
    results: Iterable[tuple[str, str, str, str]],
) -> str:
    """What was trained, from what, on what, and how far it got, as Markdown with the hub's front matter.

    `base_model` is the hub id of the start, None where it is a folder. `who` holds policy and reference in words, as
    in reference.json. `results` are the rows of the closing table, measured on so many held-out `pairs`: what is
    measured, its value before, its value after, and its interval or error.
    """
    front_matter = ["---", f"library_name: {'peft' if recipe.adapter else 'transformers'}"]
    if base_model is not None:
        front_matter.append(f"base_model: {base_model}")
    front_matter += ["tags: [trl, dpo]", "---"]

    text = [
        f"# {recipe.name}",
        "",
        "Trained with Direct Preference Optimization (arXiv 2305.18290) through TRL, by dpo-recipes.",
        "",
        f"* Policy: {who['policy']}.",
        f"* Reference: {who['reference']}.",
        f"* Data: {recipe.data.name}, split {recipe.data.train}.",
        f"* Loss: {', '.join(sorted(recipe.loss_names))}, beta {recipe.beta:g}.",
        "",
        f"## Held out: {pairs} pairs",
        "",
        _table_row("", "before", "after", "95 % interval or s.e."),
        "| --- | ---: | ---: | --- |",
    ]
    text += [_table_row(*result) for result in results]
    return "\n".join([*front_matter, *text]) + "\n"


def _table_row(*cells: str) -> str:
    """One line of a Markdown table; a recipe's own measure may have any name."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"

"""The model card: the README.md beside the trained weights."""

from typing import Any

from ..recipe.recipe import Recipe


def model_card(recipe: Recipe, *, base_model: str | None, who: dict[str, Any], after: dict[str, Any]) -> str:
    """What was trained, from what, on what, and how far it got, as Markdown with the hub's front matter.

    `base_model` is the hub id of the start, None where it is a folder. `who` holds policy and reference in words, as
    in reference.json; `after` the held-out numbers after training, as in evaluation.json.
    """
    front_matter = ["---", f"library_name: {'peft' if recipe.adapter else 'transformers'}"]
    if base_model is not None:
        front_matter.append(f"base_model: {base_model}")
    front_matter += ["tags: [trl, dpo]", "---"]

    low, high = after["rewards/accuracies_interval"]
    text = [
        f"# {recipe.name}",
        "",
        "Trained with Direct Preference Optimization (arXiv 2305.18290) through TRL, by dpo-recipes.",
        "",
        f"* Policy: {who['policy']}.",
        f"* Reference: {who['reference']}.",
        f"* Data: {recipe.data.name}, split {recipe.data.train}.",
        f"* Loss: {', '.join(sorted(recipe.loss_names))}, beta {recipe.beta:g}.",
        f"* Held-out pairs ranked as labelled: {after['rewards/accuracies']:.1%} of {after['pairs']} "
        f"(95 % interval {low:.1%} to {high:.1%}).",
    ]
    return "\n".join([*front_matter, *text]) + "\n"

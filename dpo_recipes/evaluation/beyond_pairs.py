"""What both models do beyond the pairs: how they read unrelated text, and what they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..models.reference import Reference
from ..recipe.recipe import Recipe
from .answers import answers
from .forgetting import forgetting
from .held_out import BeforeAfter
from .unrelated_texts import unrelated_texts

if TYPE_CHECKING:
    from ..training.trainer import RecipeTrainer


def beyond_pairs(
    recipe: Recipe, trainer: RecipeTrainer, reference: Reference, positions: int | None, console: Console
) -> tuple[list[dict[str, Any]], BeforeAfter]:
    """(rows for samples.jsonl, numbers of the reference and of the policy).

    `positions`: how many tokens both models reach, prompt and answer together; None: nothing limits them.
    """
    with trainer.accelerator.autocast():
        of_texts = forgetting(
            trainer.model, reference, trainer.tokenizer_of_text, unrelated_texts(recipe), positions, console
        )
        samples, of_answers = answers(recipe, trainer, reference, positions, console)
    return samples, BeforeAfter(of_texts.before | of_answers.before, of_texts.after | of_answers.after)

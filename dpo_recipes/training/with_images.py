"""Pairs with images in training: what does not go with them, what is chosen for them, and their batches.

Leans on TRL 1.16: `DataCollatorForVisionPreference`, which takes messages in blocks and the images beside them, cuts
rows at max_length wherever that is, and reads no reference from a row; `DPOTrainer` refuses to precompute one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..formats.image_marks import IMAGES, blocks
from ..recipe.adapters import LoRA
from ..recipe.choices import IN_STEPS, TARGETS, Choice
from ..recipe.origins import WAS_SET, origin
from ..recipe.recipe import Recipe

if TYPE_CHECKING:
    from .session import Session

ROW = "row"
NOT_RGB = ("1", "L", "CMYK")  # modes of Pillow that are not in red, green and blue, and have nothing transparent


def refuse_with_images(recipe: Recipe) -> None:
    """RecipeError for what the recipe asks for, and what pairs with images cannot have."""
    options = recipe.trl
    if options.get("precompute_ref_log_probs"):
        raise RecipeError(
            "The pairs have images, whose reference log-probabilities are not computed before training "
            "(trl.precompute_ref_log_probs=True): TRL reads images in each step anew, and keeps nothing of them."
        )
    if recipe.data.reference is not None:
        raise _refusal("data.reference", "a pair is known there by its token ids, which say nothing of its images")
    if recipe.pair_sharing == "require":
        raise _refusal("pair_sharing='require'", "a pair is read once where it is token ids alone")
    if options.get("truncation_mode") == "keep_end":
        raise _refusal("trl.truncation_mode='keep_end'", "that would cut off the prompt, where the images are")
    if isinstance(options.get("pad_to_multiple_of"), int):
        raise _refusal("trl.pad_to_multiple_of", "TRL's collator of images does not know it")
    of_answers = {
        "reward": recipe.reward is not None,
        "measures": bool(recipe.measures),
        "answers": recipe.answers is not None,
    }
    for field, is_set in of_answers.items():
        if is_set:
            raise _refusal(field, "it is of sampled answers, which are drawn to prompts of text alone")


def refuse_images(session: Session, what: str, why: str) -> None:
    """RecipeError where the pairs have images, and a verb is for text alone."""
    if session.has_images:
        raise RecipeError(f"{what} takes pairs of text alone: {why}, and these have images.")


def _refusal(what: str, why: str) -> RecipeError:
    return RecipeError(f"{what} does not go with images: {why}. Delete it.")


def choices_for_images(session: Session) -> list[Choice]:
    """What a recipe leaves open, and pairs with images decide."""
    recipe = session.recipe
    choices = []
    if recipe.precomputes_reference:
        words = "the reference reads the pairs in each step, as TRL precomputes nothing of images"
        if recipe.adapter is None or recipe.reference is not None:
            words += "; it is a second model in memory"
        choices.append(Choice(IN_STEPS, False, words))
    adapter = recipe.adapter
    if isinstance(adapter, LoRA) and not adapter.continue_from and origin(recipe, TARGETS) not in WAS_SET:
        choices.append(Choice(TARGETS, _linear_of_language_part(session), OF_LANGUAGE))
    return choices


OF_LANGUAGE = (
    "LoRA is on the part that reads text; what reads images, and what leads from there to the text, stays as it is"
)


def _linear_of_language_part(session: Session) -> str:
    """A pattern of the linear modules in the part of a model that reads text, as target_modules takes one."""
    from ..models.adapter import LINEAR
    from ..models.auto_class import language_part
    from ..models.skeleton import skeleton

    model = skeleton(session.recipe, session.settings, session.model_path, trainable=False)
    part = language_part(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    endings = {name.rpartition(".")[2] for name in linear if name.startswith(f"{part}.")}
    return rf"{re.escape(part)}\..*\.({'|'.join(sorted(endings))})"


class WithImages:
    """TRL's collator of pairs with images, which are read from their files here."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any]):
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collate([_as_trl_takes_it(example) for example in examples]))
        # TRL would read on: some models raise at an image without its tokens, and others read what is left of it.
        ends_in_prompt = ~batch["completion_mask"].bool().any(dim=1)
        if ends_in_prompt.any():
            place = int(ends_in_prompt.nonzero()[0]) % len(examples)
            raise RecipeError(
                f"Row {examples[place].get(ROW, place)}: its images make more tokens than were counted, and max_length "
                "cuts through them. Raise max_length."
            )
        return batch


def _as_trl_takes_it(example: dict[str, Any]) -> dict[str, Any]:
    """A pair with its messages in blocks, and its images open."""
    taken: dict[str, Any] = {name: blocks(example[name]) for name in ("prompt", "chosen", "rejected")}
    taken[IMAGES] = [_open(image, example) for image in example[IMAGES] or []]
    taken["chat_template_kwargs"] = example.get("chat_template_kwargs") or {}
    return taken


def _open(image: dict[str, Any], example: dict[str, Any]) -> Any:
    from ..data.images import opened

    try:
        opened_image = opened(image["path"])
    except Exception as error:  # of the disk, or of Pillow's many readers
        raise RecipeError(
            f"Row {example.get(ROW, '')}: its image {image['path']} could be read when the run began, and cannot any "
            f"more: {error}. Put it back, and go on with --resume."
        ) from error
    if opened_image.size != (image["width"], image["height"]):
        raise RecipeError(
            f"Row {example.get(ROW, '')}: its image {image['path']} is no longer {image['width']}x{image['height']}: "
            "it was changed since the run began. Start the run again."
        )
    if opened_image.mode in NOT_RGB:  # which some processors do not take, and those that do make it so themselves
        return opened_image.convert("RGB")
    return opened_image

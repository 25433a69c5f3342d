"""The tokenizer, or the processor around it, with the chat template that the recipe asks for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer

from ..data.chat_template import pin_date, unread_kwargs
from ..errors import RecipeError
from ..recipe.data import Data
from ..recipe.recipe import Recipe
from .loading_errors import explained, refuse_damaged


@dataclass
class Tokenizer:
    """A tokenizer as training uses it, and the chat template that is saved with the model."""

    tokenizer: Any
    template: str | None  # as published or as the recipe gives it, not pinned to a date
    processor: Any = None  # of pairs with images: it reads them beside the text

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a model folder, with the template that prints the date of the day.

        Where the model reads images, its processor, of which the tokenizer is a part.
        """
        pinned = self.tokenizer.chat_template
        written = self.tokenizer if self.processor is None else self.processor
        self.tokenizer.chat_template = written.chat_template = self.template
        try:
            written.save_pretrained(folder)
        finally:
            self.tokenizer.chat_template = written.chat_template = pinned


def load_tokenizer(recipe: Recipe, path: str, say: Callable[[str], None] = lambda _: None) -> Tokenizer:
    """The model's tokenizer, with the recipe's chat template and date.

    RecipeError where there is none, where no answer could end, or where a chat template is set up that is not there.
    """
    with explained("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
        )
    if tokenizer.eos_token is None:
        refuse_damaged("tokenizer", path)  # without its tokenizer_config.json it loads, and knows no end
        raise RecipeError(
            f"The tokenizer of {path!r} has no end token, so no answer could end. Set eos_token in its "
            "tokenizer_config.json."
        )

    template = _one_template(recipe.data.chat_template or tokenizer.chat_template, path)
    if template is None:
        _refuse_template_settings(recipe.data, path)
    tokenizer.chat_template = _pinned(template, recipe.data, say)
    unread = unread_kwargs(template or "", recipe.data.chat_template_kwargs)
    if unread:
        say(f"data.chat_template_kwargs: this chat template does not read {', '.join(unread)}.")
    return Tokenizer(tokenizer, template)


def with_processor(recipe: Recipe, path: str, loaded: Tokenizer) -> Tokenizer:
    """The processor of a vision-language model, with the tokenizer in it, in place of the tokenizer `loaded` alone.

    RecipeError where the model reads no images, or where its processor cannot be loaded.
    """
    torchvision = ""
    if importlib.util.find_spec("torchvision") is None:
        torchvision = " Processors that read videos too, as Qwen2.5-VL's, need torchvision: pip install torchvision"
    try:
        with explained("processor", path):
            processor: Any = AutoProcessor.from_pretrained(
                path, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
            )
    except RecipeError as error:
        raise RecipeError(f"{error}{torchvision}") from error
    if getattr(processor, "image_processor", None) is None:
        raise RecipeError(
            f"The pairs have images, and {path!r} reads text alone. Take a vision-language model; or, to train on the "
            "text without its images, take their column out, in the file or with data.reader."
        )

    template = _one_template(recipe.data.chat_template or processor.chat_template or loaded.template, path)
    processor.chat_template = _pinned(template, recipe.data, lambda _: None)
    processor.tokenizer.chat_template = processor.chat_template
    return Tokenizer(processor.tokenizer, template, processor)


def _one_template(template: Any, path: str) -> str | None:
    """The chat template; of several, which some tokenizers carry by name, the one that is called default."""
    if not isinstance(template, dict):
        return template
    if "default" not in template:
        raise RecipeError(
            f"The tokenizer of {path!r} has the chat templates {', '.join(template)}, and none that is called "
            "default. Give the text of the one to use as data.chat_template."
        )
    return template["default"]


def _refuse_template_settings(data: Data, path: str) -> None:
    """What is set for a chat template would do nothing without one."""
    for name in ("chat_template_kwargs", "template_date"):
        if getattr(data, name):
            raise RecipeError(f"data.{name} is for a chat template, and the tokenizer of {path!r} has none.")


def _pinned(template: str | None, data: Data, say: Callable[[str], None]) -> str | None:
    """The template as training uses it: with the recipe's date, where it prints one."""
    if template is None or data.template_date is None:
        return template
    pinned = pin_date(template, data.template_date)
    if pinned == template and "strftime_now" in template:
        raise RecipeError(
            f"data.template_date={data.template_date} cannot be set: this chat template asks for the date in a form "
            "that it computes. Write strftime_now('%d %B %Y') into data.chat_template, or delete template_date: then "
            "tokens change from day to day."
        )
    if pinned == template:
        say(f"data.template_date={data.template_date} changes nothing: this chat template prints no date.")
    return pinned


def need_embeddings(model: Any, tokenizer: Any, who: str = "the model") -> None:
    """Refuse a tokenizer with more tokens than a model has embeddings, before a row that uses one of them."""
    tokens = len(tokenizer)
    embeddings = model.get_input_embeddings().weight.shape[0]
    if tokens > embeddings:
        raise RecipeError(
            f"The tokenizer has {tokens} tokens, but {who} {embeddings} embeddings: they do not match. "
            "Take the tokenizer that the model was trained with, or resize the model to this one "
            "(resize_token_embeddings) and save it."
        )


def need_same_tokens(tokenizer: Any, reference_path: str, trust_remote_code: bool) -> None:
    """Refuse a reference that reads the policy's token ids as other words.

    A reference that comes without a tokenizer of its own is taken at its word.
    """
    try:
        of_the_reference = AutoTokenizer.from_pretrained(reference_path, trust_remote_code=trust_remote_code)
    except Exception:  # it may have none, and needs none
        return
    token_of_the_reference = {index: token for token, index in of_the_reference.get_vocab().items()}
    different = []
    for token, index in tokenizer.get_vocab().items():
        other = token_of_the_reference.get(index, token)
        if other != token:
            different.append((index, token, other))
    if not different:
        return
    index, token, other = min(different)
    raise RecipeError(
        f"reference={reference_path!r} has another vocabulary than the model: {len(different):,} token ids mean "
        f"something else, such as {index}, {token!r} to the model and {other!r} to the reference. Its "
        "log-probabilities would be of other texts. Take a reference with the model's own tokenizer."
    )

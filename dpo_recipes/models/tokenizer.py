"""The tokenizer, with the chat template that the recipe asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..data.chat_template import pin_date, unread_kwargs
from ..errors import RecipeError
from ..recipe.recipe import Recipe
from .loading_errors import explained

Say = Callable[[str], None]


@dataclass
class Tokenizer:
    """A tokenizer as training uses it, and the chat template that is saved with the model."""

    tokenizer: Any
    template: str | None  # as published or as the recipe gives it, not pinned to a date

    def save(self, folder: Path) -> None:
        pinned, self.tokenizer.chat_template = self.tokenizer.chat_template, self.template
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.chat_template = pinned


def load_tokenizer(recipe: Recipe, path: str, say: Say = lambda _: None) -> Tokenizer:
    """The model's tokenizer, with the recipe's chat template and date. RecipeError when there is none."""
    data, trust = recipe.data, recipe.trust_remote_code
    with explained("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=recipe.revision, trust_remote_code=trust)
    if tokenizer.eos_token is None:
        raise RecipeError(f"The tokenizer of {path!r} has no end token, so no answer could end. Set eos_token.")
    template = data.chat_template or tokenizer.chat_template
    if isinstance(template, dict):  # some tokenizers carry several by name
        template = template.get("default")
    given = [n for n in ("chat_template_kwargs", "template_date") if getattr(data, n)]
    if template is None and given:
        raise RecipeError(f"data.{given[0]} is for a chat template, and the tokenizer of {path!r} has none.")
    tokenizer.chat_template = pin_date(str(template), data.template_date) if data.template_date else template
    if data.template_date and tokenizer.chat_template == template:
        say(f"data.template_date={data.template_date} changes nothing: this chat template prints no date.")
    if unread := unread_kwargs(template or "", data.chat_template_kwargs):
        say(f"data.chat_template_kwargs: this chat template does not read {', '.join(unread)}.")
    return Tokenizer(tokenizer, template)


def need_embeddings(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings, before a row that uses one of them."""
    tokens, rows = len(tokenizer), model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise RecipeError(f"The tokenizer has {tokens} tokens, but the model {rows} embeddings: they do not match.")

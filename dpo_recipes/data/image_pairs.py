"""Pairs with images: their texts as a processor's chat template writes them, and the tokens that images become.

Leans on TRL 1.16: how `apply_chat_template` parts prompt and completions, and `DataCollatorForVisionPreference` makes
ids of each part by itself, with the images in the prompt.
"""

from __future__ import annotations

import json
import os.path
from typing import Any

from ..errors import RecipeError
from ..formats.image_marks import IMAGES, blocks, in_words
from ..formats.messages import Row
from .pair_ids import REFUSED, row_of_batch

REFUSED_BY_PROCESSOR = "the model's processor refuses it"

# What the template is tried on: no template writes these words of its own, and no image is between them unasked.
BEFORE = "Here are reeds"
BEHIND = "Name the river"


class ImageReader:
    """A processor with what it makes of texts and of images, without an image being read."""

    def __init__(self, processor: Any, kwargs: dict[str, Any] | None = None):
        """`kwargs`: data.chat_template_kwargs. RecipeError where the chat template writes nothing for an image."""
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.kwargs = kwargs or {}
        self.placeholder = self._placeholder()  # what the chat template writes for an image, without white space
        self._tokens: dict[tuple[int, int], int] = {}  # width and height -> more tokens than the placeholder has

    def apply_chat_template(self, conversation: list[Row], **options: Any) -> str:
        """What the template writes, of messages with text as their content."""
        return str(self.processor.apply_chat_template(blocks(conversation), **{"tokenize": False, **options}))

    def _probe(self, *content: Row) -> str:
        before, behind = ({"type": "text", "text": text} for text in (BEFORE, BEHIND))
        message = {"role": "user", "content": [before, *content, behind]}
        return str(self.processor.apply_chat_template([message], tokenize=False, **self.kwargs))

    def _placeholder(self) -> str:
        try:
            without, with_image = self._probe(), self._probe({"type": "image"})
        except Exception as error:  # of Jinja, or of whatever a template does to blocks that it does not expect
            raise _no_place_for_images(str(error) or type(error).__name__) from error
        same = len(os.path.commonprefix([without, with_image]))
        placeholder = with_image[same : same + len(with_image) - len(without)].strip()
        if not placeholder:
            raise _no_place_for_images("it writes the same with an image as without one")
        return placeholder

    def tokens_of(self, image: Row) -> int:
        """How many tokens an image makes of its place in the prompt, beyond those of the placeholder.

        That depends on its size alone, so that the processor is asked once for each size, with an empty image.
        """
        size = (image["width"], image["height"])
        if size not in self._tokens:
            from PIL import Image

            text = self._probe({"type": "image"})
            processed = self.processor(images=[[Image.new("RGB", size)]], text=[text], add_special_tokens=False)
            [ids] = processed["input_ids"]
            self._tokens[size] = len(ids) - len(self._ids([text])[0])
        return self._tokens[size]

    def render(self, batch: dict[str, list]) -> tuple[list[list[str]], list[str], list[int]]:
        """(the three strings of each pair: prompt, prompt with chosen, with rejected; why it is refused; the tokens of
        its images, beyond those of the placeholders).

        Of a pair that is refused the strings are empty, and of any other the reason is.
        """
        strings: list[list[str]] = []
        refusals: list[str] = []
        image_tokens: list[int] = []
        for pair in range(len(batch["row"])):
            row = row_of_batch(batch, pair)
            of_pair, refusal, tokens = ["", "", ""], "", 0
            try:
                of_pair = self._strings(row)
                refusal = self._misplaced(of_pair[0], row[IMAGES] or [])
            except Exception as error:  # of Jinja, or of whatever a template does to a row that it does not expect
                refusal = f"{REFUSED}: {_words_of(error)}"
            if not refusal:
                try:
                    tokens = sum(self.tokens_of(image) for image in row[IMAGES] or [])
                except Exception as error:  # of Transformers or of NumPy: an image may be too thin to be cut in tiles
                    refusal = f"{REFUSED_BY_PROCESSOR}: {_words_of(error)}"
            strings.append(["", "", ""] if refusal else of_pair)
            refusals.append(refusal)
            image_tokens.append(tokens)
        return strings, refusals, image_tokens

    def _strings(self, row: Row) -> list[str]:
        """Prompt, prompt with chosen, prompt with rejected; the prompt is what all three start with, as in TRL."""
        options = row.get("chat_template_kwargs") or {}
        prompt = self.apply_chat_template(row["prompt"], add_generation_prompt=True, **options)
        sides = [self.apply_chat_template(row["prompt"] + row[side], **options) for side in ("chosen", "rejected")]
        return [os.path.commonprefix([prompt, *sides]), *sides]

    def _misplaced(self, prompt: str, images: list[Row]) -> str:
        """Why the rendered prompt has not a place for each image; "" where it has."""
        places = prompt.count(self.placeholder)
        if places == len(images):
            return ""
        return f"{REFUSED}: it makes {places} places {self.placeholder!r} for {len(images)} images"

    def sequences(self, strings: list[list[str]]) -> tuple[list, list, list]:
        """The ids of the prompts, of the prompts with chosen, of those with rejected, each part tokenised by itself.

        An image's place has the ids of the placeholder alone.
        """
        prompts = self._ids([prompt for prompt, _, _ in strings])
        chosen = self._ids([with_chosen[len(prompt) :] for prompt, with_chosen, _ in strings])
        rejected = self._ids([with_rejected[len(prompt) :] for prompt, _, with_rejected in strings])
        with_chosen = [prompt + side for prompt, side in zip(prompts, chosen, strict=True)]
        with_rejected = [prompt + side for prompt, side in zip(prompts, rejected, strict=True)]
        return prompts, with_chosen, with_rejected

    def _ids(self, strings: list[str]) -> list[list[int]]:
        return self.tokenizer(strings, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]

    def with_words(self, text: str, images: list[Row]) -> str:
        """A rendered text for a reader: what stands in it for each image as words, such as [image 640x480]."""
        for image in images:
            before, place, behind = text.partition(self.placeholder)
            if place:
                blank = " " if behind[:1].strip() else ""
                text = f"{before}{in_words(image)}{blank}{behind}"
        return text

    def state(self) -> str:
        """All that the ids depend on beside the tokenizer, as text."""
        return json.dumps([self.processor.to_dict(), str(self.processor.chat_template)], sort_keys=True, default=str)


def _words_of(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")[:200]


def _no_place_for_images(reason: str) -> RecipeError:
    return RecipeError(
        f"The chat template has no place for an image: {reason.rstrip('.')}. Take the model's own, or a "
        "data.chat_template that reads content in blocks of type text and image."
    )

"""A sampled reply, and the question that it answers."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RecipeError

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    text: str  # decoded without special tokens, not stripped
    token_ids: list[int]  # what was sampled, with the end token when there is one
    ended: bool  # False: cut off by the cap on new tokens


Replies = list[list[Reply]]  # shape (prompts, samples)


def question(prompt: Messages) -> str:
    """What a reward function gets as its prompt: the content of the last user message."""
    for message in reversed(prompt):
        if message["role"] == "user":
            return message["content"]
    raise RecipeError(f"The prompt {prompt!r} has no user message, so a reward has nothing to judge a reply by.")

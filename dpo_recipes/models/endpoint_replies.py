"""Replies sampled from a model behind an endpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from ..data.replies import Messages, Replies, Reply
from ..errors import RecipeError
from .endpoint import SHOWN, Client

SAMPLED_AT_ONCE = 16  # prompts that wait for their replies at the same time


def sampled(
    client: Client,
    prompts: Sequence[Messages | str],
    *,
    samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    chat_template_kwargs: dict[str, Any],
    seed: int,
    progress: Callable[[float, int], None],
) -> Replies:
    """`samples` replies to each prompt, in the order given: a list of shape (prompts, samples).

    Messages are asked as chats, which the endpoint renders with the template of the model that it serves; plain text
    is continued. An endpoint that gives fewer replies at a time than it is asked for is asked again. Each prompt has a
    seed of its own, which not every endpoint heeds. `progress(done, total)` counts replies.
    """
    settings: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens}
    if chat_template_kwargs:
        settings["chat_template_kwargs"] = chat_template_kwargs

    def question(number: int, prompt: Messages | str) -> Callable[[], list[Reply]]:
        return lambda: _replies(client, prompt, samples, f"{seed} {number}", settings)

    questions = [question(number, prompt) for number, prompt in enumerate(prompts)]
    total = len(prompts) * samples
    return client.all(questions, SAMPLED_AT_ONCE, lambda index: progress((index + 1) * samples, total))


def _replies(client: Client, prompt: Messages | str, samples: int, seed: str, settings: dict[str, Any]) -> list[Reply]:
    """The replies to one prompt."""
    replies: list[Reply] = []
    while len(replies) < samples:
        asked = {"n": samples - len(replies), "seed": _seed(f"{seed} {len(replies)}"), **settings}
        if isinstance(prompt, str):
            text_settings = {name: value for name, value in asked.items() if name != "chat_template_kwargs"}
            answer = client.ask("completions", prompt=prompt, **text_settings)
        else:
            answer = client.ask("chat/completions", messages=prompt, **asked)
        choices = answer.get("choices")
        if not isinstance(choices, list):
            raise client.unlike_the_protocol(answer)
        if not choices:
            raise RecipeError(
                f"The {client.who} at {client.endpoint.url} was asked for {asked['n']} replies to a prompt and gave "
                f"none. It answered: {json.dumps(answer)[:SHOWN]}"
            )
        replies += [_reply(client, choice) for choice in choices[: samples - len(replies)]]
    return replies


def _reply(client: Client, choice: Any) -> Reply:
    """One choice of an answer; which tokens it was made of, an endpoint does not say."""
    try:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        ended = choice["finish_reason"] == "stop"  # and not cut off, filtered, or a call of a tool
    except (LookupError, TypeError):
        raise client.unlike_the_protocol(choice) from None
    if text is not None and not isinstance(text, str):
        raise client.unlike_the_protocol(choice)
    return Reply(text or "", token_ids=[], ended=ended)


def _seed(of: str) -> int:
    """Small enough for every endpoint."""
    return int(hashlib.sha256(of.encode()).hexdigest()[:7], 16)

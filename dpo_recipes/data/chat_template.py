"""A chat template, which is Jinja: the date that it prints, the names that it reads, and what it does unasked."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from ..errors import Finding, RecipeError

# strftime_now("<format>"), the function by which a template asks Transformers for today's date.
STRFTIME_NOW = re.compile(r"""strftime_now\(\s*(["'])(?P<format>.*?)\1\s*\)""")
# {% generation %} and {% endgeneration %}, tags that only Transformers knows.
GENERATION_TAG = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")


def pin_date(template: str, date: str) -> str:
    """The template with that date (YYYY-MM-DD) in place of each strftime_now("<format>").

    SmolLM3 and Llama 3.2 print today's date: their tokens, and all that is computed from them, would change daily.
    """
    day = datetime.fromisoformat(date)

    def as_string(call: re.Match[str]) -> str:
        quote = call[1]
        return quote + day.strftime(call["format"]) + quote

    return STRFTIME_NOW.sub(as_string, template)


def unread_kwargs(template: str, kwargs: dict[str, Any]) -> list[str]:
    """The names among `kwargs` that the chat template never reads; RecipeError if it is no Jinja."""
    import jinja2

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(GENERATION_TAG.sub("", template))
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(
            f"The chat template's line {error.lineno} is not valid Jinja: {error.message} Correct "
            "data.chat_template or, where the recipe gives none, chat_template.jinja of the model."
        ) from None

    names_read = {name.name for name in parsed.find_all(jinja2.nodes.Name) if name.ctx == "load"}
    return [name for name in kwargs if name not in names_read]


def merge_system(row: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a row with each system message put before the question that follows it, an empty line between."""
    merged: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in row["prompt"]:
        if message["role"] in ("system", "developer"):
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            merged.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            merged.append(message)
    return {"prompt": merged}


def template_findings(template: str | None, kwargs: dict[str, Any]) -> list[Finding]:
    """What a chat template may do unasked: print today's date, or think.

    `template`: None for plain text, to which none is applied; `kwargs`: data.chat_template_kwargs.
    """
    if template is None:
        return [Finding("pass", "template", "plain text, to which no chat template is applied")]

    warnings = []
    if "strftime_now" in template:
        warnings.append(
            "The chat template prints today's date, so tokens change from day to day: set data.template_date."
        )
    if "enable_thinking" in template and "enable_thinking" not in kwargs:
        warnings.append(
            "The chat template can think, and its own default decides. Say which: "
            "data.chat_template_kwargs={'enable_thinking': False}, or True."
        )
    if not warnings:
        return [Finding("pass", "template", "a chat template, the same tokens every day")]
    return [Finding("warn", "template", text) for text in warnings]

"""A prompt, and what the reference and the policy of a run answer to it, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data.chat_template import merge_system
from ..runs.folder import Run
from ..runs.rebuilt import recipe_of
from ..training.finished import policy_and_reference
from ..training.session import Session

Shown = Callable[[str, str], None]  # shown(side, text so far): side is "reference" or "policy"


def chat(
    run: Run | Path | str,
    prompts: Iterable[str],
    *,
    system: str | None = None,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    seed: int = 0,
    shown: Shown = lambda side, text: None,
    answered: Callable[[dict[str, str]], None] = lambda answer: None,
    console: Console | None = None,
) -> list[dict[str, str]]:
    """{"prompt", "reference", "policy"} for each prompt, which is the first message of a conversation of its own.

    Both sides answer with the same seed, at `temperature` 0 with the likeliest answer. `shown(side, text so far)` is
    called as an answer grows, `answered` when both are there; prompts are taken one by one, as they come. RecipeError
    for a run that has no model, or whose reference is gone.
    """
    console = console or Console(quiet=True)
    run = run if isinstance(run, Run) else Run(run)
    recipe = recipe_of(run)
    policy, reference, tokenizer = policy_and_reference(run, Session(recipe, console, with_pairs=False))

    from ..models.generate import Growing, generate

    answers: list[dict[str, str]] = []
    for text in prompts:
        prompt: Any = text
        if tokenizer.chat_template is not None:
            prompt = _conversation(text, system, merged=recipe.data.system == "merge")

        def answer(model: Any, side: str, prompt: Any = prompt) -> str:
            [[reply]] = generate(
                model,
                tokenizer,
                [prompt],
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                seed=seed,
                chat_template_kwargs=recipe.data.chat_template_kwargs,
                streamer=Growing(tokenizer, lambda so_far: shown(side, so_far)),
            )
            return reply.text

        with reference.model() as model:
            of_reference = answer(model, "reference")
        answers.append({"prompt": text, "reference": of_reference, "policy": answer(policy, "policy")})
        answered(answers[-1])
    return answers


def _conversation(text: str, system: str | None, *, merged: bool) -> list[dict[str, str]]:
    """The messages of a prompt, behind the system message where one is given, or with it in front of the question."""
    asked = [{"role": "user", "content": text}]
    if system is None:
        return asked
    conversation = [{"role": "system", "content": system}, *asked]
    return merge_system({"prompt": conversation})["prompt"] if merged else conversation

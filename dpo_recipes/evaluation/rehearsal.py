"""What an evaluation will ask, and a recipe's reward and measures called once before training: faults show by then.

Nothing of torch or TRL is imported, as `check` asks here too.
"""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from ..data.replies import Messages, question
from ..errors import Finding, RecipeError
from ..formats.image_marks import IMAGES
from ..losses.selection import name_of
from ..recipe.judges import JudgeEndpoint, RewardModel
from ..recipe.recipe import Recipe
from .judge_endpoint import Judge
from .unrelated_texts import unrelated_texts

Score = Callable[[str, str], float]  # (prompt, completion) -> a number: a recipe's reward or one of its measures

PROMPTS = 64  # held-out prompts that are asked, at most
MAX_NEW_TOKENS = 256
LEAST_NEW_TOKENS = 16  # a prompt with room for fewer is not asked

NO_ANSWERS = "No answers are drawn: the held-out prompts have images, and replies are sampled to text alone."

LONG = 10.0  # seconds that all calls of an evaluation may take without a word about it
SHOWN = 60  # characters of a text that a message shows


class Draws(NamedTuple):
    """How many answers to each prompt are drawn."""

    policy: int
    reference: int


def draws(recipe: Recipe) -> Draws:
    """One answer of each; several where a reward tells them apart at little cost, so that its mean is known well."""
    scores_each = recipe.reward is not None and not isinstance(recipe.reward, JudgeEndpoint)
    if recipe.answers is not None:
        return Draws(policy=recipe.answers, reference=3 * recipe.answers if scores_each else recipe.answers)
    if not scores_each:
        return Draws(policy=1, reference=1)
    if isinstance(recipe.reward, RewardModel):
        return Draws(policy=4, reference=8)
    return Draws(policy=8, reference=24)


class Questions(NamedTuple):
    """The held-out prompts that are asked, each once, in the order of the pairs."""

    prompts: list[Messages | str]
    ids: list[list[int]]  # their tokens, which are training's, so that what the template did there is done here
    max_new_tokens: int  # of an answer
    without_room: int  # prompts that leave no room for so long an answer


def questions(recipe: Recipe, held_out: Any, positions: int | None) -> Questions:
    """What the evaluation asks, of held-out pairs with `prompt` and `prompt_ids`.

    `positions`: how many tokens policy and reference reach, prompt and answer together; None: nothing limits them.
    """
    if has_images(held_out):
        return Questions(prompts=[], ids=[], max_new_tokens=MAX_NEW_TOKENS, without_room=0)
    distinct: dict[tuple[int, ...], Messages | str] = {}
    for row in held_out.select_columns(["prompt", "prompt_ids"]):
        distinct.setdefault(tuple(row["prompt_ids"]), row["prompt"])
    max_new_tokens = _new_tokens(recipe, [len(ids) for ids in distinct], positions)
    longest = math.inf if positions is None else positions - max_new_tokens

    fitting = {ids: prompt for ids, prompt in distinct.items() if len(ids) <= longest}
    asked = list(fitting.items())[:PROMPTS]
    return Questions(
        prompts=[prompt for _, prompt in asked],
        ids=[list(ids) for ids, _ in asked],
        max_new_tokens=max_new_tokens,
        without_room=len(distinct) - len(fitting),
    )


def has_images(held_out: Any) -> bool:
    return IMAGES in held_out.column_names


def _new_tokens(recipe: Recipe, prompt_lengths: list[int], positions: int | None) -> int:
    """How long an answer may be, tokens: what the positions leave behind at least half of the prompts, if that is less.

    Behind learned positions there are no others, and rotary ones are far from all that the model was trained on.
    """
    usual = min(MAX_NEW_TOKENS, recipe.max_length or MAX_NEW_TOKENS)
    if positions is None or not prompt_lengths:
        return usual
    room = positions - statistics.median_high(prompt_lengths)
    return min(usual, max(room, LEAST_NEW_TOKENS))


def rehearsed(recipe: Recipe, held_out: Any, positions: int | None) -> list[Finding]:
    """What the evaluation of answers can do, known before training.

    How long the answers can be where the model reaches `positions` tokens (None: nothing limits it), and the recipe's
    reward and measures on a held-out pair, as they will be called.
    """
    if has_images(held_out):
        return [Finding("info", "answers", NO_ANSWERS), *_forgetting_findings(recipe)]
    asked = questions(recipe, held_out, positions)
    scores = dict(recipe.measures)
    if callable(recipe.reward):
        scores = {name_of(recipe.reward): recipe.reward} | scores
    calls = len(asked.prompts) * sum(draws(recipe))
    findings = _length_findings(recipe, asked, positions) + rehearse(scores, held_out, calls)
    findings += _forgetting_findings(recipe)
    return findings + _judge_findings(recipe, held_out, len(asked.prompts))


def _forgetting_findings(recipe: Recipe) -> list[Finding]:
    """Whether the text that both models read after training can be had."""
    try:
        unrelated_texts(recipe)
    except RecipeError as error:
        return [Finding("fail", "forgetting", str(error))]
    return []


def _judge_findings(recipe: Recipe, held_out: Any, prompts: int) -> list[Finding]:
    """Whether a reward model has a reward, and a judge a verdict, as far as one question and no weight tell."""
    try:
        if isinstance(recipe.reward, RewardModel):
            from ..models.reward_model import refuse_no_reward_model

            refuse_no_reward_model(recipe.reward)
            return [Finding("pass", "reward", f"{recipe.reward.path} is a reward model")]
        if not isinstance(recipe.reward, JudgeEndpoint):
            return []

        judge = recipe.reward
        pair = next(iter(held_out))
        asked = Judge(judge)
        verdict = asked.verdict(prompt_text(pair["prompt"]), _text_of(pair["chosen"]), _text_of(pair["rejected"]))
    except RecipeError as error:
        return [Finding("fail", "reward", str(error))]
    tokens = asked.bill.prompt_tokens + asked.bill.completion_tokens
    cost = f"; it counted {tokens:,} tokens for one, and is asked up to {2 * prompts:,} times" if tokens else ""
    said = "gave no verdict" if verdict is None else "gave a verdict"
    level: Any = "warn" if verdict is None else "pass"
    return [Finding(level, "reward", f"{judge.model} at {judge.url} {said} of a held-out pair{cost}")]


def _length_findings(recipe: Recipe, asked: Questions, positions: int | None) -> list[Finding]:
    """A finding where the model's positions shorten the answers, or leave none."""
    prompts = len(asked.prompts) + asked.without_room
    if positions is None or not prompts:
        return []
    usual = _new_tokens(recipe, [], None)
    new_tokens = asked.max_new_tokens
    enough = len(asked.prompts) == PROMPTS or not asked.without_room
    if new_tokens == usual and enough:
        return []

    reach = f"The model has {positions:,} positions, for prompt and answer together"
    if not asked.prompts:
        text = f"{reach}: no held-out prompt leaves room for an answer of {new_tokens} tokens."
        if recipe.reward or recipe.measures:
            text += " The reward and the measures need answers: shorten the prompts, or delete reward and measures."
            return [Finding("fail", "answers", text)]
        return [Finding("warn", "answers", f"{text} samples.jsonl will be empty.")]

    text = f"{reach}: an answer gets at most {new_tokens} new tokens"
    if new_tokens < usual:
        text += f" instead of {usual}"
    if not enough:
        text += (
            f", and only the {len(asked.prompts):,} of {prompts:,} held-out prompts that leave room for it are asked"
        )
    return [Finding("warn", "answers", f"{text}.")]


def rehearse(scores: dict[str, Score], pairs: Iterable[dict[str, Any]], calls: int) -> list[Finding]:
    """A finding for each function, from the first held-out pair: both its sides, and the empty answer a model may give.

    `calls`: how often the evaluation will call each of them.
    """
    pair = next(iter(pairs), None)
    if not scores or pair is None:
        return []
    try:
        prompt = prompt_text(pair["prompt"])
    except RecipeError as error:
        return [Finding("fail", name, str(error)) for name in scores]
    completions = [_text_of(pair["chosen"]), _text_of(pair["rejected"]), ""]
    return [_rehearsed(name, score, prompt, completions, calls) for name, score in scores.items()]


def prompt_text(prompt: Messages | str) -> str:
    """What a reward gets as its prompt: plain text as it is, of messages the last user's."""
    return prompt if isinstance(prompt, str) else question(prompt)


def _text_of(side: Messages | str) -> str:
    if isinstance(side, str):
        return side
    return str(side[0].get("content") or "")


def _rehearsed(name: str, score: Score, prompt: str, completions: list[str], calls: int) -> Finding:
    printed = io.StringIO()
    seconds = []
    try:
        for completion in completions:
            begun = time.perf_counter()
            with contextlib.redirect_stdout(printed):
                number_of(name, score, prompt, completion)
            seconds.append(time.perf_counter() - begun)
    except RecipeError as error:
        return Finding("fail", name, str(error))

    remarks = []
    whole = calls * min(seconds)  # the first call may have loaded something
    if whole > LONG:
        remarks.append(
            f"{name}() took {min(seconds):.2g} s a call; the evaluation calls it {calls:,} times, which takes about "
            f"{timedelta(seconds=round(whole))}."
        )
    if printed.getvalue():
        remarks.append(f"{name}() prints, and the evaluation calls it {calls:,} times.")
    if remarks:
        return Finding("warn", name, " ".join(remarks))
    return Finding("pass", name, f"{name}() gives a number for a held-out pair and for an empty answer")


def number_of(name: str, score: Score, prompt: str, completion: str) -> float:
    """score(prompt, completion), a finite number; RecipeError for an error or anything else, with what it was given."""
    given = f"prompt={_shortened(prompt)} (text; of messages, the last user's) and completion={_shortened(completion)}"
    try:
        value: Any = score(prompt, completion)
    except (Exception, SystemExit) as error:  # the user's function
        raise RecipeError(f"{name}() failed with {given}: {type(error).__name__}: {error}.") from error

    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # NumPy's and torch's single numbers
    if not isinstance(value, (int, float)):
        returned = "None" if value is None else f"a {type(value).__name__}, {_shortened(value)},"
        raise RecipeError(f"{name}() must return a number, and returned {returned} with {given}.")
    if not math.isfinite(value):
        raise RecipeError(f"{name}() must return a finite number, and returned {value} with {given}.")
    return float(value)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

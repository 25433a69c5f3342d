"""Answers of reference and policy to the same prompts, and what a reward and the recipe's measures say of them."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from rich.console import Console

from ..data.replies import Messages, Reply
from ..errors import Finding
from ..losses.selection import name_of
from ..models.generate import generate
from ..models.reference import Reference
from ..progress import Stage
from ..recipe.recipe import Recipe
from ..training.trainer import RecipeTrainer
from .frontier import best_reward_at_kl
from .held_out import Numbers
from .kl import sequence_kl
from .rehearsal import Score, number_of, prompt_text, rehearse

Replies = list[list[Reply]]  # shape (prompts, samples)
BeforeAfter = tuple[Numbers, Numbers]

MAX_NEW_TOKENS = 256
LEAST_NEW_TOKENS = 16  # a prompt with room for fewer is not asked
SAMPLED_PROMPTS = 8  # held-out prompts whose answers land in samples.jsonl
# Where the recipe has a reward, more prompts are asked and several answers are drawn to each.
REWARDED_PROMPTS = 64
POLICY_SAMPLES = 8
REFERENCE_SAMPLES = 24


def rehearsed(recipe: Recipe, held_out: Any, positions: int | None) -> list[Finding]:
    """What the evaluation of answers can do, known before training.

    How long the answers can be where the model reaches `positions` tokens (None: nothing limits it), and the recipe's
    reward and measures on a held-out pair, as `answers` will call them.
    """
    scores = dict(recipe.measures)
    if recipe.reward:
        scores = {name_of(recipe.reward): recipe.reward} | scores
        calls = min(REWARDED_PROMPTS, len(held_out)) * (POLICY_SAMPLES + REFERENCE_SAMPLES)
    else:
        calls = min(SAMPLED_PROMPTS, len(held_out)) * 2
    return _length_findings(recipe, held_out, positions) + rehearse(scores, held_out, calls)


def _length_findings(recipe: Recipe, held_out: Any, positions: int | None) -> list[Finding]:
    """A finding where the model's positions shorten the answers, or leave none."""
    lengths = [len(ids) for ids in held_out["prompt_ids"]]
    if positions is None or not lengths:
        return []
    usual = _new_tokens(recipe, lengths, None)
    new_tokens = _new_tokens(recipe, lengths, positions)
    with_room = sum(length + new_tokens <= positions for length in lengths)
    wanted = REWARDED_PROMPTS if recipe.reward else SAMPLED_PROMPTS
    if new_tokens == usual and with_room >= min(wanted, len(lengths)):
        return []

    reach = f"The model has {positions:,} positions, for prompt and answer together"
    if not with_room:
        text = f"{reach}: no held-out prompt leaves room for an answer of {new_tokens} tokens."
        if recipe.reward or recipe.measures:
            text += " The reward and the measures need answers: shorten the prompts, or delete reward and measures."
            return [Finding("fail", "answers", text)]
        return [Finding("warn", "answers", f"{text} samples.jsonl will be empty.")]

    text = f"{reach}: an answer gets at most {new_tokens} new tokens"
    if new_tokens < usual:
        text += f" instead of {usual}"
    if with_room < len(lengths):
        text += f", and only the {with_room:,} of {len(lengths):,} held-out prompts that leave room for it are asked"
    return [Finding("warn", "answers", f"{text}.")]


def _new_tokens(recipe: Recipe, prompt_lengths: list[int], positions: int | None) -> int:
    """How long an answer may be, tokens: what the positions leave behind at least half of the prompts, if that is less.

    Behind learned positions there are no others, and rotary ones are far from all that the model was trained on.
    """
    usual = min(MAX_NEW_TOKENS, recipe.max_length or MAX_NEW_TOKENS)
    if positions is None or not prompt_lengths:
        return usual
    room = positions - statistics.median_high(prompt_lengths)
    return min(usual, max(room, LEAST_NEW_TOKENS))


def answers(
    recipe: Recipe,
    trainer: RecipeTrainer,
    reference: Reference,
    positions: int | None,
    console: Console | None = None,
) -> tuple[list[Numbers], BeforeAfter]:
    """(rows for samples.jsonl, what the recipe's reward and measures say before and after), on the same prompts.

    `positions`: how many tokens policy and reference reach, prompt and answer together; None: nothing limits them.
    The likeliest answer to a few held-out prompts, with a reward random ones to more; prompts are training's tokens.
    `console` shows how far it is.
    """
    console = console or Console(quiet=True)
    new_tokens = _new_tokens(recipe, [len(ids) for ids in trainer.eval_dataset["prompt_ids"]], positions)
    wanted = REWARDED_PROMPTS if recipe.reward else SAMPLED_PROMPTS
    asked = _held_out_prompts(trainer, wanted, math.inf if positions is None else positions - new_tokens)
    if not asked:  # none leaves room for an answer
        return [], ({}, {})
    prompts = [row["prompt"] for row in asked]
    ids = [row["prompt_ids"] for row in asked]

    sampling: dict[str, Any] = {"samples": 1, "reference_samples": 1, "temperature": 0.0}
    if recipe.reward:
        sampling = {"samples": POLICY_SAMPLES, "reference_samples": REFERENCE_SAMPLES, "temperature": 1.0}
    reference_replies, policy_replies = side_by_side(
        trainer.model,
        reference,
        trainer.processing_class,
        ids,
        console=console,
        max_new_tokens=new_tokens,
        seed=recipe.seed,
        **sampling,
    )

    before: Numbers = {}
    after: Numbers = {}
    if recipe.reward:
        before, after = against_truth(
            recipe.reward, trainer.model, reference, prompts, ids, reference_replies, policy_replies, console
        )
    for name, measure in recipe.measures.items():
        before |= _mean(f"measures/{name}", _scores(name, measure, prompts, reference_replies, console))
        after |= _mean(f"measures/{name}", _scores(name, measure, prompts, policy_replies, console))
    samples = [
        _sample(prompt, of_reference[0], of_policy[0])
        for prompt, of_reference, of_policy in zip(prompts, reference_replies, policy_replies, strict=True)
    ]
    return samples[:SAMPLED_PROMPTS], (before, after)


def _held_out_prompts(trainer: RecipeTrainer, wanted: int, longest: float) -> list[dict[str, Any]]:
    """The first held-out prompts, each once, of at most `longest` tokens: rows of `prompt`, `prompt_ids`.

    Their tokens are those of training, so that what the template did there is done here.
    """
    asked: list[dict[str, Any]] = []
    for row in trainer.eval_dataset.select_columns(["prompt", "prompt_ids"]):
        fits = len(row["prompt_ids"]) <= longest
        known = any(row["prompt"] == other["prompt"] for other in asked)
        if fits and not known:
            asked.append(row)
        if len(asked) == wanted:
            break
    return asked


def _sample(prompt: Messages | str, reference: Reply, policy: Reply) -> Numbers:
    """One line of samples.jsonl."""
    return {
        "prompt": prompt,
        "reference": reference.text,
        "policy": policy.text,
        "reference_ended": reference.ended,
        "policy_ended": policy.ended,
    }


def side_by_side(
    policy: Any,
    reference: Reference,
    *inputs: Any,
    samples: int,
    reference_samples: int,
    console: Console | None = None,
    **settings: Any,
) -> tuple[Replies, Replies]:
    """(replies of the reference, replies of the policy), from `generate` with the same inputs, settings and seed."""
    console = console or Console(quiet=True)
    with reference.model() as model, Stage(console, "Answers of the reference", unit="answers") as stage:
        reference_replies = generate(model, *inputs, samples=reference_samples, progress=stage.show, **settings)
    with Stage(console, "Answers of the policy", unit="answers") as stage:
        policy_replies = generate(policy, *inputs, samples=samples, progress=stage.show, **settings)
    return reference_replies, policy_replies


def against_truth(
    reward: Score,
    policy: Any,
    reference: Reference,
    prompts: list[Messages | str],
    ids: list[list[int]],
    reference_replies: Replies,
    policy_replies: Replies,
    console: Console | None = None,
) -> BeforeAfter:
    """(before, after): mean reward, win rate over the reference, sequence KL and the best reward possible at that KL.

    A reply's win rate is its share of wins over all the reference's replies to the same prompt, a tie counting half;
    KL is the mean `sequence_kl` of the policy's samples, nats; standard errors are over prompts.
    """
    console = console or Console(quiet=True)
    reference_rewards = _scores(name_of(reward), reward, prompts, reference_replies, console)
    policy_rewards = _scores(name_of(reward), reward, prompts, policy_replies, console)
    kl = _kl_to_reference(policy, reference, ids, policy_replies, console)
    before = _mean("reward", reference_rewards) | {"win_rate": 0.5, "kl": 0.0}
    after = (
        _mean("reward", policy_rewards)
        | _mean("win_rate", _win_rates(policy_rewards, reference_rewards))
        | _mean("kl", kl)
    )
    after["best_reward_at_kl"] = best_reward_at_kl(reference_rewards, max(0.0, after["kl"]))  # rounding may go below 0
    return before, after


def _win_rates(policy_rewards: torch.Tensor, reference_rewards: torch.Tensor) -> torch.Tensor:
    """Each policy reply's share of wins over the reference's replies to its prompt: (prompts, policy samples)."""
    policy = policy_rewards.unsqueeze(2)  # (prompts, policy samples, 1)
    rivals = reference_rewards.unsqueeze(1)  # (prompts, 1, reference samples)
    # A win counts in both terms and a tie in the second alone, so a tie is half a win.
    return ((policy > rivals).double() + (policy >= rivals).double()).mean(dim=2) / 2


def _kl_to_reference(
    policy: Any, reference: Reference, ids: list[list[int]], replies: Replies, console: Console
) -> torch.Tensor:
    """The KL along every reply of the policy, nats: float64 of shape (prompts, samples)."""

    def policy_logits(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return _logits(policy, input_ids, attention_mask)

    def reference_logits(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        with reference.model() as model:
            return _logits(model, input_ids, attention_mask)

    prompts_ids: list[list[int]] = []
    replies_ids: list[list[int]] = []
    for prompt, sampled in zip(ids, replies, strict=True):
        prompts_ids += [prompt] * len(sampled)
        replies_ids += [reply.token_ids for reply in sampled]

    was_training = policy.training
    policy.eval()
    try:
        with Stage(console, "KL to the reference", unit="answers") as stage:
            kl = sequence_kl(policy_logits, reference_logits, prompts_ids, replies_ids, progress=stage.show)
    finally:
        policy.train(was_training)
    return kl.double().view(len(ids), -1)


def _logits(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    output = model(input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device))
    return output.logits


def _scores(name: str, score: Score, prompts: list[Messages | str], replies: Replies, console: Console) -> torch.Tensor:
    """score(prompt, completion) of every reply: float64 of shape (prompts, samples)."""
    rows: list[list[float]] = []
    with Stage(console, f"{name} of the answers", len(prompts), "prompts") as stage:
        for prompt, sampled in zip(prompts, replies, strict=True):
            text = prompt_text(prompt)
            rows.append([number_of(name, score, text, reply.text) for reply in sampled])
            stage.show(len(rows))
    return torch.tensor(rows, dtype=torch.float64)


def _mean(name: str, values: torch.Tensor) -> dict[str, float]:
    """The mean of `values`, of shape (prompts, samples), and its standard error over prompts."""
    means = values.mean(dim=1)
    correction = 1 if len(means) > 1 else 0  # one prompt alone has an error of 0
    error = means.std(correction=correction) / math.sqrt(len(means))
    return {name: means.mean().item(), f"{name}_stderr": error.item()}

"""Answers of reference and policy to the same prompts, and what a reward and the recipe's measures say of them."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from ..data.replies import Reply, question
from ..errors import RecipeError
from ..losses.selection import name_of
from ..models.generate import generate
from ..models.reference import Reference
from ..recipe.recipe import Recipe
from ..training.trainer import RecipeTrainer
from .frontier import best_reward_at_kl
from .held_out import Numbers
from .kl import sequence_kl

Replies = list[list[Reply]]  # shape (prompts, samples)
BeforeAfter = tuple[Numbers, Numbers]
SAMPLED_PROMPTS, MAX_NEW_TOKENS = 8, 256  # held-out prompts whose answers land in samples.jsonl
REWARDED_PROMPTS, POLICY_SAMPLES, REFERENCE_SAMPLES = 64, 8, 24  # where the recipe has a reward


def side_by_side(
    policy: Any, reference: Reference, *inputs: Any, samples: int, reference_samples: int, **how: Any
) -> tuple[Replies, Replies]:
    """(replies of the reference, replies of the policy), from `generate` with the same inputs, settings and seed."""
    with reference.model() as model:
        theirs = generate(model, *inputs, samples=reference_samples, **how)
    return theirs, generate(policy, *inputs, samples=samples, **how)


def against_truth(
    reward: Callable[[str, str], float], policy: Any, reference: Reference, prompts: list[Any], ids: list[list[int]],
    theirs: Replies, ours: Replies,
) -> BeforeAfter:  # fmt: skip
    """(before, after): mean reward, win rate over the reference, sequence KL and the best reward possible at that KL.

    A reply's win rate is its share of wins over all the reference's replies to the same prompt, a tie counting half;
    KL is the mean `sequence_kl` of the policy's samples, nats; standard errors are over prompts.
    """
    their_rewards, our_rewards = _scores(reward, prompts, theirs), _scores(reward, prompts, ours)
    mine, rivals = our_rewards.unsqueeze(2), their_rewards.unsqueeze(1)
    wins = ((mine > rivals).double() + (mine >= rivals).double()).mean(dim=2) / 2

    def logits(entered: Any, input_ids: Any, attention_mask: Any) -> Any:
        with entered as model:
            return model(input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device)).logits

    was_training = policy.training
    policy.eval()
    starts, ends = [i for i in ids for _ in ours[0]], [r.token_ids for replies in ours for r in replies]
    kl = sequence_kl(lambda *x: logits(nullcontext(policy), *x), lambda *x: logits(reference.model(), *x), starts, ends)
    policy.train(was_training)
    after = _mean("reward", our_rewards) | _mean("win_rate", wins) | _mean("kl", kl.double().view(len(prompts), -1))
    after["best_reward_at_kl"] = best_reward_at_kl(their_rewards, max(0.0, after["kl"]))  # rounding may go below 0
    return _mean("reward", their_rewards) | {"win_rate": 0.5, "kl": 0.0}, after


def answers(recipe: Recipe, trainer: RecipeTrainer, reference: Reference) -> tuple[list[Numbers], BeforeAfter]:
    """(rows for samples.jsonl, what the recipe's reward and measures say before and after), on the same prompts.

    The likeliest answer to a few held-out prompts, with a reward random ones to more; prompts are training's tokens.
    """
    context = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    new_tokens = min(MAX_NEW_TOKENS, recipe.max_length or MAX_NEW_TOKENS)
    asked: list[dict[str, Any]] = []
    for row in trainer.eval_dataset.select_columns(["prompt", "prompt_ids"]):
        if len(row["prompt_ids"]) + new_tokens <= context and row["prompt"] not in [other["prompt"] for other in asked]:
            asked.append(row)
        if len(asked) == (REWARDED_PROMPTS if recipe.reward else SAMPLED_PROMPTS):
            break
    prompts, ids = [row["prompt"] for row in asked], [row["prompt_ids"] for row in asked]
    theirs, ours = side_by_side(
        trainer.model, reference, trainer.processing_class, ids, max_new_tokens=new_tokens, seed=recipe.seed,
        samples=POLICY_SAMPLES if recipe.reward else 1, reference_samples=REFERENCE_SAMPLES if recipe.reward else 1,
        temperature=1.0 if recipe.reward else 0.0,
    )  # fmt: skip
    truth: BeforeAfter = ({}, {})
    if recipe.reward and prompts:
        truth = against_truth(recipe.reward, trainer.model, reference, prompts, ids, theirs, ours)
    for name, measure in recipe.measures.items() if prompts else ():
        for numbers, replies in zip(truth, (theirs, ours), strict=True):
            numbers |= _mean(f"measures/{name}", _scores(measure, prompts, replies))
    rows = [
        {"prompt": prompt, "reference": a.text, "policy": b.text, "reference_ended": a.ended, "policy_ended": b.ended}
        for prompt, (a, *_), (b, *_) in list(zip(prompts, theirs, ours, strict=True))[:SAMPLED_PROMPTS]
    ]
    return rows, truth


def _scores(score: Callable[[str, str], float], prompts: list[Any], replies: Replies) -> torch.Tensor:
    """score(prompt, completion) of every reply: float64 of shape (prompts, samples)."""
    texts = [prompt if isinstance(prompt, str) else question(prompt) for prompt in prompts]
    try:
        rows = [[float(score(text, r.text)) for r in sampled] for text, sampled in zip(texts, replies, strict=True)]
    except Exception as error:  # the user's function
        raise RecipeError(f"{name_of(score)}() failed on a sampled answer: {type(error).__name__}: {error}.") from error
    return torch.tensor(rows, dtype=torch.float64)


def _mean(name: str, values: torch.Tensor) -> dict[str, float]:
    means = values.mean(dim=1)
    error = means.std(correction=min(1, len(means) - 1)) / math.sqrt(len(means))
    return {name: means.mean().item(), f"{name}_stderr": error.item()}

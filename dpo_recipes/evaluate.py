"""Held-out numbers with intervals, and answers of reference and policy to the same prompts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import RecipeError
from .losses import PairLogps, name_of
from .model import Reference
from .recipe import Recipe
from .sampling import Reply, best_reward_at_kl, generate, question, sequence_kl

if TYPE_CHECKING:
    from .trainer import RecipeTrainer

Z = 1.959964  # 95 %
SAMPLED_PROMPTS, MAX_NEW_TOKENS = 8, 256  # held-out prompts whose answers land in samples.jsonl
REWARDED_PROMPTS, POLICY_SAMPLES, REFERENCE_SAMPLES = 64, 8, 24  # where the recipe has a reward


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (1927); `successes` may be fractional, as a tie counts half."""
    p = successes / trials
    centre, scale = p + Z * Z / (2 * trials), 1 + Z * Z / trials
    spread = Z * math.sqrt(p * (1 - p) / trials + Z * Z / (4 * trials * trials))
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def held_out(
    metrics: dict[str, float], pairs: PairLogps, beta: float, start: PairLogps, same_start: bool = True
) -> dict[str, Any]:
    """TRL's metrics over all held-out pairs, with a Wilson interval, standard errors and changes since `start`.

    Ties count half. Where the reference is the policy's start, whatever h they had there is rounding, and pairs within
    the largest of it tie.
    """
    n, margins, noise = len(pairs.h), beta * pairs.h, start.h.abs().max() if same_start else 0.0
    wins = (pairs.h > noise).sum().item() + (pairs.h.abs() <= noise).sum().item() / 2
    found: dict[str, Any] = {
        "pairs": n, "loss": metrics["loss"],
        "rewards/accuracies": wins / n, "rewards/accuracies_interval": list(wilson(wins, n)),
        "rewards/margins": margins.mean().item(),
        "rewards/margins_stderr": margins.std().item() / math.sqrt(n) if n > 1 else None,
    }  # fmt: skip
    for side in ("chosen", "rejected"):
        policy, tokens = getattr(pairs, f"policy_{side}"), getattr(pairs, f"{side}_tokens")
        moved = policy.sum() - getattr(start, f"policy_{side}").sum()
        found[f"rewards/{side}"] = beta * getattr(pairs, f"{side}_logratios").mean().item()
        found[f"logps/{side}"] = policy.mean().item()
        found[f"logps/{side}_change_per_token"] = (moved / tokens.sum()).item()
    carried = ("logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "aux_loss")
    return found | {name: metrics[name] for name in carried if name in metrics}


def side_by_side(
    policy: Any, reference: Reference, tokenizer: Any, prompts: list[Any], *,
    samples: int, reference_samples: int, **how: Any,
) -> tuple[list[list[Reply]], list[list[Reply]]]:  # fmt: skip
    """(replies of the reference, replies of the policy), per prompt; `how` goes to `generate`, the same seed too."""
    with reference.model() as model:
        theirs = generate(model, tokenizer, prompts, samples=reference_samples, **how)
    return theirs, generate(policy, tokenizer, prompts, samples=samples, **how)


def against_truth(
    reward: Callable[[str, str], float], policy: Any, reference: Reference, prompts: list[Any], ids: list[list[int]],
    theirs: list[list[Reply]], ours: list[list[Reply]],
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """(before, after): mean reward, win rate over the reference, sequence KL and the best reward possible at that KL.

    A reply's win rate is its share of wins over all the reference's replies to the same prompt, a tie counting half;
    standard errors are over prompts. KL is the mean over policy samples of the exact KL at each position, summed
    (2305.18290, section 6.1), in nats.
    """
    their_rewards, our_rewards = _scores(reward, prompts, theirs), _scores(reward, prompts, ours)
    wins = [
        [sum((a > b) + 0.5 * (a == b) for b in rivals) / len(rivals) for a in mine]
        for mine, rivals in zip(our_rewards, their_rewards, strict=True)
    ]

    def logits(model: Any, input_ids: Any, attention_mask: Any) -> Any:
        return model(input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device)).logits

    def reference_logits(input_ids: Any, attention_mask: Any) -> Any:
        with reference.model() as model:
            return logits(model, input_ids, attention_mask)

    was_training = policy.training
    policy.eval()
    starts, replies_ids = [i for i in ids for _ in ours[0]], [r.token_ids for replies in ours for r in replies]
    kl = sequence_kl(lambda *inputs: logits(policy, *inputs), reference_logits, starts, replies_ids)
    policy.train(was_training)
    per_prompt = kl.double().view(len(prompts), -1).mean(dim=1).tolist()
    before = {**_mean("reward", their_rewards), "win_rate": 0.5, "kl": 0.0}
    after = {**_mean("reward", our_rewards), **_mean("win_rate", wins), **_mean("kl", [[x] for x in per_prompt])}
    after["best_reward_at_kl"] = best_reward_at_kl(their_rewards, max(0.0, after["kl"]))  # rounding may go below 0
    return before, after


def answers(
    recipe: Recipe, trainer: RecipeTrainer, reference: Reference
) -> tuple[list[dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]:
    """(rows for samples.jsonl, what the recipe's reward and measures say before and after), on the same prompts.

    The likeliest answer to a few held-out prompts, with a reward random ones to more; prompts are training's tokens.
    """
    context = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    new_tokens = min(MAX_NEW_TOKENS, recipe.max_length or MAX_NEW_TOKENS)
    prompts: list[Any] = []
    ids: list[list[int]] = []
    for row in trainer.eval_dataset.select_columns(["prompt", "prompt_ids"]):
        if row["prompt"] not in prompts and len(row["prompt_ids"]) + new_tokens <= context:
            prompts.append(row["prompt"])
            ids.append(row["prompt_ids"])
        if len(prompts) == (REWARDED_PROMPTS if recipe.reward else SAMPLED_PROMPTS):
            break
    theirs, ours = side_by_side(
        trainer.model, reference, trainer.processing_class, ids, max_new_tokens=new_tokens, seed=recipe.seed,
        samples=POLICY_SAMPLES if recipe.reward else 1, reference_samples=REFERENCE_SAMPLES if recipe.reward else 1,
        temperature=1.0 if recipe.reward else 0.0,
    )  # fmt: skip
    truth: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    if recipe.reward and prompts:
        truth = against_truth(recipe.reward, trainer.model, reference, prompts, ids, theirs, ours)
    for name, measure in recipe.measures.items() if prompts else ():
        for numbers, replies in zip(truth, (theirs, ours), strict=True):
            numbers |= _mean(f"measures/{name}", _scores(measure, prompts, replies))
    rows = []
    for prompt, (their, *_), (our, *_) in list(zip(prompts, theirs, ours, strict=True))[:SAMPLED_PROMPTS]:
        texts = {"prompt": prompt, "reference": their.text, "policy": our.text}
        rows.append({**texts, "reference_ended": their.ended, "policy_ended": our.ended})
    return rows, truth


def _scores(score: Callable[[str, str], float], prompts: list[Any], replies: list[list[Reply]]) -> list[list[float]]:
    """score(prompt, completion) of every reply, by prompt."""
    texts = [prompt if isinstance(prompt, str) else question(prompt) for prompt in prompts]
    try:
        return [[float(score(text, r.text)) for r in sampled] for text, sampled in zip(texts, replies, strict=True)]
    except Exception as error:  # the user's function
        raise RecipeError(f"{name_of(score)}() failed on a sampled answer: {type(error).__name__}: {error}.") from error


def _mean(name: str, values: list[list[float]]) -> dict[str, float]:
    means = [sum(v) / len(v) for v in values]
    centre = sum(means) / len(means)
    variance = sum((m - centre) ** 2 for m in means) / max(1, len(means) - 1)
    return {name: centre, f"{name}_stderr": math.sqrt(variance / len(means))}

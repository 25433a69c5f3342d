"""Answers of reference and policy to the same prompts, and what they, a reward and the recipe's measures say."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from rich.console import Console

from ..data.replies import Messages, Replies, Reply
from ..losses.selection import name_of
from ..models.generate import Guide, generate
from ..models.reference import Reference
from ..models.reward_model import Scorer
from ..progress import Stage
from ..recipe.judges import JudgeEndpoint, RewardModel
from ..recipe.recipe import Recipe
from ..sentences import print_line
from ..training.trainer import RecipeTrainer
from .frontier import best_reward_at_kl
from .held_out import BeforeAfter, Numbers
from .intervals import mean_and_error, share_interval
from .judge_endpoint import judge_answers
from .kl import kl_to_reference
from .rehearsal import NO_ANSWERS, Questions, Score, draws, has_images, number_of, prompt_text, questions

GRAM = 4  # tokens of the runs that are looked for a second time


def answers(
    recipe: Recipe,
    trainer: RecipeTrainer,
    reference: Reference,
    positions: int | None,
    console: Console | None = None,
) -> tuple[list[Numbers], BeforeAfter]:
    """(rows for samples.jsonl, what answers, reward and measures say before and after), on the same prompts.

    `positions`: how many tokens policy and reference reach, prompt and answer together; None: nothing limits them.
    Answers are drawn at the recipe's temperature, by both with the same random numbers. `before` is what the answers of
    the reference show. `console` shows how far it is.
    """
    console = console or Console(quiet=True)
    asked = questions(recipe, trainer.eval_dataset, positions)
    if has_images(trainer.eval_dataset):
        print_line(console, NO_ANSWERS)
    if not asked.prompts:  # none leaves room for an answer
        return [], BeforeAfter({}, {})
    counts = draws(recipe)
    temperature = recipe.answers_temperature
    reference_replies, policy_replies = side_by_side(
        trainer.model,
        reference,
        trainer.processing_class,
        asked.ids,
        console=console,
        max_new_tokens=asked.max_new_tokens,
        temperature=temperature,
        seed=recipe.seed,
        samples=counts.policy,
        reference_samples=counts.reference,
    )

    kl = kl_to_reference(trainer.model, reference, asked.ids, policy_replies, console, temperature)
    scorer = scorer_of(recipe, trainer.model.device)
    said = said_of(recipe, scorer, asked.prompts, reference_replies, policy_replies, kl, console)
    samples = _samples(asked, reference_replies, policy_replies, said.by_prompt)
    return samples, BeforeAfter(said.before, said.after)


class Said(NamedTuple):
    """What answers of reference and policy to the same prompts show."""

    before: Numbers  # of the reference's
    after: Numbers  # of the policy's
    by_prompt: dict[str, torch.Tensor]  # name in samples.jsonl -> shape (prompts,)


def said_of(
    recipe: Recipe,
    scorer: Score | Scorer | None,
    prompts: list[Messages | str],
    reference_replies: Replies,
    policy_replies: Replies,
    kl: torch.Tensor,
    console: Console,
) -> Said:
    """Length, repetition and KL, and what the recipe's reward, its judge and its measures say.

    `kl`, nats, has shape (prompts, samples); the best reward at it is left out where the samples could not show it.
    """
    before = _texts("answers", reference_replies) | {"kl": 0.0}
    after = _texts("answers", policy_replies) | mean_and_error("kl", kl)
    if recipe.answers_temperature != 1:
        before["answers/temperature"] = after["answers/temperature"] = recipe.answers_temperature
    by_prompt = {"kl": kl.mean(dim=1)}
    if isinstance(recipe.reward, JudgeEndpoint):
        wins, of_judge = compared_by_judge(recipe.reward, prompts, reference_replies, policy_replies, console)
        before["win_rate"] = 0.5
        after |= of_judge
        by_prompt["win_rate"] = wins
    elif scorer is not None:
        name = name_of(recipe.reward) if callable(recipe.reward) else "reward"
        judged = rewarded(name, scorer, prompts, reference_replies, policy_replies, console)
        before |= judged.before
        after |= judged.after
        by_prompt |= judged.by_prompt
        if after["kl"] <= math.log(judged.reference_rewards.shape[1]):  # beyond it, so few samples show no policy
            kl_of_policy = max(0.0, after["kl"])  # rounding may put it below 0
            after["best_reward_at_kl"] = best_reward_at_kl(judged.reference_rewards, kl_of_policy)
    for name, measure in recipe.measures.items():
        before |= mean_and_error(f"measures/{name}", _scores(name, measure, prompts, reference_replies, console))
        after |= mean_and_error(f"measures/{name}", _scores(name, measure, prompts, policy_replies, console))
    return Said(before, after, by_prompt)


def scorer_of(recipe: Recipe, device: Any) -> Score | Scorer | None:
    """What scores a single answer: the recipe's function, or its reward model, loaded; None where nothing does."""
    if isinstance(recipe.reward, RewardModel):
        return Scorer(recipe.reward, device)
    if isinstance(recipe.reward, JudgeEndpoint):
        return None
    return recipe.reward


def _samples(
    asked: Questions, reference: Replies, policy: Replies, by_prompt: dict[str, torch.Tensor]
) -> list[Numbers]:
    """The lines of samples.jsonl: of each prompt the first answer of both, and its numbers as means over all drawn."""
    rows: list[Numbers] = []
    for number, prompt in enumerate(asked.prompts):
        row: Numbers = {"prompt": prompt}
        for name, replies in (("reference", reference[number]), ("policy", policy[number])):
            row[name] = replies[0].text
            row[f"{name}_ended"] = replies[0].ended
            row[f"{name}_tokens"] = sum(len(reply.token_ids) for reply in replies) / len(replies)
        row |= {name: values[number].item() for name, values in by_prompt.items()}
        rows.append(row)
    return rows


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


def drawn(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    asked: Questions,
    samples: int,
    words: str,
    console: Console,
    guide: Guide | None = None,
) -> Replies:
    """A model's answers to what is asked, at the recipe's temperature.

    With the recipe's seed every model draws with the same random numbers. `words` say on the console what is counted.
    """
    with Stage(console, words, unit="answers") as stage:
        return generate(
            model,
            tokenizer,
            asked.ids,
            samples=samples,
            max_new_tokens=asked.max_new_tokens,
            temperature=recipe.answers_temperature,
            seed=recipe.seed,
            guide=guide,
            progress=stage.show,
        )


# ---------------------------------------------------------------------------------------------------- the texts alone


def _texts(name: str, replies: Replies) -> Numbers:
    """What can be seen of answers without judging them: length, cut at the cap, repetition; errors are over prompts."""
    capped = _of_each(replies, _is_capped)
    groups = [number for number, sampled in enumerate(replies) for _ in sampled]
    numbers: Numbers = mean_and_error(f"{name}/tokens", _of_each(replies, _length))
    numbers[f"{name}/capped"] = capped.mean().item()
    numbers[f"{name}/capped_interval"] = list(share_interval(capped.flatten(), groups))
    return numbers | mean_and_error(f"{name}/repeated_4grams", _of_each(replies, repeated_share))


def _of_each(replies: Replies, measure: Any) -> torch.Tensor:
    """measure(reply) of every reply: float64 of shape (prompts, samples)."""
    rows: list[list[float]] = []
    for sampled in replies:
        rows.append([float(measure(reply)) for reply in sampled])
    return torch.tensor(rows, dtype=torch.float64)


def _is_capped(reply: Reply) -> bool:
    return not reply.ended


def _length(reply: Reply) -> int:
    return len(reply.token_ids)


def repeated_share(reply: Reply) -> float:
    """Share of a reply's runs of four tokens that stand in it before: seq-rep-4 of 1908.04319, section 4.3.

    1 - distinct runs / runs; 0 for a reply of fewer than four tokens.
    """
    ids = reply.token_ids
    runs = [tuple(ids[start : start + GRAM]) for start in range(len(ids) - GRAM + 1)]
    if not runs:
        return 0.0
    return 1 - len(set(runs)) / len(runs)


# --------------------------------------------------------------------------------------------------------- the reward


class Rewarded(NamedTuple):
    """What a reward says of answers to the same prompts."""

    before: Numbers  # of the reference's
    after: Numbers  # of the policy's
    by_prompt: dict[str, torch.Tensor]  # name in samples.jsonl -> shape (prompts,)
    reference_rewards: torch.Tensor  # shape (prompts, samples)


def compared_by_judge(
    judge: JudgeEndpoint,
    prompts: list[Messages | str],
    reference_replies: Replies,
    policy_replies: Replies,
    console: Console,
) -> tuple[torch.Tensor, Numbers]:
    """(the wins of each prompt, the win rate with its interval and what it cost), of the first answers of both."""
    judged = judge_answers(
        judge,
        [prompt_text(prompt) for prompt in prompts],
        [replies[0].text for replies in reference_replies],
        [replies[0].text for replies in policy_replies],
        console,
    )
    wins = torch.tensor(judged.wins, dtype=torch.float64)
    bill = judged.bill
    print_line(console, f"The judge {judge.model} {bill.in_words()}.")
    return wins, {
        "win_rate": wins.mean().item(),
        "win_rate_interval": list(share_interval(wins, range(len(wins)))),
        "judge/contradictions": judged.contradictions / len(wins),
        "judge": {
            "url": judge.url,
            "model": judge.model,
            "requests": bill.requests,
            "prompt_tokens": bill.prompt_tokens,
            "completion_tokens": bill.completion_tokens,
            "unreadable": judged.unreadable,
        },
    }


def rewarded(
    name: str,
    reward: Score | Scorer,
    prompts: list[Messages | str],
    reference_replies: Replies,
    policy_replies: Replies,
    console: Console | None = None,
) -> Rewarded:
    """Mean reward of both, and the policy's win rate over the reference; standard errors are over prompts.

    A reply's win rate is its share of wins over all the reference's replies to the same prompt, a tie counting half.
    """
    console = console or Console(quiet=True)
    reference_rewards = _scores(name, reward, prompts, reference_replies, console)
    policy_rewards = _scores(name, reward, prompts, policy_replies, console)
    wins = _win_rates(policy_rewards, reference_rewards)
    by_prompt = {
        "reference_reward": reference_rewards.mean(dim=1),
        "policy_reward": policy_rewards.mean(dim=1),
        "win_rate": wins.mean(dim=1),
    }
    before = mean_and_error("reward", reference_rewards) | {"win_rate": 0.5}
    after = mean_and_error("reward", policy_rewards) | mean_and_error("win_rate", wins)
    return Rewarded(before, after, by_prompt, reference_rewards)


def _win_rates(policy_rewards: torch.Tensor, reference_rewards: torch.Tensor) -> torch.Tensor:
    """Each policy reply's share of wins over the reference's replies to its prompt: (prompts, policy samples)."""
    policy = policy_rewards.unsqueeze(2)  # (prompts, policy samples, 1)
    rivals = reference_rewards.unsqueeze(1)  # (prompts, 1, reference samples)
    # A win counts in both terms and a tie in the second alone, so a tie is half a win.
    return ((policy > rivals).double() + (policy >= rivals).double()).mean(dim=2) / 2


def _scores(
    name: str, score: Score | Scorer, prompts: list[Messages | str], replies: Replies, console: Console
) -> torch.Tensor:
    """score(prompt, completion) of every reply: float64 of shape (prompts, samples)."""
    if isinstance(score, Scorer):
        repeated = [prompt for prompt, sampled in zip(prompts, replies, strict=True) for _ in sampled]
        texts = [reply.text for sampled in replies for reply in sampled]
        with Stage(console, "The reward model", len(texts), "answers") as stage:
            values = score.scores(repeated, texts, stage.show)
        return torch.tensor(values, dtype=torch.float64).view(len(prompts), -1)

    rows: list[list[float]] = []
    with Stage(console, f"{name} of the answers", len(prompts), "prompts") as stage:
        for prompt, sampled in zip(prompts, replies, strict=True):
            text = prompt_text(prompt)
            rows.append([number_of(name, score, text, reply.text) for reply in sampled])
            stage.show(len(rows))
    return torch.tensor(rows, dtype=torch.float64)

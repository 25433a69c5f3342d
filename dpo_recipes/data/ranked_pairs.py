"""Preference pairs from sampled replies and a reward."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

from .replies import Messages, Reply, question

Score = Callable[[Messages | str, list[str]], list[float]]  # the reward of each of several replies to one prompt
Pairing = Literal["all", "best_worst", "best_random"]  # as in Data.pairing


class Scored(NamedTuple):
    """One reply and its reward."""

    reward: float
    text: str


def preference_pairs(
    prompts: Sequence[Messages | str],
    replies: Sequence[Sequence[Reply]],
    score: Score,
    *,
    pairing: Pairing = "all",
    per_prompt: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Up to `per_prompt` pairs for each prompt, the reply with the higher reward chosen: (rows, report).

    Replies that were cut off, are blank or repeat another are not used; nor do two that are equal in reward make a
    pair. `pairing`: every two replies, of which `per_prompt` are drawn without replacement; or the best over the worst;
    or the best over one drawn among the worse. A row has the prompt, its two replies (messages where the prompt is
    messages) and the two rewards. The report counts what was used and not; `progress(prompts done)` follows.
    """
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    report: Counter[str] = Counter()
    rewards: list[float] = []

    for number, (prompt, sampled) in enumerate(zip(prompts, replies, strict=True), 1):
        ended = [reply.text for reply in sampled if reply.ended]
        written = [text for text in ended if text.strip()]
        distinct = list(dict.fromkeys(written))

        scored = [Scored(reward, text) for reward, text in zip(score(prompt, distinct), distinct, strict=True)]
        pairs = _pairs_that_differ(scored, pairing, draw)
        if per_prompt is not None:
            pairs = draw.sample(pairs, min(per_prompt, len(pairs)))
        rows += [_row(prompt, better, worse) for better, worse in pairs]
        rewards += [reply.reward for reply in scored]

        report["prompts"] += 1
        report["replies"] += len(sampled)
        report["unfinished"] += len(sampled) - len(ended)
        report["blank"] += len(ended) - len(written)
        report["duplicates"] += len(written) - len(distinct)
        report["prompts_without_pair"] += 0 if pairs else 1
        report["pairs"] += len(pairs)
        progress(number)
    return rows, {**report, "mean_reward": math.fsum(rewards) / len(rewards) if rewards else None}


def by_last_question(reward: Callable[[str, str], float]) -> Score:
    """The rewards that a recipe's reward(prompt, completion) gives; of messages it gets the last user's."""

    def score(prompt: Messages | str, texts: list[str]) -> list[float]:
        asked = prompt if isinstance(prompt, str) else question(prompt)
        return [reward(asked, text) for text in texts]

    return score


def _pairs_that_differ(scored: list[Scored], pairing: Pairing, draw: random.Random) -> list[tuple[Scored, Scored]]:
    """(the better, the worse) of replies whose rewards differ, in the order of the replies."""
    if pairing == "all":
        in_order = [sorted(two, key=lambda reply: -reply.reward) for two in combinations(scored, 2)]
        return [(better, worse) for better, worse in in_order if better.reward > worse.reward]

    best = max(scored, key=lambda reply: reply.reward, default=None)
    worse_ones = [reply for reply in scored if best is not None and reply.reward < best.reward]
    if best is None or not worse_ones:
        return []
    if pairing == "best_worst":
        return [(best, min(worse_ones, key=lambda reply: reply.reward))]
    return [(best, draw.choice(worse_ones))]


def _row(prompt: Messages | str, better: Scored, worse: Scored) -> dict[str, Any]:
    """A pair as a data set has it."""
    return {
        "prompt": prompt,
        "chosen": _reply_to(prompt, better.text),
        "rejected": _reply_to(prompt, worse.text),
        "chosen_reward": better.reward,
        "rejected_reward": worse.reward,
    }


def _reply_to(prompt: Messages | str, text: str) -> Messages | str:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]

"""Preference pairs from sampled replies and a reward."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from .replies import Messages, Reply, question

Reward = Callable[[str, str], float]


def preference_pairs(
    prompts: Sequence[Messages],
    replies: Sequence[Sequence[Reply]],
    reward: Reward,
    *,
    per_prompt: int,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Up to `per_prompt` pairs for each prompt, the reply with the higher reward chosen: (rows, report).

    Replies that were cut off, are blank or repeat another are not used; pairs are drawn without replacement from those
    that differ in reward. A row has message lists and the two rewards; the report counts what was used and not.
    """
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    report: Counter[str] = Counter()

    for prompt, sampled in zip(prompts, replies, strict=True):
        ended = [reply.text for reply in sampled if reply.ended]
        written = [text for text in ended if text.strip()]
        distinct = list(dict.fromkeys(written))

        candidates = _pairs_that_differ(prompt, distinct, reward)
        drawn = draw.sample(candidates, min(per_prompt, len(candidates)))
        rows += drawn

        report["prompts"] += 1
        report["replies"] += len(sampled)
        report["unfinished"] += len(sampled) - len(ended)
        report["blank"] += len(ended) - len(written)
        report["duplicates"] += len(written) - len(distinct)
        report["prompts_without_pair"] += 0 if drawn else 1
        report["pairs"] += len(drawn)
    return rows, dict(report)


def _pairs_that_differ(prompt: Messages, texts: list[str], reward: Reward) -> list[dict[str, Any]]:
    """A row for every two replies whose rewards differ, in the order of the replies."""
    asked = question(prompt)
    scored = [(reward(asked, text), text) for text in texts]

    rows = []
    for first, second in combinations(scored, 2):
        if first[0] == second[0]:
            continue
        (worse_reward, worse_text), (better_reward, better_text) = sorted((first, second))
        rows.append(
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": better_text}],
                "rejected": [{"role": "assistant", "content": worse_text}],
                "chosen_reward": better_reward,
                "rejected_reward": worse_reward,
            }
        )
    return rows

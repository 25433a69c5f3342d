"""Preference pairs from sampled replies and a reward."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sampling import Messages, Reply


def preference_pairs(
    prompts: Sequence[Messages],
    replies: Sequence[Sequence[Reply]],
    reward: Callable[[str, str], float],
    *,
    per_prompt: int,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Up to `per_prompt` pairs for each prompt, the reply with the higher reward chosen: (rows, report).

    Replies that were cut off, are blank, or repeat another reply to the same prompt are not used. The pairs of one
    prompt are drawn without replacement from all of its pairs of different reward. A row has prompt, chosen and
    rejected as message lists, and the two rewards; the report counts what was used and what was not.
    """
    from .sampling import question  # imports torch, which a recipe file that names a world must not

    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    names = ("prompts", "replies", "unfinished", "blank", "duplicates", "prompts_without_pair", "pairs")
    report = dict.fromkeys(names, 0)
    for prompt, sampled in zip(prompts, replies, strict=True):
        finished = [reply.text for reply in sampled if reply.ended]
        written = [text for text in finished if text.strip()]
        distinct = list(dict.fromkeys(written))
        scored = [(reward(question(prompt), text), text) for text in distinct]
        candidates = [sorted(pair, reverse=True) for pair in combinations(scored, 2) if pair[0][0] != pair[1][0]]
        for chosen, rejected in draw.sample(candidates, min(per_prompt, len(candidates))):
            rows.append({
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": chosen[1]}],
                "rejected": [{"role": "assistant", "content": rejected[1]}],
                "chosen_reward": chosen[0],
                "rejected_reward": rejected[0],
            })  # fmt: skip
        report["prompts"] += 1
        report["replies"] += len(sampled)
        report["unfinished"] += len(sampled) - len(finished)
        report["blank"] += len(finished) - len(written)
        report["duplicates"] += len(written) - len(distinct)
        report["prompts_without_pair"] += not candidates
    report["pairs"] = len(rows)
    return rows, report

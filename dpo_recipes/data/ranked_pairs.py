"""Preference pairs from sampled replies and a reward."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from .replies import Messages, Reply, question


def preference_pairs(
    prompts: Sequence[Messages], replies: Sequence[Sequence[Reply]], reward: Callable[[str, str], float], *,
    per_prompt: int, seed: int,
) -> tuple[list[dict[str, Any]], dict[str, int]]:  # fmt: skip
    """Up to `per_prompt` pairs for each prompt, the reply with the higher reward chosen: (rows, report).

    Replies that were cut off, are blank or repeat another are not used; pairs are drawn without replacement from those
    that differ in reward. A row has message lists and the two rewards; the report counts what was used and not.
    """
    draw, rows, report = random.Random(seed), list[dict[str, Any]](), Counter[str]()
    for prompt, sampled in zip(prompts, replies, strict=True):
        ended = [reply.text for reply in sampled if reply.ended]
        written = [text for text in ended if text.strip()]
        distinct = list(dict.fromkeys(written))
        scored = [(reward(question(prompt), text), text) for text in distinct]
        candidates = [sorted(pair, reverse=True) for pair in combinations(scored, 2) if pair[0][0] != pair[1][0]]
        drawn = draw.sample(candidates, min(per_prompt, len(candidates)))
        for (better, good), (worse, bad) in drawn:
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in (good, bad))
            rewards = {"chosen_reward": better, "rejected_reward": worse}
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, **rewards})
        report.update(
            prompts=1, replies=len(sampled), unfinished=len(sampled) - len(ended), blank=len(ended) - len(written),
            duplicates=len(written) - len(distinct), prompts_without_pair=int(not drawn), pairs=len(drawn),
        )  # fmt: skip
    return rows, report

"""Pairs of random words in the lengths of three kinds of preference data, where no data set is at hand."""

from __future__ import annotations

import random
from typing import Any, NamedTuple


class Profile(NamedTuple):
    """Lengths in tokens, log-normal: the median, and the standard deviation of the logarithm."""

    prompt: tuple[float, float]
    answer: tuple[float, float]
    max_length: int


# Answers as long as their questions or longer; short answers in a long conversation; a question about documents.
PROFILES = {
    "ultrafeedback": Profile(prompt=(120, 1.0), answer=(300, 0.6), max_length=1024),
    "hh": Profile(prompt=(150, 0.7), answer=(60, 0.7), max_length=1024),
    "rag": Profile(prompt=(1500, 0.35), answer=(150, 0.5), max_length=2048),
}


def drawn_pairs(profile: Profile, count: int, vocabulary: int, seed: int) -> Any:
    """A data set of `count` tokenised pairs, of token ids below `vocabulary`, that fit the profile's max_length whole.

    An answer takes half of max_length at most, and a prompt what the longer answer leaves.
    """
    from datasets import Dataset

    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        chosen = _ids(draw, profile.answer, profile.max_length // 2, vocabulary)
        rejected = _ids(draw, profile.answer, profile.max_length // 2, vocabulary)
        room = profile.max_length - max(len(chosen), len(rejected))
        prompt = _ids(draw, profile.prompt, room, vocabulary)
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return Dataset.from_list(rows)


def _ids(draw: random.Random, length: tuple[float, float], longest: int, vocabulary: int) -> list[int]:
    median, deviation = length
    tokens = round(median * draw.lognormvariate(0, deviation))
    tokens = max(1, min(tokens, longest))
    return [draw.randrange(vocabulary) for _ in range(tokens)]

"""Replies to many prompts, kept in a folder as they are sampled: what stops on the way goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.replies import Messages, Replies, Reply
from ..errors import RecipeError, UsageError
from ..runs import files
from .generate import Progress

PART = 64  # prompts in a file: what is lost, at most, when sampling is stopped

Sample = Callable[..., Replies]  # sample(prompts, seed=, progress=) -> shape (prompts, samples)


def sampled_replies(
    folder: Path,
    prompts: Sequence[Messages | str],
    sample: Sample,
    *,
    settings: dict[str, Any],
    seed: int,
    samples: int,
    progress: Progress,
) -> Replies:
    """The replies to every prompt, of shape (prompts, samples): those that the folder holds, and the rest sampled.

    Each part of the prompts has a seed of its own, made of `seed` and its place, so that sampling that was stopped
    gives what it would have given. `settings` are all that decides what is sampled: UsageError where the folder was
    begun with others, with what differs. `progress` counts replies.
    """
    _begin_or_go_on(folder, {**settings, "prompts": _hash(list(prompts)), "seed": seed, "samples": samples})
    total = len(prompts) * samples
    replies: Replies = []
    for start in range(0, len(prompts), PART):
        file = folder / "replies" / f"{start // PART:05d}.jsonl"
        if not file.is_file():

            def count(done: float, _: int, before: int = start * samples) -> None:
                progress(before + done, total)

            part = list(prompts[start : start + PART])
            sampled = sample(part, seed=_seed_of_part(seed, start // PART), progress=count)
            rows = []
            for prompt, its_replies in zip(part, sampled, strict=True):
                rows.append({"prompt": prompt, "replies": [asdict(reply) for reply in its_replies]})
            files.write_jsonl(file, rows)
        replies += _read(file)
        progress(len(replies) * samples, total)
    return replies


def _begin_or_go_on(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or see that what it holds was sampled as is asked for now."""
    file = folder / "settings.json"
    try:
        (folder / "replies").mkdir(parents=True, exist_ok=True)
        if not file.exists():
            files.write_json(file, settings)
            return
        begun_with = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{folder} cannot be written: {error.strerror}. Choose another place: --to FOLDER") from None
    except ValueError as error:
        raise RecipeError(f"{file} is damaged: {error}. Delete {folder}, or choose another one: --to FOLDER") from None

    differing = [name for name, value in settings.items() if begun_with.get(name) != value]
    if differing:
        differences = ", ".join(f"{name} (was {_shown(begun_with.get(name))})" for name in differing)
        raise UsageError(
            f"{folder} holds replies that were sampled otherwise: another {differences}. Choose another folder with "
            f"--to, or delete this one."
        )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."  # of a hash its start will do


def _read(file: Path) -> Replies:
    """The replies to the prompts of one part."""
    replies = []
    try:
        for line in file.read_text(encoding="utf-8").split("\n"):
            if line:
                replies.append([Reply(**reply) for reply in json.loads(line)["replies"]])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{file} is damaged: {error}. Delete it, and its replies are sampled again.") from None
    return replies


def _seed_of_part(seed: int, part: int) -> int:
    return int(_hash([seed, part])[:15], 16)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

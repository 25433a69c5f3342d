"""What options of the command line stand for together: a served model, a reward, a job; and what is missing of them."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from .errors import UsageError
from .recipe.judges import Endpoint, JudgeEndpoint, RewardModel

# A model behind an endpoint, as the option of its URL and those beside it name it
Served = TypeVar("Served", Endpoint, JudgeEndpoint)


def served(
    kind: type[Served], option: str, url: str | None, model: str | None, key_option: str, key_env: str | None
) -> Served | None:
    """What an option such as --endpoint URL names, with what stands in the options beside it; None without it."""
    if url is None:
        if model is not None or key_env is not None:
            raise UsageError(f"{option}-model and {key_option} belong to {option} URL, which is not given.")
        return None
    if model is None:
        raise UsageError(f"{option} {url}: name its model with {option}-model.")
    return kind(url, model=model, api_key_env=key_env)


def job_of(platform: str | None, given: dict[str, Any]) -> Any:
    """What --to and the options beside it ask for; None without it."""
    given = {name: value for name, value in given.items() if value is not None}
    if platform is None:
        if given:
            raise UsageError(f"--{next(iter(given)).replace('_', '-')} belongs to --to KIND, which is not given.")
        return None
    from .exports.job import Job

    return Job(platform, **given)


def reward_of(
    reward_model: str | None, judge: str | None, judge_model: str | None, judge_key_env: str | None
) -> RewardModel | JudgeEndpoint | None:
    """What judges the answers in place of the recipe's own reward."""
    if reward_model is not None and judge is not None:
        raise UsageError("--reward-model and --judge: one of the two.")
    if reward_model is not None:
        return RewardModel(reward_model)
    return served(JudgeEndpoint, "--judge", judge, judge_model, "--judge-key-env", judge_key_env)


def factors_of(text: str | None) -> list[float]:
    """The factors of --dial."""
    if text is None:
        return []
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if not factors or not all(0 <= factor < math.inf for factor in factors):
        raise UsageError(f"--dial {text!r}: numbers of 0 and more, with commas between them, such as 0.25,0.5,1,2.")
    return factors

"""The rules of a recipe: the guard's at the levels it asks for, and functions of its own, tried before training.

A rule of one's own is a function of the log so far and of what is known of the run:

    def margin_negative(rows, run):
        if rows[-1].get("eval_rewards/margins", 0) < 0 and rows[-1]["step"] > run.steps / 2:
            return "stop", "The held-out margin is negative after half of the run."

`rows` are dicts with the names of metrics.jsonl, the oldest first; an evaluation is a row of its own, whose names
begin with `eval_`. `run` has `steps`, `pairs_per_step`, `held_out_pairs`, `beta`, `learning_rate` and `losses`. It
returns None where there is nothing to say, a sentence, which is told as a warning, or a level (`note`, `warning` or
`stop`) and a sentence.
"""

import contextlib
import io
from typing import Any, cast, get_args

from ..errors import Finding, RecipeError
from ..losses.conformance import failure
from ..recipe.recipe import Recipe
from .trends import TRENDS, KnownOfRun, Level, Rows, Rule, Sign

OWN_LEVEL: Level = "warning"  # of a sentence without a level
LEVELS = get_args(Level)  # the mildest first

# The first rows of a log, in which nothing is wrong: a rule of one's own is asked after each of them before training.
_EVALUATION = {
    "eval_loss": 0.6931,
    "eval_runtime": 1.0,
    "eval_samples_per_second": 100.0,
    "eval_steps_per_second": 10.0,
    "eval_entropy": 0.9,
    "eval_num_tokens": 0.0,
    "eval_mean_token_accuracy": 0.7,
    "eval_logits/chosen": -1.0,
    "eval_logits/rejected": -1.0,
    "eval_logps/chosen": -60.0,
    "eval_logps/rejected": -62.0,
    "eval_rewards/chosen": 0.0,
    "eval_rewards/rejected": 0.0,
    "eval_rewards/accuracies": 0.5,
    "eval_rewards/margins": 0.0,
    "epoch": 0.0,
}
_STEP = {
    "loss": 0.6931,
    "grad_norm": 1.0,
    "learning_rate": 5e-6,
    "entropy": 0.9,
    "num_tokens": 4000.0,
    "mean_token_accuracy": 0.7,
    "logits/chosen": -1.0,
    "logits/rejected": -1.0,
    "logps/chosen": -60.0,
    "logps/rejected": -62.0,
    "rewards/chosen": 0.0,
    "rewards/rejected": 0.0,
    "rewards/accuracies": 0.5,
    "rewards/margins": 0.0,
    "epoch": 0.01,
}
_SECOND_STEP = _STEP | {
    "loss": 0.6899,
    "rewards/chosen": 0.002,
    "rewards/rejected": -0.003,
    "rewards/accuracies": 0.6,
    "rewards/margins": 0.005,
    "window/pairs": 16.0,
    "window/accuracies": 0.6,
    "window/margins": 0.005,
    "window/chosen_change_per_token": 0.0002,
    "window/rejected_change_per_token": -0.0003,
    "window/pairs_chosen_longer": 9.0,
    "window/accuracies_chosen_longer": 0.6,
    "window/pairs_chosen_shorter": 7.0,
    "window/accuracies_chosen_shorter": 0.6,
    "epoch": 0.02,
}
_END = {
    "train_runtime": 100.0,
    "train_samples_per_second": 16.0,
    "train_steps_per_second": 1.0,
    "total_flos": 1e12,
    "train_loss": 0.69,
    "epoch": 1.0,
}
FIRST_ROWS: list[dict[str, Any]] = [
    {"step": 0, **_EVALUATION},
    {"step": 1, **_STEP},
    {"step": 2, **_SECOND_STEP},
    {"step": 2, **_END},
    {"step": 2, **_EVALUATION},
]


def rules_of(recipe: Recipe) -> dict[str, tuple[Level, Rule]]:
    """Name -> level and function of the guard's rules that the recipe leaves on."""
    rules = {}
    for name, (level, rule) in TRENDS.items():
        chosen = recipe.rules.get(name, level)
        if chosen != "off":
            rules[name] = (cast(Level, chosen), rule)
    return rules


def own_rules_of(recipe: Recipe) -> dict[str, Any]:
    """Name -> function of the recipe's own rules."""
    return {name: rule for name, rule in recipe.rules.items() if callable(rule)}


def own_sign(name: str, function: Any, rows: Rows, run: KnownOfRun) -> tuple[Level, Sign] | None:
    """What a rule of the recipe's own says; RecipeError where it fails, or returns what cannot be told."""
    try:
        said = function(rows, run)
    except Exception as error:  # whatever somebody's own function raises
        hint = ""
        if isinstance(error, KeyError):
            hint = " Rows differ: a step has no numbers of an evaluation, an evaluation none of a step. Use row.get()."
        raise RecipeError(f"rules[{name!r}] failed: {failure(function, error)}.{hint}") from error

    if said is None:
        return None
    level, sentence = (OWN_LEVEL, said) if isinstance(said, str) else _pair(said)
    if level not in LEVELS or not isinstance(sentence, str) or not sentence.strip():
        raise RecipeError(
            f"rules[{name!r}] must return None, a sentence, or a level and a sentence, such as ('stop', 'The margin "
            f"is negative.'), and returned {said!r}. The levels are {', '.join(LEVELS)}."
        )
    return level, Sign(sentence, "")


def _pair(said: Any) -> tuple[Any, Any]:
    if isinstance(said, tuple) and len(said) == 2:
        return said
    return None, None


def rule_findings(recipe: Recipe) -> list[Finding]:
    """One finding for each rule of the recipe's own, asked about the first rows of a run in which nothing is wrong."""
    run = KnownOfRun(
        steps=1000,
        pairs_per_step=recipe.global_batch_size,
        held_out_pairs=100,
        beta=recipe.beta,
        learning_rate=recipe.learning_rate or 5e-6,
        losses=tuple(sorted(recipe.loss_names)),
    )
    return [_finding(name, function, run) for name, function in own_rules_of(recipe).items()]


def _finding(name: str, function: Any, run: KnownOfRun) -> Finding:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            said = [own_sign(name, function, FIRST_ROWS[: count + 1], run) for count in range(len(FIRST_ROWS))]
    except RecipeError as error:
        return Finding("fail", f"rule {name}", str(error))
    alarms = [sign for sign in said if sign is not None]
    if alarms:
        level, sign = alarms[0]
        return Finding(
            "warn",
            f"rule {name}",
            f"It says {level} of the first rows of a run in which nothing is wrong: {sign.seen}",
        )
    if printed.getvalue():
        return Finding("warn", f"rule {name}", "It prints, and is asked at every log.")
    return Finding("pass", f"rule {name}", "has nothing to say of the first rows of a run in which nothing is wrong")

"""The rules about the log of a run, on made-up logs: each speaks of what it names, and a healthy log raises nothing."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from dpo_recipes.guard import trends
from dpo_recipes.guard.trends import TRENDS, KnownOfRun
from dpo_recipes.recipe.recipe import RULE_LEVELS, RULES

STEPS = 200


def known(**changes) -> KnownOfRun:
    given = {"steps": STEPS, "pairs_per_step": 16, "held_out_pairs": 320, "beta": 0.1, "learning_rate": 5e-6}
    return KnownOfRun(**given | {"losses": ("sigmoid",)} | changes)


def step(number: int, **changes) -> dict:
    """A row of a step in the middle of a healthy run."""
    row = {
        "step": number,
        "loss": 0.5,
        "grad_norm": 1.0,
        "entropy": 0.9,
        "epoch": number / STEPS,
        "window/pairs": float(min(256, 16 * (number - 1))),
        "window/accuracies": 0.75,
        "window/margins": 0.8,
        "window/chosen_change_per_token": 0.01,
        "window/rejected_change_per_token": -0.1,
        "window/pairs_chosen_longer": 120.0,
        "window/accuracies_chosen_longer": 0.8,
        "window/pairs_chosen_shorter": 110.0,
        "window/accuracies_chosen_shorter": 0.7,
    }
    return row | changes


def evaluation(number: int, loss: float = 0.5, accuracy: float = 0.72) -> dict:
    return {"step": number, "eval_loss": loss, "eval_rewards/accuracies": accuracy}


def of_window(**changes) -> dict:
    return {f"window/{name}": value for name, value in changes.items()}


def healthy_log() -> list[dict]:
    """200 steps with the noise of batches, evaluated before, in the middle and after."""
    draw = random.Random(0)
    rows = [evaluation(0, math.log(2), 0.5)]
    for number in range(1, STEPS + 1):
        learned = number / STEPS
        rows.append(
            step(
                number,
                loss=math.log(2) - 0.25 * learned + draw.gauss(0, 0.05),
                grad_norm=draw.lognormvariate(0, 0.7),
                entropy=0.9 - 0.1 * learned + draw.gauss(0, 0.05),
                **of_window(
                    accuracies=0.5 + 0.3 * learned,
                    margins=learned,
                    chosen_change_per_token=-0.04 * learned,
                    rejected_change_per_token=-0.01 - 0.2 * learned,
                ),
            )
        )
        if number in (STEPS / 2, STEPS):
            rows.append(evaluation(number, math.log(2) - 0.2 * learned, 0.5 + 0.25 * learned))
    return rows


def test_a_healthy_log_raises_nothing_at_any_row():
    rows = healthy_log()
    spoken = [
        (name, rows[count - 1]["step"])
        for count in range(1, len(rows) + 1)
        for name, (_level, rule) in TRENDS.items()
        if rule(rows[:count], known()) is not None
    ]
    assert spoken == []


def test_recipes_know_the_rules_by_name():
    assert tuple(TRENDS) == RULES
    assert {level for level, _rule in TRENDS.values()} <= set(RULE_LEVELS) - {"off"}


def test_the_readme_names_every_rule_with_its_level():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for name, (level, _rule) in TRENDS.items():
        assert f"| `{name}` | {level} |" in readme


# Rule, the row that it speaks of, words that it says, and the same row just short of it.
SPOKEN = [
    (
        "chosen_forgotten",
        of_window(chosen_change_per_token=-0.51, rejected_change_per_token=-0.9),
        "they have lost 0.51 nats per token since the start, so that a token of them is 0.6 times as likely",
        of_window(chosen_change_per_token=-0.19, rejected_change_per_token=0.0),
    ),
    (
        "rejected_falls",
        of_window(chosen_change_per_token=-0.1, rejected_change_per_token=-0.4),
        "because the rejected answers fall faster (-0.40 nats per token since the start) than the chosen ones (-0.10)",
        of_window(chosen_change_per_token=-0.04, rejected_change_per_token=-0.4),
    ),
    (
        "policy_runs_away",
        of_window(chosen_change_per_token=0.3, rejected_change_per_token=-0.8),
        "the chosen answers have changed by +0.30 nats per token, the rejected ones by -0.80.",
        of_window(chosen_change_per_token=0.3, rejected_change_per_token=-0.69),
    ),
    (
        "policy_runs_away",
        of_window(chosen_change_per_token=-1.01, rejected_change_per_token=-0.9),
        "the chosen answers have changed by -1.01 nats per token",
        of_window(chosen_change_per_token=-0.99, rejected_change_per_token=-0.9),
    ),
    (
        "margin_too_wide",
        of_window(margins=10.5),
        "The mean reward margin of the last pairs is 10.5",
        of_window(margins=9.9),
    ),
    (
        "no_movement",
        of_window(chosen_change_per_token=4e-4, rejected_change_per_token=-1e-4),
        "After 100 of 200 steps the policy is still its reference: over the last pairs the two differ by 0.0004 nats",
        of_window(chosen_change_per_token=4e-4, rejected_change_per_token=-2e-3),
    ),
    (
        "length_decides",
        of_window(accuracies_chosen_longer=0.95, accuracies_chosen_shorter=0.3),
        "learns to prefer the longer answer: of the last pairs it ranks 95% right where the chosen side is the longer, "
        "and 30% where it is the shorter",
        of_window(accuracies_chosen_longer=0.95, accuracies_chosen_shorter=0.45),
    ),
    (
        "length_decides",
        of_window(accuracies_chosen_longer=0.2, accuracies_chosen_shorter=0.9),
        "learns to prefer the shorter answer",
        of_window(accuracies_chosen_longer=0.2, accuracies_chosen_shorter=0.9, pairs_chosen_longer=63.0),
    ),
]


@pytest.mark.parametrize(("name", "bad", "words", "borderline"), SPOKEN, ids=[row[0] for row in SPOKEN])
def test_a_rule_speaks_of_what_it_names_and_is_silent_just_short_of_it(name, bad, words, borderline):
    rule = TRENDS[name][1]
    sign = rule([step(99), step(100, **bad)], known())
    assert sign is not None and words in sign.seen and sign.advice
    assert rule([step(99), step(100, **borderline)], known()) is None


@pytest.mark.parametrize("name", ["chosen_forgotten", "policy_runs_away", "no_movement"])
def test_few_pairs_and_a_reference_that_is_another_model_tell_nothing(name):
    rule = TRENDS[name][1]
    [bad] = [row[1] for row in SPOKEN if row[0] == name][:1]
    assert rule([step(100, **bad | of_window(pairs=63.0))], known()) is None
    without = {key: value for key, value in step(100, **bad).items() if "change_per_token" not in key}
    assert rule([without], known()) is None


def test_a_policy_that_has_not_moved_yet_has_until_half_of_the_run():
    still = of_window(chosen_change_per_token=0.0, rejected_change_per_token=0.0)
    assert trends.no_movement([step(99, **still)], known()) is None
    assert trends.no_movement([step(100, **still)], known())


def test_ipo_may_go_as_far_as_twice_its_own_aim():
    far = of_window(chosen_change_per_token=3.0, rejected_change_per_token=-3.0, margins=1.0)
    assert trends.policy_runs_away([step(100, **far)], known())
    assert trends.policy_runs_away([step(100, **far)], known(losses=("ipo",))) is None  # it aims at 5 nats a token
    assert trends.policy_runs_away([step(100, **far)], known(losses=("ipo",), beta=0.5))


@pytest.mark.parametrize(
    ("number", "accuracy", "speaks"), [(20, 0.96, True), (20, 0.95, False), (21, 0.99, False), (4, 0.99, False)]
)
def test_an_accuracy_near_1_is_suspicious_in_the_first_tenth_of_a_run(number, accuracy, speaks):
    sign = trends.accuracy_too_early([step(number, **of_window(accuracies=accuracy))], known())
    assert (sign is not None) == speaks


def test_a_coins_accuracy_on_held_out_pairs_is_noted_from_half_of_the_run_on():
    coin = evaluation(100, accuracy=0.55)
    sign = trends.held_out_at_chance([coin], known())
    assert sign.seen.startswith(
        "55.0% of 320 held-out pairs are ranked as labelled, which cannot be told from a coin's"
    )
    assert trends.held_out_at_chance([evaluation(99, accuracy=0.55)], known()) is None
    assert trends.held_out_at_chance([evaluation(100, accuracy=0.56)], known()) is None
    assert trends.held_out_at_chance([coin], known(held_out_pairs=4000)) is None


def test_over_fitting_is_a_held_out_loss_that_rises_or_a_gap_between_trained_and_held_out_pairs():
    start = evaluation(0, 0.693, 0.5)
    rising = [start, evaluation(50, 0.55), step(99), evaluation(100, 0.61)]
    assert "is 0.6100 and was 0.5500 at step 50" in trends.over_fitting(rising, known()).seen
    assert trends.over_fitting([start, evaluation(50, 0.55), step(99), evaluation(100, 0.6)], known()) is None

    apart = [start, step(100, **of_window(accuracies=0.97)), evaluation(100, 0.6, 0.75)]
    sign = trends.over_fitting(apart, known())
    assert sign.seen.startswith("97% of the last pairs trained on are ranked as labelled, and 75% of those held out")
    assert sign.amount == pytest.approx(0.22)
    assert trends.over_fitting(apart, known(held_out_pairs=30)) is None  # which may be chance
    assert trends.over_fitting([start, step(100, **of_window(accuracies=0.97))], known()) is None


def test_a_fall_of_the_loss_at_the_border_of_two_epochs_is_seen_once_its_first_steps_are_over():
    draw = random.Random(1)
    rows = [step(k, epoch=k / 20, loss=0.6 + draw.gauss(0, 0.04)) for k in range(1, 21)]
    for k in range(21, 41):
        rows.append(step(k, epoch=k / 20, loss=0.3 + draw.gauss(0, 0.04)))
    spoken = [row["step"] for count, row in enumerate(rows, 1) if trends.epoch_jump(rows[:count], known())]
    assert spoken == [30]  # ten rows into the second epoch
    assert "where epoch 2 began" in trends.epoch_jump(rows[:30], known()).seen

    smooth = [step(k, epoch=k / 20, loss=0.6 - k / 100 + draw.gauss(0, 0.05)) for k in range(1, 41)]
    assert [count for count in range(1, 41) if trends.epoch_jump(smooth[:count], known())] == []


def test_gradients_may_be_rough_but_not_far_beyond_the_usual_again_and_again():
    rows = [step(k, grad_norm=1.0) for k in range(1, 61)]
    for k in (30, 45):
        rows[k]["grad_norm"] = 90.0
    assert trends.gradient_spikes(rows, known()) is None
    rows[59]["grad_norm"] = 30.0
    assert "3 of the last 50 gradient norms are over 20 times the usual 1, the largest 90" in (
        trends.gradient_spikes(rows, known()).seen
    )
    rows[59]["grad_norm"] = math.nan  # fp16 while its scale is being found
    assert trends.gradient_spikes(rows, known()) is None


def test_entropy_that_falls_by_half_has_collapsed():
    rows = [step(k, entropy=0.9) for k in range(1, 11)] + [step(k, entropy=0.44) for k in range(11, 21)]
    assert "has fallen from 0.9 to 0.44 nats" in trends.entropy_collapse(rows, known()).seen
    rows = [step(k, entropy=0.9) for k in range(1, 11)] + [step(k, entropy=0.46) for k in range(11, 21)]
    assert trends.entropy_collapse(rows, known()) is None
    assert trends.entropy_collapse(rows[:3], known()) is None

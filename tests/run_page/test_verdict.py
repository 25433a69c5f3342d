"""The verdict: the words follow the intervals."""

from __future__ import annotations

import pytest
from making_runs import AFTER, BEFORE, OBSERVATION, make_run

from dpo_recipes.run_page.contents import Contents, contents
from dpo_recipes.run_page.verdict import progress, verdict

MOVED = "forgetting/kl_per_token"
TRAINED = [{"step": 100, "train_runtime": 1.0}]


def judge(**after) -> tuple[str, str, list[str]]:
    before = BEFORE | {"reward": 0.1, "forgetting/token_accuracy": 0.3}
    run = Contents("run", metrics=TRAINED, evaluation={"before": before, "after": AFTER | after})
    whole = verdict(run)
    return whole.judgement, whole.headline, [remark.judgement for remark in whole.remarks]


def won(win_rate: float, reward: float) -> dict:
    """Numbers of answers whose reference has a mean reward of 0.1."""
    return {"win_rate": win_rate, "win_rate_stderr": 0.02, "reward": reward, "reward_stderr": 0.1}


def unrelated(change: float, error: float = 0.001) -> dict:
    return {"forgetting/token_accuracy_change": change, "forgetting/token_accuracy_change_stderr": error}


def accuracy(low: float, high: float) -> dict:
    return {"rewards/accuracies": (low + high) / 2, "rewards/accuracies_interval": [low, high]}


@pytest.mark.parametrize(
    ("after", "judgement", "words", "remarks"),
    [
        ({}, "good", "It worked", ["good", "good"]),
        (accuracy(0.45, 0.6), "open", "It cannot be told", ["open", "good"]),
        (accuracy(0.3, 0.45), "bad", "ranked against their labels", ["bad", "good"]),
        ({"logps/chosen_change_per_token": -0.1}, "good", "It worked", ["good", "good"]),
        ({"logps/chosen_change_per_token": -0.3}, "open", "something is amiss", ["good", "bad"]),
        (
            accuracy(0.45, 0.6) | {"logps/chosen_change_per_token": -7.0},
            "bad",
            "It did not work: nothing was learned",
            ["open", "bad"],
        ),
        (won(0.6, 0.9), "good", "It worked", ["good", "good", "good"]),
        (won(0.53, 0.9), "open", "that it answers better does not show", ["good", "open", "good"]),
        (won(0.6, 0.2), "open", "that it answers better does not show", ["good", "open", "good"]),
        (won(0.4, 0.2), "bad", "its answers have become worse", ["good", "bad", "good"]),
        (won(0.6, -0.9), "bad", "its answers have become worse", ["good", "bad", "good"]),
        (unrelated(-0.05), "open", "something is amiss", ["good", "good", "bad"]),
        (unrelated(-0.01), "good", "It worked", ["good", "good"]),
        (unrelated(-0.05, error=0.03), "good", "It worked", ["good", "good"]),
        ({"rewards/accuracies_interval": [None, None]}, "open", "It cannot be told", ["good"]),
    ],
)
def test_the_headline_follows_from_the_intervals(after, judgement, words, remarks):
    judged, headline, found = judge(**after)
    assert judged == judgement and words in headline and found == remarks


def test_a_forgetting_limit_that_is_passed_is_amiss():
    run = Contents("run", metrics=TRAINED, evaluation={"before": BEFORE, "after": AFTER | {MOVED: 0.3}})
    assert verdict(run).judgement == "good"
    run.recipe["forgetting_limit"] = {"value": 0.2, "origin": "recipe file"}
    assert verdict(run).remarks[-1].text == "On unrelated text it has moved by 0.300 nats per token; 0.2 was allowed."


def test_answers_that_no_longer_end_are_amiss():
    before = BEFORE | {"answers/capped": 0.02, "answers/repeated_4grams": 0.1}
    after = AFTER | {"answers/capped": 0.3, "answers/repeated_4grams": 0.12}
    whole = verdict(Contents("run", metrics=TRAINED, evaluation={"before": before, "after": after}))
    assert (
        whole.remarks[-1].text == "Its answers have become endless or repetitive: cut at the cap 2% before, 30% after."
    )


def test_a_run_that_was_no_better_than_its_start_against_another_reference_is_open():
    before = BEFORE | {"rewards/accuracies": 0.8}
    whole = verdict(Contents("run", metrics=TRAINED, evaluation={"before": before, "after": AFTER}))
    assert whole.judgement == "open" and "The interval holds what it was before." in whole.remarks[0].text


def test_what_the_guard_has_warned_of_is_named_and_its_notes_are_not():
    notes = OBSERVATION | {"rule": "rejected_falls", "level": "note"}
    run = Contents(
        "run", metrics=TRAINED, observations=[OBSERVATION, notes], evaluation={"before": BEFORE, "after": AFTER}
    )
    whole = verdict(run)
    assert whole.judgement == "open"
    assert whole.remarks[-1].text == "While it trained, the guard warned of over_fitting (from step 40)."


def test_a_run_that_was_stopped_says_so(tmp_path):
    run = contents(make_run(tmp_path / "run", steps=30, finished=False))
    run.observations.append(OBSERVATION | {"rule": "stopped", "level": "stop", "step": 30})
    whole = verdict(run)
    assert (whole.judgement, whole.headline) == ("bad", "It was stopped at step 30 of 100: see below, why.")


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path):
    run = contents(make_run(tmp_path / "run", steps=30, finished=False))
    assert progress(run) == "step 30 of 100"
    assert verdict(run).headline == "Not finished: it has come to step 30 of 100."
    warned = contents(make_run(tmp_path / "warned", steps=50, finished=False))
    assert verdict(warned).headline == "Not finished: it has come to step 50 of 100. Something is amiss."
    begun = contents(make_run(tmp_path / "begun", steps=0, finished=False))
    assert verdict(begun).headline == "Not finished: it has come to its first step."

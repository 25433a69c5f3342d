"""The verdict: the words follow the intervals."""

from __future__ import annotations

import pytest
from making_runs import AFTER, BEFORE, OBSERVATION, make_run

from dpo_recipes.run_page.contents import Contents, contents
from dpo_recipes.run_page.verdict import progress, verdict

TRAINED = [{"step": 100, "train_runtime": 1.0}]


def judge(**after) -> tuple[str, str, list[str]]:
    run = Contents("run", metrics=TRAINED, evaluation={"before": BEFORE, "after": AFTER | after})
    whole = verdict(run)
    return whole.judgement, whole.headline, [remark.judgement for remark in whole.remarks]


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
        ({"win_rate": 0.6, "win_rate_stderr": 0.02}, "good", "It worked", ["good", "good", "good"]),
        ({"win_rate": 0.52, "win_rate_stderr": 0.02}, "good", "It worked", ["good", "open", "good"]),
        ({"win_rate": 0.4, "win_rate_stderr": 0.02}, "bad", "its answers have become worse", ["good", "bad", "good"]),
        ({"rewards/accuracies_interval": [None, None]}, "open", "It cannot be told", ["good"]),
    ],
)
def test_the_headline_follows_from_the_intervals(after, judgement, words, remarks):
    judged, headline, found = judge(**after)
    assert judged == judgement and words in headline and found == remarks


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

"""What an evaluation will ask, known before training: the prompts, and how long answers can be."""

from __future__ import annotations

import pytest
from asking_models import length, pairs_with_prompts_of
from making import recipe_for

from dpo_recipes.evaluation.rehearsal import PROMPTS, draws, questions, rehearsed


def test_each_prompt_is_asked_once_in_the_order_of_the_pairs_and_not_more_than_enough():
    pairs = pairs_with_prompts_of(*[5] * 100)
    twice = pairs.select([3, 3, 1, *range(100)])
    asked = questions(recipe_for("unused"), twice, None)
    assert [ids[0] for ids in asked.ids] == [3, 1, 0, 2, *range(4, PROMPTS)]
    assert asked.prompts[0] == [{"role": "user", "content": "Question 3"}] and asked.max_new_tokens == 256


def test_a_short_max_length_shortens_the_answers_too():
    assert questions(recipe_for("unused", max_length=40), pairs_with_prompts_of(5), None).max_new_tokens == 40


@pytest.mark.parametrize(
    ("positions", "scores", "level", "words"),
    [
        (None, {}, None, ""),
        (2048, {}, None, ""),
        (356, {}, None, ""),  # exactly the room of 256 tokens
        (355, {}, "warn", "has 355 positions, for prompt and answer together: an answer gets at most 255 new tokens"),
        (116, {}, "warn", "at most 16 new tokens instead of 256."),
        (115, {}, "warn", "no held-out prompt leaves room for an answer of 16 tokens. samples.jsonl will be empty."),
        (115, {"reward": length}, "fail", "The reward and the measures need answers"),
        (115, {"measures": {"length": length}}, "fail", "The reward and the measures need answers"),
    ],
)
def test_answers_that_the_positions_shorten_are_known_before_training(positions, scores, level, words):
    findings = rehearsed(recipe_for("unused", **scores), pairs_with_prompts_of(*[100] * 10), positions)
    of_length = [finding for finding in findings if finding.name == "answers"]
    assert [finding.level for finding in of_length] == ([level] if level else [])
    assert words in "".join(finding.text for finding in of_length)


def test_a_few_long_prompts_do_not_shorten_the_answers_to_the_others():
    [finding] = rehearsed(recipe_for("unused"), pairs_with_prompts_of(*[100] * 6, *[340] * 4), 356)
    assert "at most 256 new tokens, and only the 6 of 10 held-out prompts that leave room" in finding.text
    enough = pairs_with_prompts_of(*[100] * PROMPTS, *[340] * 4)
    assert not rehearsed(recipe_for("unused"), enough, 356)


def test_a_recipe_says_how_many_answers_are_drawn():
    def score(prompt: str, completion: str) -> float:
        return 0.0

    assert draws(recipe_for("unused", reward=score)) == (8, 24)
    assert draws(recipe_for("unused", reward=score, answers=2)) == (2, 6)
    assert draws(recipe_for("unused", answers=5)) == (5, 5)


def test_the_calls_of_a_reward_are_those_of_the_prompts_that_will_be_asked(monkeypatch):
    """What is said of its cost counts a prompt once, however many pairs it has."""

    def slow(prompt: str, completion: str) -> float:
        return 0.0

    ticks = iter(range(0, 1000, 1))
    monkeypatch.setattr("dpo_recipes.evaluation.rehearsal.time.perf_counter", lambda: float(next(ticks)))
    pairs = pairs_with_prompts_of(5, 5, 5).select([0, 0, 0, 1, 2])
    [finding] = rehearsed(recipe_for("unused", reward=slow), pairs, None)
    calls = 3 * sum(draws(recipe_for("unused", reward=slow)))
    assert f"took 1 s a call; the evaluation calls it {calls} times" in finding.text

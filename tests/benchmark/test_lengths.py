"""Drawn pairs: their lengths are a profile's, and they fit."""

from __future__ import annotations

import statistics

import pytest

from dpo_recipes.benchmark.lengths import PROFILES, drawn_pairs


@pytest.mark.parametrize("name", PROFILES)
def test_drawn_pairs_have_the_medians_of_their_profile_and_fit_whole(name):
    profile = PROFILES[name]
    pairs = drawn_pairs(profile, 400, vocabulary=50, seed=1)
    answers, prompts = [], []
    for pair in pairs:
        answers += [len(pair["chosen_ids"]), len(pair["rejected_ids"])]
        prompts.append(len(pair["prompt_ids"]))
        assert len(pair["prompt_ids"]) + max(answers[-2:]) <= profile.max_length
        assert min(answers[-2:]) >= 1 <= prompts[-1]
        assert max(*pair["prompt_ids"], *pair["chosen_ids"], *pair["rejected_ids"]) < 50
    assert statistics.median(answers) == pytest.approx(profile.answer[0], rel=0.1)
    assert statistics.median(prompts) == pytest.approx(profile.prompt[0], rel=0.15)


def test_a_seed_draws_the_same_pairs_and_another_others():
    drawn = [drawn_pairs(PROFILES["hh"], 3, vocabulary=50, seed=seed)[:] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]

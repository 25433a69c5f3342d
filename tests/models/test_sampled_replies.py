"""Replies kept in parts: stopped and gone on is the same as never stopped, and other settings are refused."""

from __future__ import annotations

import random

import pytest

from dpo_recipes.data.replies import Reply
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.models.sampled_replies import PART, sampled_replies

PROMPTS = [[{"role": "user", "content": f"Question {number}"}] for number in range(2 * PART + 5)]


class Sampler:
    """Draws replies from the seed, and stops like Ctrl-C before the call of that number."""

    def __init__(self, stop_at: int = -1):
        self.calls = 0
        self.stop_at = stop_at

    def __call__(self, prompts, *, seed, progress):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        draw = random.Random(seed)
        progress(len(prompts), len(prompts))

        def reply() -> Reply:
            return Reply(f"{draw.random()}", [1, 2], draw.random() < 0.5)

        return [[reply(), reply()] for _ in prompts]


def sampled(folder, sampler, *, prompts=PROMPTS, samples=2, seed=1, shown=None, **settings):
    shown = [] if shown is None else shown
    settings = {"weights": "abc", "temperature": 1.0} | settings
    return sampled_replies(
        folder,
        prompts,
        sampler,
        settings=settings,
        seed=seed,
        samples=samples,
        progress=lambda done, total: shown.append((done, total)),
    )


def test_stopped_and_gone_on_is_as_never_stopped(tmp_path):
    whole = sampled(tmp_path / "whole", Sampler())
    assert len(whole) == len(PROMPTS) and all(len(replies) == 2 for replies in whole)
    with pytest.raises(KeyboardInterrupt):
        sampled(tmp_path / "parts", Sampler(stop_at=2))

    rest = Sampler()
    assert sampled(tmp_path / "parts", rest) == whole
    assert rest.calls == 1  # the first two parts were there
    again = Sampler()
    assert sampled(tmp_path / "parts", again) == whole and again.calls == 0
    assert not list((tmp_path / "parts").rglob("*.tmp"))


def test_parts_and_seeds_draw_differently(tmp_path):
    whole = sampled(tmp_path / "a", Sampler())
    assert whole[0] != whole[PART]
    assert sampled(tmp_path / "b", Sampler(), seed=2)[0] != whole[0]


def test_progress_counts_replies_up_to_all_of_them(tmp_path):
    shown = []
    sampled(tmp_path, Sampler(), shown=shown)
    assert shown == sorted(shown) and shown[-1] == (2 * len(PROMPTS), 2 * len(PROMPTS))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 0.7}, "temperature (was 1.0)"),
        ({"weights": "abcd" * 16}, "weights (was abc)"),
        ({"seed": 2}, "seed (was 1)"),
        ({"samples": 3}, "samples (was 2)"),
        ({"prompts": PROMPTS[:7]}, "prompts (was "),
    ],
)
def test_a_folder_that_was_begun_otherwise_is_refused_by_name(tmp_path, change, named):
    sampled(tmp_path, Sampler())
    with pytest.raises(UsageError) as refused:
        sampled(tmp_path, Sampler(), **change)
    assert named in str(refused.value) and "--to" in str(refused.value)


def test_damaged_files_are_named(tmp_path):
    sampled(tmp_path, Sampler())
    part = tmp_path / "replies" / "00001.jsonl"
    part.write_text('{"prompt": []', "utf-8")
    with pytest.raises(RecipeError, match=r"00001\.jsonl is damaged"):
        sampled(tmp_path, Sampler())
    part.unlink()
    sampled(tmp_path, Sampler())  # which samples that part again

    (tmp_path / "settings.json").write_text("{", "utf-8")
    with pytest.raises(RecipeError, match=r"settings\.json is damaged"):
        sampled(tmp_path, Sampler())

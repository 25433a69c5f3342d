"""`pairs`: replies of the recipe's own model become pairs that a run takes; in rounds, each trains on the last."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from making import make_reward_model, recipe_for, write_jsonl

from dpo_recipes import Data, JudgeEndpoint, LoRA, QLoRA, RewardModel, Run, load
from dpo_recipes.commands.pairs import pairs
from dpo_recipes.commands.rounds import _evolved, _started_from, rounds
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.models.reward_model import Scorer


def vowels(prompt: str, completion: str) -> float:
    return float(sum(letter in "aeiou" for letter in completion.lower()))


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


@pytest.fixture
def questions(tmp_path) -> Path:
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Question {number}?"} for number in range(10)])


@pytest.fixture
def made(tiny):
    def build(model=None, **changes):
        usual = {"adapter": LoRA(r=4), "reward": vowels, "max_length": 512, "data": Data("unused", eval=0.3)}
        return recipe_for(model or tiny(), **usual | changes)

    return build


@pytest.mark.slow
def test_pairs_are_written_counted_and_ranked_by_the_reward(made, questions, tmp_path):
    to = tmp_path / "own"
    report = pairs(made(), prompts=questions, to=to, samples=3)
    train, held_out = rows_of(to / "train.jsonl"), rows_of(to / "eval.jsonl")
    assert (len(train), len(held_out)) == (report["train"], report["eval"])
    assert report["pairs"] == len(train) + len(held_out) > 4
    assert report["replies"] == 3 * report["prompts"] == 30
    assert json.loads((to / "report.json").read_text("utf-8")) == report

    for row in train + held_out:
        sides = [row[side][0]["content"] for side in ("chosen", "rejected")]
        rewards = [vowels("", side) for side in sides]
        assert rewards == [row["chosen_reward"], row["rejected_reward"]] and rewards[0] > rewards[1]
    prompts = [{row["prompt"][0]["content"] for row in rows} for rows in (train, held_out)]
    assert not prompts[0] & prompts[1]


@pytest.mark.slow
def test_again_is_the_same_and_ranks_anew_without_sampling(made, questions, tmp_path):
    settings = {"prompts": questions, "to": tmp_path / "own", "samples": 3}
    first = pairs(made(), **settings)
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "own/replies").iterdir()}
    best = pairs(made(), pairing="best_worst", **settings)
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "own/replies").iterdir()} == written
    assert best["pairs"] == best["prompts"] - best["prompts_without_pair"] <= first["pairs"]
    one = pairs(made(), per_prompt=1, **settings)
    assert one["pairs"] == best["pairs"]
    with pytest.raises(UsageError, match="another temperature"):
        pairs(made(), temperature=0.5, **settings)


def test_ctrl_c_says_what_stays(made, questions, tmp_path, monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpo_recipes.models.sampled_replies.sampled_replies", stopped)
    with pytest.raises(KeyboardInterrupt) as error:
        pairs(made(), prompts=questions, to=tmp_path / "own")
    assert error.value.__notes__ == [f"{tmp_path / 'own'} holds what was sampled; the same command goes on from there."]


def test_a_continued_adapter_samples_with_it_on(made, questions, tmp_path, start_adapter):
    continued = made(adapter=LoRA(continue_from=str(start_adapter)))
    for recipe, folder in ((made(), "base"), (continued, "adapter")):
        # Whether a pair comes of replies that are mostly cut off is not the question.
        with contextlib.suppress(RecipeError):
            pairs(recipe, to=tmp_path / folder, prompts=questions, samples=2, max_new_tokens=16)
    replies = [(tmp_path / folder / "replies/00000.jsonl").read_text("utf-8") for folder in ("base", "adapter")]
    assert replies[0] != replies[1]


@pytest.mark.slow
def test_a_model_without_a_template_gets_text(tiny, made, questions, tmp_path):
    recipe = made(model=tiny(template=None))
    pairs(recipe, prompts=questions, to=tmp_path / "own", samples=3)
    row = rows_of(tmp_path / "own/train.jsonl")[0]
    assert row["prompt"].startswith("Question") and isinstance(row["chosen"], str)


@pytest.mark.slow
def test_a_reward_model_ranks_as_it_scores(made, questions, tmp_path):
    reward_model = make_reward_model(tmp_path / "reward")
    to = tmp_path / "own"
    pairs(made(reward=RewardModel(str(reward_model))), prompts=questions, to=to, samples=3)
    scorer = Scorer(RewardModel(str(reward_model)))
    for row in rows_of(to / "train.jsonl"):
        sides = [row[side][0]["content"] for side in ("chosen", "rejected")]
        scores = scorer.scores([row["prompt"]] * 2, sides)
        assert scores == pytest.approx([row["chosen_reward"], row["rejected_reward"]], abs=1e-5)
        assert row["chosen_reward"] > row["rejected_reward"]


@pytest.mark.slow
def test_what_cannot_make_pairs_is_one_message(made, questions, tmp_path):
    def refused(words: str, recipe=None, **changes) -> None:
        with pytest.raises(RecipeError, match=words):
            pairs(recipe or made(), **{"prompts": questions, "to": tmp_path / "own", "samples": 2} | changes)

    refused("has no reward", made(reward=None))
    refused("is a judge", made(reward=JudgeEndpoint("http://localhost:1/v1", model="m")))
    refused("needs two replies", samples=1)
    refused("would be one", temperature=0)
    refused("does not exist", prompts="nowhere.jsonl")
    refused(r"max_length=30 leaves \d+ for a reply", made(max_length=30))
    refused("prompts held out gave a pair", made(reward=lambda prompt, _: float("Question 3?" in prompt and len(_))))
    refused("must return a number", made(reward=lambda prompt, completion: None), to=tmp_path / "none")
    refused("none is left to train on", made(reward=lambda prompt, completion: 1.0), to=tmp_path / "equal")
    (tmp_path / "file").write_text("", "utf-8")
    refused("cannot be written", to=tmp_path / "file")


# Rounds


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LoRA moved", "full kept"])
def test_each_round_starts_from_the_policy_before_and_can_be_gone_on_with(made, questions, tmp_path, kind):
    adapter, reference = kind.split()
    recipe = made(adapter=LoRA(r=4) if adapter == "LoRA" else None, learning_rate=1e-3)
    settings = {"prompts": questions, "to": tmp_path / "all", "samples": 3, "reference": reference}
    first, second = rounds(recipe, count=2, **settings)
    assert [each.run.path.parent.name for each in (first, second)] == ["round-1", "round-2"]

    assert second.run.reference["kind"] == ("frozen adapter" if kind == "LoRA moved" else "other model")
    start = second.run.recipe["adapter.continue_from" if adapter == "LoRA" else "model"]["value"]
    assert Path(start) == (first.run.path / "model").resolve()
    assert second.run.reference["fingerprint"] != first.run.reference["fingerprint"] or reference == "kept"
    if reference == "kept":
        assert second.run.recipe["reference"]["value"] == recipe.model
    # Held-out prompts are the same in every round, so that none of them is ever trained on.
    held_out = [rows_of(tmp_path / f"all/round-{number}/pairs/eval.jsonl") for number in (1, 2)]
    trained = [rows_of(tmp_path / f"all/round-{number}/pairs/train.jsonl") for number in (1, 2)]
    asked = [{row["prompt"][0]["content"] for rows in both for row in rows} for both in (held_out, trained)]
    assert not asked[0] & asked[1]

    again = rounds(recipe, count=2, **settings)
    assert [each.run.path for each in again] == [first.run.path, second.run.path]


def test_what_a_round_starts_from_and_is_compared_with(made, tmp_path):
    before = Run(tmp_path)
    model = str(tmp_path.resolve() / "model")
    lora, full = made(), made(adapter=None, revision="main")
    assert _started_from(lora, None, "moved") is lora
    assert _started_from(lora, before, "moved") == lora.evolve(adapter=LoRA(continue_from=model))
    assert _started_from(lora, before, "kept") == lora.evolve(adapter=LoRA(continue_from=model), reference=lora.model)
    assert _started_from(full, before, "moved") == full.evolve("revision", model=model)
    qlora = made(adapter=QLoRA(r=4, double_quant=False))
    assert _started_from(qlora, before, "moved").adapter == QLoRA(continue_from=model, double_quant=False)


def test_rounds_refuse_a_reference_that_no_later_round_could_name(made, questions, tmp_path, start_adapter, tiny):
    settings = {"count": 2, "prompts": questions, "to": tmp_path / "all"}
    with pytest.raises(UsageError, match="names a reference of its own"):
        rounds(made(reference=str(tiny(seed=1))), reference="moved", **settings)
    with pytest.raises(UsageError, match="Merge the adapter"):
        rounds(made(adapter=LoRA(continue_from=str(start_adapter))), reference="kept", **settings)
    with pytest.raises(UsageError, match="has no revision"):
        rounds(made(revision="main"), reference="kept", **settings)
    assert not (tmp_path / "all").exists()


def test_a_recipe_that_makes_its_model_still_can_in_later_rounds():
    recipe = load("quickstart")
    kept = _evolved(recipe, data=Data("elsewhere"))
    assert kept.prepare is recipe.prepare and kept.name == "quickstart"
    moved = _evolved(recipe, data=Data("elsewhere"), model="/a/model", reference="/a/reference")
    assert moved.prepare is None and re.fullmatch(".*quickstart.py", str(moved.source))

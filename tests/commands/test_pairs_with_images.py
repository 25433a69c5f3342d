"""Pairs with images in every verb: trained, stopped and resumed, measured, shown and exported, or refused in a line."""

from __future__ import annotations

import io
import json

import pytest
from making import quiet, short_recipe
from rich.console import Console

from dpo_recipes import RecipeError, check, evaluate, export, preview, train
from dpo_recipes.commands.bench import bench
from dpo_recipes.commands.reference import reference
from dpo_recipes.runs.folder import Run


@pytest.fixture(scope="module")
def recipe(tiny_vision, image_pairs_file):
    return short_recipe(tiny_vision(), image_pairs_file, max_length=200)


def log_of(run: Run) -> list[float]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def run_and_words(recipe, tmp_path_factory):
    words = io.StringIO()
    console = Console(file=words, width=300)
    run = train(recipe, runs=tmp_path_factory.mktemp("vision") / "runs", console=console)
    return run, words.getvalue()


@pytest.mark.slow
def test_a_run_says_what_images_have_decided_and_leaves_a_whole_model(run_and_words):
    run, words = run_and_words
    for sentence in (
        "images in a pair: pairs",
        "+ LoRA of rank 4 on what reads text (",
        "The reference reads the pairs in each step, as TRL precomputes nothing of images.",
        "Each pair is read twice and padded, as in TRL: the pairs have images",
        "No answers are drawn: the held-out prompts have images",
    ):
        assert words.count(sentence) == 1, sentence
    numbers = run.evaluation
    assert numbers["before"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert numbers["after"]["loss"] < numbers["before"]["loss"] and numbers["after"]["pairs"] == 6
    data = json.loads((run.path / "data.json").read_text())
    assert data["train"]["images"] == {"pairs": {"1": 18}, "different": 18}
    assert (run.path / "model" / "processor_config.json").is_file()
    assert "AutoModelForImageTextToText" in (run.path / "model" / "README.md").read_text()
    assert (run.path / "report.html").is_file() and run.samples == []


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_numbers(recipe, run_and_words, tmp_path, monkeypatch):
    from dpo_recipes.training.trainer import RecipeTrainer

    run, _ = run_and_words
    paced = recipe.evolve(trl={**recipe.trl, "save_strategy": "steps", "save_steps": 1})
    step = RecipeTrainer.training_step
    steps = []

    def until_the_third(self, *arguments, **options):
        steps.append(self.state.global_step)
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    monkeypatch.setattr(RecipeTrainer, "training_step", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(paced, runs=tmp_path, console=quiet())
    monkeypatch.setattr(RecipeTrainer, "training_step", step)
    [stopped] = tmp_path.iterdir()
    resumed = train(paced, runs=tmp_path, resume=stopped, console=quiet())
    assert log_of(resumed) == log_of(run)
    assert resumed.evaluation["after"]["logps/chosen"] == run.evaluation["after"]["logps/chosen"]


@pytest.mark.slow
def test_a_finished_run_is_measured_again_and_merged(run_and_words, tmp_path):
    run, _ = run_and_words
    again = evaluate(run, console=quiet(), to=tmp_path / "again")
    for when in ("before", "after"):
        assert again[when]["loss"] == pytest.approx(run.evaluation[when]["loss"], rel=1e-5)
    words = io.StringIO()
    exported = export(run, out=tmp_path / "merged", merged=True, console=Console(file=words, width=300))
    assert "on the texts of the pairs, without their images" in words.getvalue()
    assert exported["in_32_bits"]["mean"] < 1e-6
    assert (tmp_path / "merged" / "processor_config.json").is_file()
    for asked, what in (({"trl": True}, "export --trl"), ({"dial": 0.5}, "export --dial")):
        with pytest.raises(RecipeError, match=f"{what} takes pairs of text alone: .* these have images"):
            export(run, out=tmp_path / "other", **asked, console=quiet())
    with pytest.raises(RecipeError, match="evaluate --dial takes pairs of text alone"):
        evaluate(run, dial=[0.5], console=quiet())


def test_preview_shows_where_an_image_is(recipe):
    out = io.StringIO()
    shown = preview(recipe, count=2, console=Console(file=out, width=200))
    assert [pair["prompt"].count("[image ") for pair in shown["pairs"]] == [1, 1]
    assert "[image 40x24] Question 0" in out.getvalue() and "\ufdd0" not in out.getvalue()
    assert shown["pairs"][0]["prompt_tokens"] > 60  # with those of the image


@pytest.mark.slow
def test_check_plans_tokens_of_images_and_says_what_it_does_not_count(recipe):
    result = check(recipe)
    said = {finding.name: finding.text for finding in result["findings"]}
    assert not [finding for finding in result["findings"] if finding.level in ("fail", "skipped")]
    texts = [finding.text for finding in result["findings"]]
    assert any(text.startswith("Not counted: what the part that reads images needs") for text in texts)
    assert said["answers"].startswith("No answers are drawn")
    assert result["plan"]["trainable"] < 10_000  # of what reads text alone
    lengths = result["data"]["train"]["tokens"]
    assert result["plan"]["tokens"] >= lengths["prompt"]["max"] > 60


def test_verbs_of_text_alone_refuse_images(recipe, tmp_path):
    with pytest.raises(RecipeError, match="bench takes pairs of text alone"):
        bench(recipe, console=quiet())
    with pytest.raises(RecipeError, match="reference log-probabilities are not computed before training"):
        reference(recipe, out=tmp_path / "ref", console=quiet())

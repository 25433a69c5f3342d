"""What is chosen for a device is the same in each verb, told once, written down, and overruled by a word."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from test_resume import quietly, stopped_run

from dpo_recipes import Run, apply, check, compare, evaluate, load, report, show, sweep, train
from dpo_recipes.planning import chosen_settings
from dpo_recipes.training import checkpoints as pace

CHECKPOINTING = "trl.gradient_checkpointing"


@pytest.fixture(scope="module")
def file(tiny, pairs_file, tmp_path_factory) -> Path:
    """A recipe that leaves open what can be chosen."""
    path = tmp_path_factory.mktemp("open") / "mine.py"
    path.write_text(
        "from dpo_recipes import Data, LoRA, Recipe\n\n"
        f"recipe = Recipe(model={str(tiny())!r}, data=Data({str(pairs_file)!r}, eval=0.3), adapter=LoRA(r=4),\n"
        "    learning_rate=0.01, global_batch_size=6, max_length=112, trl={'max_steps': 2})\n"
    )
    return path


def said_by(verb, *given, **options):
    """(what a verb returns, what it prints)."""
    console = Console(file=io.StringIO(), width=200)
    result = verb(*given, **options, console=console)
    return result, console.file.getvalue()


@pytest.fixture(scope="module")
def run_and_words(file) -> tuple[Run, str]:
    return said_by(train, load(file), runs=file.parent / "runs")


def values(run: Run, name: str = "recipe.json") -> dict:
    return json.loads((run.path / name).read_text("utf-8"))


@pytest.mark.slow
def test_a_run_tells_what_it_has_chosen_and_writes_it_down(run_and_words, file):
    run, said = run_and_words
    title, line = said.partition("Chosen for this device")[2].splitlines()[:2]
    assert not title.strip() and line.startswith("trl.gradient_checkpointing=false  activations are kept, and")
    written = values(run)[CHECKPOINTING]
    assert (written["value"], written["origin"]) == (False, "chosen")
    assert values(run, "trl.json")["gradient_checkpointing"] is False
    assert (run.path / "recipe.py").read_text("utf-8") == file.read_text("utf-8")
    # The same in what looks before a run.
    shown = show(load(file))["recipe"][CHECKPOINTING]
    assert shown == written
    finding = next(finding for finding in check(load(file))["findings"] if finding.name == "chosen")
    assert finding.text == f"{CHECKPOINTING}=false ({written['reason']})"
    page = report([run.path])
    assert "chosen: activations are kept, and not computed twice" in Path(page).read_text("utf-8")


@pytest.mark.slow
def test_what_somebody_sets_is_taken_and_nothing_is_told(file, tmp_path):
    recipe = apply(load(file), ["trl.gradient_checkpointing=true", "micro_batch_size=2"])
    run, said = said_by(train, recipe, runs=tmp_path)
    assert "Chosen" not in said
    assert values(run)[CHECKPOINTING] == {"value": True, "origin": "command line"}
    assert values(run, "trl.json")["gradient_checkpointing"] is True
    assert values(run, "trl.json")["per_device_train_batch_size"] == 2
    passed = next(finding for finding in check(recipe)["findings"] if finding.name == "chosen")
    assert (passed.level, passed.text) == ("pass", "the recipe leaves nothing to be chosen for the device")


@pytest.mark.slow
def test_a_run_is_measured_again_with_what_was_chosen_then_and_so_is_one_of_before(run_and_words):
    run, _ = run_and_words
    again, said = said_by(evaluate, run.path)
    assert again["after"]["loss"] == pytest.approx(run.evaluation["after"]["loss"], rel=1e-5)
    assert "Chosen" not in said

    older = {key: entry for key, entry in values(run).items() if entry["origin"] != "chosen"}
    kept = (run.path / "recipe.json").read_text("utf-8")
    (run.path / "recipe.json").write_text(json.dumps(older))
    again, _ = said_by(evaluate, run.path)
    (run.path / "recipe.json").write_text(kept)
    assert again["after"]["loss"] == pytest.approx(run.evaluation["after"]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_sweep_goes_on_where_runs_have_chosen_and_they_differ_by_the_machine(file, tmp_path):
    first, said = said_by(sweep, load(file), ["beta=0.1,0.3"], to=tmp_path)
    assert "Chosen for this device" in said
    again, said = said_by(sweep, load(file), ["beta=0.1,0.3"], to=tmp_path)
    assert again == first and "It is done" in said

    other = train(
        apply(load(file), ["beta=0.1", f"{CHECKPOINTING}=true"]), runs=tmp_path / "other", console=Console(quiet=True)
    )
    found = compare(first["rows"][0]["runs"][0], other.path)["causes"]
    [cause] = [cause for cause in found if cause["name"] == CHECKPOINTING]
    assert (cause["cause"], list(cause["values"])) == ("machine", [False, True])


@pytest.mark.slow
def test_check_chooses_for_the_gpu_that_it_plans_for(file):
    result = check(load(file), gpu="24GB")
    chosen = next(finding.text for finding in result["findings"] if finding.name == "chosen")
    assert f"{CHECKPOINTING}=false (" in chosen and "micro_batch_size=6 (" in chosen
    assert [choice["key"] for choice in result["plan"]["chosen"]] == [CHECKPOINTING, "micro_batch_size"]
    # Ten times less memory than that: a plan decides, and what is planned is what was chosen.
    small = check(load(file), gpu="150MB")
    text = next(finding.text for finding in small["findings"] if finding.name == "chosen")
    assert "is planned to need" in text and small["plan"]["fits"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_what_it_had_chosen_and_in_the_same_order(tiny, file, tmp_path, monkeypatch):
    """Where pairs are padded, and so come by length; on a machine that has less memory by now."""
    monkeypatch.setattr(pace, "MOST_OF_THE_TIME", 1e9)  # a checkpoint after every step
    changes = [f"model={tiny('bloom')}", "trl.max_steps=7", "micro_batch_size=2"]
    recipe = apply(load(file), changes)
    whole, said = quietly(recipe, tmp_path / "whole")
    assert "trl.train_sampling_strategy=random" in said and values(whole)[CHECKPOINTING]["value"] is False
    written = values(stopped_run(recipe, tmp_path / "runs", monkeypatch))

    monkeypatch.setattr(chosen_settings, "device_memory", lambda _: 1)
    resumed, said = quietly(recipe, tmp_path / "runs", resume="last")
    assert "Chosen" not in said and values(resumed) == written
    (weights,) = (whole.path / "model").glob("*.safetensors")
    expected, found = load_file(weights), load_file(resumed.path / "model" / weights.name)
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())

"""`check --pairs`: a file that data.exclude takes, written once, and nothing where the recipe fails."""

from __future__ import annotations

import json

import pytest
from making import make_pairs, recipe_for, write_jsonl

from dpo_recipes import Data, LoRA, check, train
from dpo_recipes.errors import UsageError


@pytest.fixture
def recipe(tiny, tmp_path):
    file = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(60))
    return recipe_for(tiny(), data=Data(str(file), eval=0.1), adapter=LoRA(r=4), learning_rate=1e-3, max_length=112)


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_the_file_names_pairs_that_training_then_leaves_out(recipe, tmp_path):
    from dataclasses import replace

    file = tmp_path / "suspects.jsonl"
    result = check(recipe, pairs=file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert result["pairs"]["named"] == len(lines) and result["pairs"]["scored"] == result["data"]["train"]["kept"]
    assert {why for line in lines for why in line["why"]} == {"label", "displacement"}
    for line in lines:
        assert all(isinstance(line[why], float) for why in line["why"])
        assert line["chosen"] != line["rejected"] and line["prompt"]
    finding = result["findings"][-1]
    assert (finding.level, finding.name) == ("info", "suspect pairs") and f"data.exclude={file}" in finding.text

    rest = train(replace(recipe, data=replace(recipe.data, exclude=str(file))), runs=tmp_path / "runs")
    kept = json.loads((rest.path / "data.json").read_text())["train"]["kept"]
    assert kept == result["data"]["train"]["kept"] - len(lines)

    with pytest.raises(UsageError, match="is there already"):
        check(recipe, pairs=file)


@pytest.mark.usefixtures("made_up_plan")
def test_what_fails_is_to_be_mended_first(recipe, tmp_path):
    from dataclasses import replace

    broken = replace(recipe, data=replace(recipe.data, path=str(tmp_path / "nowhere.jsonl")))
    result = check(broken, pairs=tmp_path / "suspects.jsonl")
    assert result["pairs"] is None and not (tmp_path / "suspects.jsonl").exists()

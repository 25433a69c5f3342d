"""`reference`: the folder that it writes is the one that a run reads."""

from __future__ import annotations

import io
import json
import shutil

import pyarrow.parquet
import pytest
from making import recipe_for
from rich.console import Console

from dpo_recipes import Data, LoRA, RecipeError, apply, check, reference, train
from dpo_recipes.errors import UsageError


@pytest.fixture(scope="module")
def made(tiny, pairs_file):
    """A recipe that takes a few steps, and other values of some of its fields."""

    def build(**changes):
        trl = {"gradient_checkpointing": False, "max_steps": 2}
        data = Data(str(pairs_file), eval=0.25)
        given = {"data": data, "adapter": LoRA(r=4), "max_length": 112, "global_batch_size": 6, "trl": trl}
        return recipe_for(tiny(), **{**given, "learning_rate": 1e-3, **changes})

    return build


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """(the folder, what was returned)."""
    folder = tmp_path_factory.mktemp("out") / "reference"
    return folder, reference(made(), out=folder)


def test_the_folder_holds_every_pair_and_says_whose_numbers_they_are(written, made):
    folder, identity = written
    assert sorted(path.name for path in folder.iterdir()) == ["logps.parquet", "reference.json"]
    assert json.loads((folder / "reference.json").read_text()) == identity
    assert identity["pairs"] == {"train": 18, "eval": 6} and len(identity["fingerprint"]) == 64
    assert (identity["max_length"], identity["ld_alpha"], identity["kind"]) == (112, None, "adapter off")
    rows = pyarrow.parquet.read_table(folder / "logps.parquet").to_pylist()
    assert len(rows) == 24 and all(row["chosen_logps"] < 0 < row["chosen_tokens"] for row in rows)
    assert len({row["row"] for row in rows}) == len({row["pair"] for row in rows}) == 24


def test_the_folder_names_a_model_that_the_recipe_makes_as_the_recipe_s_own(made, tmp_path, tiny):
    def prepare(folder, seed):
        shutil.copytree(tiny(), folder / "model")

    own = made().evolve(model="{prepared}/model", prepare=prepare).from_where(called="mine")
    assert reference(own, out=tmp_path / "reference")["model"] == "mine's own model"


@pytest.mark.slow
def test_a_run_reads_it_and_says_what_it_looked_at(written, made, tmp_path):
    folder, _ = written
    said = io.StringIO()
    recipe = apply(made(), [f"data.reference={folder}"])
    run = train(recipe, runs=tmp_path, console=Console(file=said, width=300))
    assert f"Reference log-probabilities of train pairs: read from {folder}, where 8 random pairs" in said.getvalue()
    assert run.reference["log_probabilities"]["train"].endswith("for the 12 of 18 pairs that the run reads")
    assert run.evaluation["before"]["rewards/margins"] == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("made_up_plan")
def test_check_knows_which_pairs_it_has(written, made):
    folder, _ = written
    findings = {f.name: f for f in check(apply(made(), [f"data.reference={folder}"]))["findings"]}
    assert findings["reference"].level == "pass"
    findings = {f.name: f for f in check(apply(made(max_length=80), [f"data.reference={folder}"]))["findings"]}
    assert findings["reference"].level == "fail" and "cut elsewhere" in findings["reference"].text


def test_what_has_no_numbers_to_keep_is_refused(made, written, tmp_path):
    with pytest.raises(UsageError, match="is there already. Remove it, or name another: --out FOLDER"):
        reference(made(), out=written[0])
    with pytest.raises(UsageError, match="is what this would write"):
        reference(made(data=Data("d", reference="elsewhere")), out=tmp_path / "out")
    with pytest.raises(UsageError, match="nothing to be kept"):
        reference(made(adapter=None, trl={"sync_ref_model": True}), out=tmp_path / "out")
    with pytest.raises(RecipeError, match="data.reference=nowhere: nowhere/reference.json cannot be read"):
        train(made(data=Data(made().data.path, reference="nowhere")), runs=tmp_path)

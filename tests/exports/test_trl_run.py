"""`export --trl`: the script and the YAML train to the losses of our own run, step by step."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from making import CHATML, quiet, short_recipe, train_in

from dpo_recipes import Data, LoRA, QLoRA, RecipeError, Run, export
from dpo_recipes.errors import UsageError
from dpo_recipes.exports import trl_run
from dpo_recipes.recipe.recipe import Recipe

TOLERANCE = 1e-4  # of the loss of a step: nats, and the sums come in another order where each pair is read twice


def exported(what, folder: Path, **values) -> dict:
    return export(what, trl=True, out=folder, console=quiet(), **values)


def losses_of_script(folder: Path) -> list[float]:
    trainer = runpy.run_path(str(folder / "train_dpo.py"), run_name="__main__")["trainer"]
    return losses_of(trainer)


def losses_of(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def losses_of_yaml(folder: Path, monkeypatch) -> list[float]:
    """Of `trl dpo --config`, in this process."""
    from trl import DPOTrainer
    from trl.scripts import dpo

    trainers = []
    made = DPOTrainer.__init__

    def remember(self, *args, **kwargs):
        made(self, *args, **kwargs)
        trainers.append(self)

    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(DPOTrainer, "__init__", remember)
        patch.setattr(sys, "argv", ["dpo", "--config", "dpo.yaml"])
        dpo.main(*dpo.make_parser().parse_args_and_config(fail_with_unknown_args=True))
    return losses_of(trainers[0])


def losses_of_run(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics if "loss" in row]


def compared(recipe: Recipe, folder: Path) -> tuple[Run, dict]:
    """(the run of a recipe, trained; its export), and nothing of the script's training left in the log."""
    run = train_in(folder, recipe)
    return run, exported(run, folder / "plain")


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("adapter", [LoRA(r=4, target_modules=["q_proj"]), None], ids=["one module", "full"])
def test_script_and_yaml_train_to_our_losses(adapter, tiny, pairs_file, tmp_path, monkeypatch):
    recipe = short_recipe(tiny(), pairs_file, adapter=adapter, learning_rate=0.01, micro_batch_size=3)
    run, result = compared(recipe, tmp_path)
    ours = losses_of_run(run)
    assert len(ours) == 3 and abs(ours[-1] - ours[0]) > 10 * TOLERANCE  # it learns, so that equal losses say something
    assert losses_of_script(tmp_path / "plain") == pytest.approx(ours, abs=TOLERANCE)
    assert losses_of_yaml(tmp_path / "plain", monkeypatch) == pytest.approx(ours, abs=TOLERANCE)
    assert result["why_no_yaml"] is None and "dpo.yaml" in result["files"]
    assert (tmp_path / "plain" / "model" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("kind", ["other reference", "continued", "template and mix of losses", "4 bits"])
def test_what_only_a_script_can_say(kind, tiny, pairs_file, start_adapter, tmp_path):
    changes: dict = {"learning_rate": 0.01}
    if kind == "other reference":
        changes |= {"reference": str(tiny(seed=1))}
    elif kind == "continued":
        changes |= {"adapter": LoRA(continue_from=str(start_adapter))}
    elif kind == "4 bits":
        # In bf16 the same pair is rounded otherwise in another batch, and where it is read once: so both are the same.
        changes |= {"adapter": QLoRA(r=4), "pair_sharing": "off"}
        options = {"gradient_checkpointing": False, "max_steps": 3, "precompute_ref_log_probs": False}
        changes |= {"trl": options}
    else:
        template = CHATML.replace("<|im_start|>", "<|im_start|> ")
        changes |= {"data": Data(str(pairs_file), eval=0.25, chat_template=template), "micro_batch_size": 2}
        changes |= {"loss": {"sigmoid": 1.0, "sft": 0.2}}
    run, result = compared(short_recipe(tiny(), pairs_file, **changes), tmp_path)
    assert losses_of_script(tmp_path / "plain") == pytest.approx(losses_of_run(run), abs=TOLERANCE)
    assert result["why_no_yaml"] in (tmp_path / "plain" / "README.md").read_text()
    assert not (tmp_path / "plain" / "dpo.yaml").exists()


def test_of_a_recipe_that_has_not_been_run(tiny, pairs_file, tmp_path):
    recipe = short_recipe(tiny(), pairs_file)
    result = exported(recipe, tmp_path / "plain", changes=["beta=0.2"])
    values = yaml.safe_load((tmp_path / "plain" / "dpo.yaml").read_text())
    assert values["beta"] == 0.2 and values["max_steps"] == 3 and values["lora_r"] == 4 and values["use_peft"]
    assert values["learning_rate"] == 1e-3 and values["per_device_train_batch_size"] == 3
    assert result["run"] is None and result == json.loads((tmp_path / "plain" / "export.json").read_text())
    rows = (tmp_path / "plain" / "pairs" / "train.jsonl").read_text().splitlines()
    assert len(rows) == result["pairs"]["train"] == 18
    assert set(json.loads(rows[0])) == {"prompt", "chosen", "rejected"}
    script = (tmp_path / "plain" / "train_dpo.py").read_text()
    assert "dpo_recipes" not in script and "beta=0.2" in script and "disable_tqdm" not in script
    compile(script, "train_dpo.py", "exec")
    page = (tmp_path / "plain" / "README.md").read_text()
    assert "trl dpo --config dpo.yaml" in page and "read twice and padded: the same losses" in page


def test_the_batch_is_that_of_one_process_and_all_else_that_of_the_run(tmp_path):
    (tmp_path / "trl.json").write_text(json.dumps({"bf16": True, "gradient_accumulation_steps": 1, "output_dir": "x"}))
    arguments = {"bf16": False, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "output_dir": "y"}
    assert trl_run._of_the_run(arguments, Run(tmp_path)) == {"bf16": True}


def test_what_trl_cannot_say_is_refused(tiny, pairs_file, tmp_path, finished_pairs):
    with pytest.raises(RecipeError, match="loss=cdpo is no loss of TRL's"):
        exported(short_recipe(tiny(), pairs_file, loss="cdpo"), tmp_path / "x")
    with pytest.raises(RecipeError, match="The pairs have weights"):
        exported(short_recipe(tiny(), finished_pairs), tmp_path / "x")
    streaming = short_recipe(tiny(), data=Data(str(pairs_file), eval=str(pairs_file), streaming=True))
    with pytest.raises(RecipeError, match="data.streaming=false"):
        exported(streaming, tmp_path / "x")
    with pytest.raises(UsageError, match="There is no recipe 'no_such'"):
        exported("no_such", tmp_path / "x")
    with pytest.raises(UsageError, match="has no model to export"):
        export(short_recipe(tiny(), pairs_file), merged=True, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.fixture
def finished_pairs(tmp_path) -> Path:
    """Pairs with weights of their own."""
    from making import make_pairs, write_jsonl

    rows = [{**row, "weight": 1 + index % 2} for index, row in enumerate(make_pairs())]
    return write_jsonl(tmp_path / "weighted.jsonl", rows)


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_pairs_that_have_changed_since_are_refused(tiny, pairs_file, tmp_path):
    own = tmp_path / "pairs.jsonl"
    own.write_bytes(pairs_file.read_bytes())
    run = train_in(tmp_path, short_recipe(tiny(), own))
    rows = own.read_text().splitlines()
    own.write_text("\n".join(rows[:-4]) + "\n")
    with pytest.raises(RecipeError, match="gives other pairs today than .* now, 18 then"):
        exported(run, tmp_path / "x")
    assert torch.get_default_dtype() == torch.float32 and not (tmp_path / "x").exists()

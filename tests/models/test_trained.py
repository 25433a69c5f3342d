"""The model of a finished run; that it is the one that was trained is asserted where runs are made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from dpo_recipes import RecipeError
from dpo_recipes.models.trained import load_trained


def test_a_run_that_has_not_finished_has_no_model_to_load(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(RecipeError, match="model holds no model: the run has not finished"):
        load_trained(tmp_path / "model", {})


OF_AN_ADAPTER = {
    "adapter": {"value": "LoRA"},
    "trust_remote_code": {"value": False},
    "revision": {"value": None},
    "dtype": {"value": "float32"},
}
OF_A_WHOLE_MODEL = OF_AN_ADAPTER | {"adapter": {"value": None}}


class Damage(NamedTuple):
    """A file of a run's model, what is left of it, and what the message says."""

    name: str
    left: str | None
    says: str


DAMAGED_ADAPTERS = [
    Damage("adapter_model.safetensors", "hello" * 9, "adapter_model.safetensors is damaged"),
    Damage("adapter_model.safetensors", None, "adapter_model.safetensors is missing .* Download or copy it again"),
    Damage("adapter_config.json", '{"peft_type": ', "adapter_config.json is no valid JSON"),
    Damage("adapter_config.json", "[]", "adapter_config.json must hold a JSON object"),
    Damage("adapter_config.json", "{}", "only a LORA adapter"),
    Damage("adapter_config.json", '{"peft_type": "LORA"}', "does not name the model that it was made on"),
    Damage("adapter_config.json", None, "adapter_config.json is missing"),
    Damage("tokenizer.json", '{"model": ', "tokenizer.json is no valid JSON"),
]
DAMAGED_MODELS = [
    Damage("model.safetensors", "hello" * 9, "model.safetensors is damaged"),
    Damage("model.safetensors", None, "holds no weights"),
    Damage("config.json", '{"model_type": ', "config.json is no valid JSON"),
    Damage("config.json", None, "holds no config.json"),
    Damage("tokenizer.json", "", "tokenizer.json is no valid JSON"),
]


def break_file(folder: Path, damage: Damage) -> None:
    if damage.left is None:
        (folder / damage.name).unlink()
    else:
        (folder / damage.name).write_text(damage.left)


@pytest.mark.parametrize("damage", DAMAGED_ADAPTERS, ids=lambda damage: f"{damage.name}, {damage.says:.20}")
def test_a_damaged_adapter_of_a_run_is_named_by_its_file(tiny, start_adapter, tmp_path, damage):
    folder = Path(shutil.copytree(start_adapter, tmp_path / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny() / name, folder)
    load_trained(folder, OF_AN_ADAPTER)
    break_file(folder, damage)
    with pytest.raises(RecipeError, match=damage.says):
        load_trained(folder, OF_AN_ADAPTER)


@pytest.mark.parametrize("damage", DAMAGED_MODELS, ids=lambda damage: f"{damage.name}, {damage.says:.20}")
def test_a_damaged_model_of_a_run_is_named_by_its_file(tiny, tmp_path, damage):
    folder = Path(shutil.copytree(tiny(), tmp_path / "model"))
    break_file(folder, damage)
    with pytest.raises(RecipeError, match=damage.says):
        load_trained(folder, OF_A_WHOLE_MODEL)


def test_an_adapter_whose_base_has_moved_says_where_to_write_its_place(tiny, start_adapter, tmp_path):
    folder = Path(shutil.copytree(start_adapter, tmp_path / "model"))
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny()), "/no/such/base"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny() / name, folder)
    with pytest.raises(RecipeError, match="trained on /no/such/base, and there is no such folder"):
        load_trained(folder, OF_AN_ADAPTER)

"""The hash of a model's files of weights: the same for the same numbers, another for any other."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dpo_recipes import RecipeError
from dpo_recipes.models import weight_hash
from dpo_recipes.models.weight_hash import hash_of_weights, known_by, refuse_changed_weights

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny(), tmp_path / "model"))


def write_anew(folder: Path, change) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "by": "a test"})


def test_it_is_that_of_each_tensors_name_type_shape_and_bytes(folder):
    parts = []
    for name, tensor in sorted(load_file(folder / WEIGHTS).items()):
        digest = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        parts.append([f"{name} F32 {list(tensor.shape)}", digest])
    assert hash_of_weights(folder) == hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def test_how_many_files_hold_them_and_what_else_is_in_these_does_not_matter(folder):
    whole = hash_of_weights(folder)
    write_anew(folder, lambda tensors: None)
    assert hash_of_weights(folder) == whole

    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    (folder / WEIGHTS).unlink()
    for number, some in enumerate([names[::2], names[1::2]], start=1):
        save_file({name: tensors[name] for name in some}, folder / f"model-0000{number}-of-00002.safetensors")
    assert hash_of_weights(folder) == whole


def next_number(tensors: dict[str, torch.Tensor]) -> None:
    first = tensors["model.norm.weight"]
    first[-1] = torch.nextafter(first[-1], torch.tensor(2.0))


def in_16_bits(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()


def in_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][None]


def by_another_name(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.bias"] = tensors.pop("model.norm.weight")


@pytest.mark.parametrize("change", [next_number, in_16_bits, in_another_shape, by_another_name])
def test_any_other_number_type_shape_or_name_is_seen(folder, change):
    before = hash_of_weights(folder)
    write_anew(folder, change)
    assert hash_of_weights(folder) != before


def test_of_very_large_weights_both_ends_of_each_tensor_are_read(folder, monkeypatch):
    numbers = 4
    monkeypatch.setattr(weight_hash, "END", 4 * numbers)
    monkeypatch.setattr(weight_hash, "LARGEST_WHOLE", 0)
    before = hash_of_weights(folder)
    hashes = {before}
    for place in (0, numbers - 1, -numbers, -1):
        write_anew(folder, lambda tensors, place=place: tensors["model.norm.weight"][place].add_(1))
        hashes.add(hash_of_weights(folder))
    assert len(hashes) == 5
    seen = hash_of_weights(folder)
    write_anew(folder, lambda tensors: tensors["model.norm.weight"][numbers].add_(1))
    assert hash_of_weights(folder) == seen  # in the midst


def test_an_adapter_has_one_and_a_folder_without_weights_none(start_adapter, tmp_path):
    assert hash_of_weights(start_adapter) is not None
    assert hash_of_weights(tmp_path) is None
    assert known_by(str(tmp_path)) is None and known_by("org/never-loaded") is None


def test_weights_in_another_form_count_by_their_bytes(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"one")
    one = hash_of_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"two")
    assert None is not one != hash_of_weights(folder)


@pytest.fixture
def on_the_hub(folder, tmp_path, monkeypatch) -> Path:
    """The copy of org/tiny in the hub's cache, at commit 111."""
    repository = tmp_path / "cache" / "models--org--tiny"
    shutil.copytree(folder, repository / "snapshots" / "111")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("111")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository


def test_a_model_of_the_hub_is_known_by_its_copy_and_its_commit(on_the_hub, folder):
    assert known_by("org/tiny") == {"sha256": hash_of_weights(folder), "commit": "111"}
    assert known_by(str(folder)) == {"sha256": hash_of_weights(folder), "commit": None}


def test_another_commit_is_named_where_its_weights_are_others_and_else_taken(on_the_hub):
    then = known_by("org/tiny")
    newer = shutil.copytree(on_the_hub / "snapshots" / "111", on_the_hub / "snapshots" / "222")
    (on_the_hub / "refs" / "main").write_text("222")
    refuse_changed_weights("model", "org/tiny", None, then, Path("runs/one"))  # such as one of the model card

    write_anew(newer, next_number)
    with pytest.raises(RecipeError, match="'org/tiny' has other weights than when runs/one was trained") as refused:
        refuse_changed_weights("model", "org/tiny", None, then, Path("runs/one"))
    assert "It was commit 111 of the hub, and is 222 now." in str(refused.value)
    refuse_changed_weights("model", "org/tiny", "111", then, Path("runs/one"))


def test_what_is_not_known_is_not_refused(folder, tmp_path):
    refuse_changed_weights("model", str(folder), None, None, Path("runs/one"))
    refuse_changed_weights("model", str(tmp_path), None, known_by(str(folder)), Path("runs/one"))

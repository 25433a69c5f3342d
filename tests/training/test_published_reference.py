"""Published log-probabilities: read where they are of these pairs and this reference, refused where of any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from making import make_pairs
from making_trainers import HELD_OUT, PAIRS, build, logps

from dpo_recipes import Data, RecipeError
from dpo_recipes.training.published_reference import IDENTITY, NUMBERS, VERIFIED, Published, write

pytestmark = pytest.mark.usefixtures("cache")

IDENTITY_OF_TINY = {"model": "tiny", "data": "pairs.jsonl", "kind": "adapter off", "max_length": 96, "ld_alpha": None}


def publish(trainer, folder: Path, max_length: int | None = 96, **identity) -> str:
    splits = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    write(folder, {**IDENTITY_OF_TINY, "max_length": max_length, **identity}, splits, max_length)
    return str(folder)


@pytest.fixture(scope="module")
def published(tiny, tmp_path_factory) -> tuple[str, list[list[float]]]:
    """(the folder of all pairs, the numbers in it)."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        trainer = build(tiny(), out=folder / "out")
    return publish(trainer, folder / "reference"), logps(trainer)


def reading(tiny, folder: str, *arguments, **changes):
    return build(tiny(), *arguments, data=Data("unused", reference=folder), **changes)


@pytest.mark.slow
def test_what_is_read_is_what_was_written_and_eight_pairs_of_each_split_are_computed_again(tiny, published, forwards):
    folder, numbers = published
    trainer = reading(tiny, folder, beta=0.5, learning_rate=1e-5)
    assert logps(trainer) == numbers and sum(forwards) == 2 * VERIFIED
    for split in ("train", "eval"):
        words = trainer.reference_cache[split]
        assert words.startswith(f"read from {folder}, where 8 random pairs differ by at most ")
        assert words.endswith("(0.001 is rounding)")


def test_pairs_are_found_in_any_order_and_split_and_under_a_max_length_that_cuts_none(tiny, published):
    folder, numbers = published
    trainer = reading(tiny, folder, [*HELD_OUT, *PAIRS[20:4:-1]], PAIRS[:4], max_length=None)
    found = logps(trainer)
    assert found[0] == numbers[2] + numbers[0][20:4:-1] and found[2] == numbers[0][:4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 60}, "computed with max_length=96, and here it is 60: .* of 24 train pairs are cut elsewhere"),
        ({"trl": {"ld_alpha": 0.5}}, "computed with ld_alpha=None, and here it is 0.5: the sums are others"),
    ],
)
def test_sums_of_other_tokens_are_refused(tiny, published, changes, message):
    with pytest.raises(RecipeError, match=message):
        reading(tiny, published[0], **changes)


def test_pairs_that_are_not_in_it_are_refused(tiny, published):
    with pytest.raises(RecipeError, match="lacks 2 of 26 train pairs, the first of them row 24. Delete data.reference"):
        reading(tiny, published[0], [*PAIRS, *make_pairs(2, seed=77)])
    with pytest.raises(RecipeError, match="has none of the 24 train pairs among its 34: their token ids are others"):
        reading(tiny, published[0], make_pairs(24, seed=78))


@pytest.mark.slow
def test_another_reference_is_refused_by_what_it_gives(tiny, published):
    other = build(tiny(seed=1))
    assert logps(other) != published[1]
    with pytest.raises(
        RecipeError, match="is of another reference: of 8 random pairs, one differs by .* nats per token"
    ):
        build(tiny(seed=1), data=Data("unused", reference=published[0]))


@pytest.mark.slow
def test_numbers_computed_in_16_bits_are_believed_as_far_as_16_bits_reach(tiny, tmp_path):
    trainer = build(tiny())
    tokens = np.array([len(ids) for ids in trainer.train_dataset["chosen_ids"]])
    shifted = np.array(trainer.train_dataset["ref_chosen_logps"]) + 0.02 * tokens
    pairs = trainer.train_dataset.remove_columns("ref_chosen_logps").add_column("ref_chosen_logps", shifted.tolist())
    trainer.train_dataset = pairs
    with pytest.raises(RecipeError, match="0.001 is rounding"):
        reading(tiny, publish(trainer, tmp_path / "exact"))
    reading(tiny, publish(trainer, tmp_path / "rounded", half=True))


def test_a_folder_that_is_none_or_damaged_is_one_message(published, tmp_path):
    with pytest.raises(RecipeError, match="data.reference=nowhere: nowhere/reference.json cannot be read"):
        Published("nowhere")
    for name in (IDENTITY, NUMBERS):
        (tmp_path / name).write_bytes((Path(published[0]) / name).read_bytes())
    (tmp_path / NUMBERS).write_bytes((tmp_path / NUMBERS).read_bytes()[:-1])
    with pytest.raises(RecipeError, match="logps.parquet is damaged"):
        Published(str(tmp_path))
    (tmp_path / IDENTITY).write_text("{", encoding="utf-8")
    with pytest.raises(RecipeError, match="reference.json is damaged"):
        Published(str(tmp_path))
    (tmp_path / IDENTITY).write_text(json.dumps({"format": 9}), encoding="utf-8")
    with pytest.raises(RecipeError, match="has no format=1"):
        Published(str(tmp_path))


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("in the way")
    columns = {"prompt_ids": [[1]], "chosen_ids": [[2]], "rejected_ids": [[3]]}
    pairs = Dataset.from_dict({**columns, "ref_chosen_logps": [-1.0], "ref_rejected_logps": [-2.0]})
    with pytest.raises(RecipeError, match="cannot be written: Not a directory. Choose another place"):
        write(tmp_path / "file" / "reference", {}, {"train": pairs}, None)

"""The reference cache: what is known must be right, be found whenever it is the same, and never when it is not."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from making import make_pairs
from making_trainers import HELD_OUT, PAIRS, build, logps
from peft import get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedConfig

from dpo_recipes import LoRA, QLoRA
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.training import reference_cache
from dpo_recipes.training import trainer as ours
from dpo_recipes.training.reference_cache import Entries

RECHECKED = reference_cache.RECHECKED
HIT = {"train": "hit", "eval": "hit"}

pytestmark = pytest.mark.usefixtures("cache")


def files(cache) -> list[Path]:
    return sorted(cache.glob("*/*.bin"), key=lambda path: path.stat().st_size)


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(r=4), None])
def test_computed_and_known_are_what_bare_trl_computes_to_the_bit(tiny, adapter, forwards):
    bare = build(tiny(), adapter=adapter, cls=ours.DPOTrainer)
    states = [torch.get_rng_state()]
    forwards.clear()
    for how, pairs in (("computed", 34), ("hit", 2 * RECHECKED)):
        mine = build(tiny(), adapter=adapter)
        states.append(torch.get_rng_state())
        assert mine.reference_cache == {"train": how, "eval": how} and sum(forwards) == pairs
        assert logps(mine) == logps(bare)
        assert str(mine.train_dataset.features["ref_chosen_logps"].dtype) == "float32"
        assert mine.train_dataset.column_names == bare.train_dataset.column_names
        forwards.clear()
    assert all(state.equal(states[0]) for state in states)  # what is drawn later is the same, known or not


@pytest.mark.slow
def test_a_run_on_known_numbers_goes_as_the_one_that_computed_them(tiny):
    losses = []
    for _ in range(2):
        trainer = build(tiny(), adapter=None)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert trainer.reference_cache == HIT and len(losses[0]) == 4 and losses[0] == losses[1]


def test_where_nothing_is_computed_beforehand_nothing_is_said(tiny):
    trainer = build(tiny(), trl={"precompute_ref_log_probs": False})
    assert trainer.reference_cache == {} and trainer.reference_in_words() == ""


def test_how_the_numbers_came_about_is_said_in_words(tiny):
    trainer = build(tiny(), train=PAIRS[:8], held_out=PAIRS[8:12])
    assert trainer.reference_in_words() == "Reference log-probabilities of train and eval pairs: computed."
    trainer.reference_pass.how_of_split = {"train": "computed 5 of 8", "eval": "hit"}
    said = "Reference log-probabilities of train pairs: computed 5 of 8. Of eval pairs: found in the cache."
    assert trainer.reference_in_words() == said


# --------------------------------------------------------------------------------------------------- part of an epoch

HALF_AN_EPOCH = {
    "steps": {"trl": {"max_steps": 2}},
    "accumulated": {"trl": {"max_steps": 2}, "micro_batch_size": 2},
    "an epoch's share": {"trl": {"max_steps": None}, "num_train_epochs": 0.5},
    "all weights": {"trl": {"max_steps": 2}, "adapter": None, "pair_sharing": "require"},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", HALF_AN_EPOCH.values(), ids=HALF_AN_EPOCH)
def test_of_a_part_of_an_epoch_the_reference_is_computed_for_the_pairs_that_are_read(tiny, forwards, changes):
    """Every other pair has no number, which a loss would show: that the run goes to its end is the test."""
    trainer = build(tiny(), **changes)
    assert trainer.reference_cache["train"].endswith("for the 16 of 24 pairs that the run reads")
    known = np.isfinite(trainer.train_dataset.with_format("numpy")["ref_chosen_logps"][:])
    assert known.sum() == 16
    trainer.train()
    assert trainer.state.global_step == 2 and np.isfinite(trainer.state.log_history[0]["loss"])


@pytest.mark.slow
def test_pairs_without_a_reference_are_never_trained_on(tiny):
    trainer = build(tiny(), trl={"max_steps": 1})
    trainer.args.max_steps = 3
    with pytest.raises(RuntimeError, match="pairs other than those that it has a reference for"):
        trainer.train()


def test_where_the_order_is_not_known_beforehand_all_pairs_are_computed(tiny, forwards):
    trainer = build(tiny(), trl={"max_steps": 2, "accelerator_config": {"use_seedable_sampler": False}})
    assert trainer.reference_cache["train"] == "computed" and sum(forwards) == 24 + 10


# ---------------------------------------------------------------------------------------------------- hits and misses


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.5},
        {"loss": "ipo"},
        {"learning_rate": 1e-5},
        {"seed": 7},
        {"num_train_epochs": 3},
        {"out": "elsewhere"},
        {"adapter": LoRA(r=16, alpha=3)},
        {"adapter": LoRA(r=4, use_dora=True)},
        {"adapter": LoRA(r=4, target_modules=["q_proj"])},
        {"adapter": None},
        {"micro_batch_size": 1},
    ],
    ids=str,
)
def test_a_change_that_leaves_the_reference_alone_hits(tiny, tmp_path, forwards, changes):
    first = build(tiny())
    forwards.clear()
    out = tmp_path / changes.pop("out", "runs")
    second = build(tiny(), out=out, **changes)
    assert second.reference_cache == HIT and sum(forwards) == 2 * RECHECKED
    assert logps(second) == logps(first)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["moved", "sharded"])
def test_the_same_weights_from_elsewhere_hit(tiny, tmp_path, how):
    build(tiny())
    shutil.copytree(tiny(), tmp_path / "copy")
    if how == "sharded":
        (tmp_path / "copy" / "model.safetensors").unlink()
        AutoModelForCausalLM.from_pretrained(tiny()).save_pretrained(tmp_path / "copy", max_shard_size="50KB")
        assert len(list((tmp_path / "copy").glob("model-*"))) > 1
    assert build(tmp_path / "copy").reference_cache == HIT


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": 64},
        {"max_length": None},
        {"options": {"truncation_mode": "keep_end"}},
        {"trl": {"ld_alpha": 0.5}},
        {"dtype": "bfloat16"},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
@pytest.mark.slow
def test_a_change_of_the_reference_misses(tiny, forwards, changes):
    build(tiny())
    forwards.clear()
    trainer = build(tiny(), **changes)
    assert trainer.reference_cache == {"train": "computed", "eval": "computed"}
    assert sum(forwards) == len(trainer.train_dataset) + len(trainer.eval_dataset)
    assert build(tiny()).reference_cache == HIT  # and both are kept


@pytest.mark.slow
def test_other_weights_or_another_config_miss(tiny, tmp_path):
    build(tiny())
    assert build(tiny(seed=1)).reference_cache["train"] == "computed"
    shutil.copytree(tiny(), tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 99.0  # in no tensor that is saved
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert build(tmp_path / "copy").reference_cache["train"] == "computed"


@pytest.mark.slow
def test_other_pairs_miss_and_known_ones_are_found_in_any_order_subset_and_split(tiny, forwards):
    first = build(tiny())
    assert build(tiny(), make_pairs(24, seed=5)).reference_cache["train"] == "computed"
    forwards.clear()
    mixed = [*PAIRS[20:4:-1], *HELD_OUT[:3], *make_pairs(5, seed=6)]
    second = build(tiny(), mixed, PAIRS[:4])
    assert second.reference_cache == {"train": "computed 5 of 24", "eval": "hit"}
    assert sum(forwards) == 5 + RECHECKED + 4
    old, new = logps(first), logps(second)
    assert new[0][:19] == old[0][20:4:-1] + old[2][:3] and new[2] == old[0][:4]
    assert build(tiny(), mixed, PAIRS[:4]).reference_cache == HIT


@pytest.mark.slow
def test_as_many_new_and_rechecked_pairs_as_there_are_pairs_do_not_get_mixed_up(tiny, cache):
    build(tiny(), PAIRS[:RECHECKED])
    second = build(tiny(), PAIRS[: 3 * RECHECKED])
    assert second.reference_cache["train"] == "computed 16 of 24"
    shutil.rmtree(cache)
    assert logps(second)[0] == pytest.approx(logps(build(tiny(), PAIRS[: 3 * RECHECKED]))[0], rel=1e-5)


@pytest.mark.slow
def test_each_of_the_same_pairs_keeps_its_own_number(tiny):
    rows = [PAIRS[0], *PAIRS[:5], PAIRS[0]]
    assert logps(build(tiny(), rows)) == logps(build(tiny(), rows))
    assert len(set(reference_cache.row_keys(build(tiny(), rows).train_dataset)[0])) == 7


def test_the_key_of_a_row_is_its_tokens_and_where_the_parts_end():
    def key(prompt, chosen, rejected, kind="int32"):
        row = dict(zip(reference_cache.IDS, (prompt, chosen, rejected), strict=True))
        columns = {name: np.array(ids, kind) for name, ids in row.items()}
        return reference_cache.row_keys(Dataset.from_list([columns]))[0][0]

    assert key([1, 2], [3], [4]) == key([1, 2], [3], [4], "int64")
    others = [([1], [2, 3], [4]), ([1, 2], [3, 4], []), ([1, 2], [4], [3]), ([1, 2], [3], [5])]
    assert len({key([1, 2], [3], [4]), *(key(*other) for other in others)}) == 5


# ------------------------------------------------------------------------------------------------ who the reference is


@pytest.mark.slow
def test_a_4bit_base_hits_under_another_rank_and_misses_where_it_is_quantised_otherwise(tiny):
    first = build(tiny(), adapter=QLoRA(r=4))
    second = build(tiny(), adapter=QLoRA(r=8), beta=0.3, seed=5)
    assert second.reference_cache == HIT and logps(second) == logps(first)
    assert build(tiny(), adapter=QLoRA(r=4, double_quant=False)).reference_cache["train"] == "computed"
    assert build(tiny(), adapter=LoRA(r=4), dtype="bfloat16").reference_cache["train"] == "computed"


def test_the_scales_of_4bit_weights_count():
    from bitsandbytes.nn import Linear4bit

    class Tiny(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.config = PreTrainedConfig()
            self.layer = Linear4bit(64, 64, bias=False)
            self.layer.weight.data = factor * torch.arange(64.0 * 64).reshape(64, 64).sin()
            self.layer.to("cpu")

    one, same, double = (Tiny(factor) for factor in (1, 1, 2))
    assert torch.equal(one.layer.weight.data, double.layer.weight.data)  # the 4-bit numbers alone are the same
    assert reference_cache.fingerprint(one) == reference_cache.fingerprint(same) != reference_cache.fingerprint(double)


def adapter_folder(tiny, where, seed, **changes) -> str:
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny()), peft_config(LoRA(r=4)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(where)
    path = where / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(where)


@pytest.mark.slow
def test_the_frozen_copy_of_a_continued_adapter_belongs_to_the_reference(tiny, tmp_path):
    base = build(tiny())
    start = adapter_folder(tiny, tmp_path / "a", 0)
    first = build(tiny(), adapter=LoRA(continue_from=start))
    assert first.reference_cache["train"] == "computed" and logps(first) != logps(base)
    again = adapter_folder(tiny, tmp_path / "same", 0, base_model_name_or_path="elsewhere")
    same = build(tiny(), adapter=LoRA(continue_from=again), beta=0.4, seed=3)
    assert same.reference_cache == HIT and logps(same) == logps(first)
    for other in (adapter_folder(tiny, tmp_path / "b", 1), adapter_folder(tiny, tmp_path / "c", 0, lora_alpha=1)):
        assert build(tiny(), adapter=LoRA(continue_from=other)).reference_cache["train"] == "computed"


@pytest.mark.slow
def test_another_model_as_the_reference_is_the_key_and_the_policy_is_not(tiny):
    other = str(tiny(seed=7))
    first = build(tiny(), reference=other)
    assert first.reference_cache["train"] == "computed"
    second = build(tiny(seed=3), reference=other, adapter=None)
    assert second.reference_cache == HIT and logps(second) == logps(first)
    assert build(tiny(), reference=str(tiny(seed=8))).reference_cache["train"] == "computed"
    assert build(tiny(seed=7)).reference_cache == HIT  # where it is the start, it is the same model


@pytest.mark.slow
def test_training_does_not_change_the_fingerprint_under_an_adapter(tiny):
    trainer = build(tiny())
    before = trainer.fingerprint()
    trainer.train()
    assert reference_cache.fingerprint(trainer.model, "default") == before == trainer.fingerprint()
    assert reference_cache.fingerprint(trainer.model) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_number_of_the_weights_counts(tiny, dtype):
    model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=dtype)
    first = reference_cache.fingerprint(model)
    for name, parameter in model.named_parameters():
        kept = parameter.data.clone()
        parameter.data.view(-1)[-1] += 1
        assert reference_cache.fingerprint(model) != first, name
        parameter.data = kept.mT.contiguous().mT if kept.dim() > 1 else kept  # how it lies in memory does not
    assert reference_cache.fingerprint(model) == first


# ------------------------------------------------------------------------------------------------ files, and what harms


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "foreign":
        path.with_name("notes.bin").write_text("not an entry")
        path.with_name("folder.bin").mkdir()
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": data[:-5], "half": data[: 28 * 5], "flipped": data[:-1] + b"\0"}[how])


ONE_QUICK_WAY = "cut"
OTHER_WAYS = ["empty", "half", "flipped", "foreign"]


@pytest.mark.parametrize("how", [ONE_QUICK_WAY, *(pytest.param(how, marks=pytest.mark.slow) for how in OTHER_WAYS)])
def test_a_damaged_file_is_removed_and_its_pairs_are_computed(tiny, cache, forwards, how):
    first = build(tiny())
    evaluation, train = files(cache)
    whole = train.read_bytes()
    spoil(train, how)
    forwards.clear()
    second = build(tiny())
    words = second.reference_cache["train"]
    assert words.startswith("computed; removed") and words.endswith("which was damaged")
    assert second.reference_cache["eval"] == "hit" and sum(forwards) == 24 + RECHECKED
    assert logps(second) == logps(first) and train.read_bytes() == whole
    assert build(tiny()).reference_cache == HIT


def tamper(path: Path, by: float | np.ndarray, rows: slice = slice(None)) -> None:
    entries = np.frombuffer(path.read_bytes(), reference_cache.ENTRY).copy()
    entries["logps"][rows] += by
    path.unlink()
    path.with_name(f"{hashlib.sha256(entries.tobytes()).hexdigest()}.bin").write_bytes(entries.tobytes())


@pytest.mark.slow
def test_numbers_that_the_model_does_not_give_are_rebuilt(tiny, cache, forwards):
    first = build(tiny())
    state = torch.get_rng_state()
    tamper(files(cache)[1], 3.0)
    forwards.clear()
    second = build(tiny())
    assert torch.get_rng_state().equal(state)
    assert second.reference_cache["train"].startswith("rebuilt, as known pairs came out up to 0.")
    assert sum(forwards) == RECHECKED + 24 + 10  # the entries of the context are all gone
    assert logps(second) == logps(first)
    assert build(tiny()).reference_cache == HIT


@pytest.mark.slow
def test_one_wrong_row_of_eight_is_seen_and_rounding_is_not(tiny, cache):
    pairs = PAIRS[:RECHECKED]
    first = build(tiny(), pairs)
    tamper(files(cache)[0], 1e-4)
    assert build(tiny(), pairs).reference_cache == HIT
    tokens = reference_cache.row_keys(first.train_dataset)[1]
    tamper(files(cache)[0], 4e-3 * tokens[2], slice(2, 3))  # four times the tolerance, half of it on average
    second = build(tiny(), pairs)
    assert second.reference_cache["train"].startswith("rebuilt") and logps(second)[:2] == logps(first)[:2]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_said_and_does_without(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first, second = build(tiny()), build(tiny())
    for trainer in (first, second):
        assert trainer.reference_cache["train"].startswith(f"computed; not kept for later, as {tmp_path / 'file'}/")
        assert trainer.reference_cache["train"].endswith("cannot be written (Not a directory)")
    assert logps(first) == logps(second)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    entries = Entries(tmp_path, {})
    monkeypatch.setattr(Path, "write_bytes", full)
    entries.keep([b"k" * 20], np.ones((1, 2), np.float32))
    assert "No space left on device" in entries.notes and not list(entries.folder.iterdir())


def test_what_is_not_finite_is_computed_each_time_and_nothing_is_rebuilt_for_it(tmp_path):
    rows = Dataset.from_list([{"prompt_ids": [1], "chosen_ids": [n], "rejected_ids": [9]} for n in range(3)])
    numbers = np.array([[1, 2], [np.nan, 1], [0, -np.inf]], np.float32)
    for how in ("computed", "computed 2 of 3", "computed 2 of 3"):
        found = reference_cache.complete(rows, Entries(tmp_path, {}), lambda at: numbers[at], 1e-3)
        assert found[1] == how and np.array_equal(found[0], numbers, equal_nan=True)


def write_and_read(folder: Path, start: int) -> int:
    """Entries written and read again and again; how often a read was wrong."""
    keys, wrong = [n.to_bytes(20, "big") for n in range(200)], 0
    numbers = np.arange(400, dtype=np.float32).reshape(200, 2)
    for turn in range(30):
        entries = Entries(folder, {"a": 1})
        found = entries.find(keys)
        wrong += not (np.isnan(found) | (found == numbers)).all() or bool(entries.notes)
        at = slice(start + turn, start + turn + 50)
        entries.keep(keys[at], numbers[at], instead=turn % 10 == 9)
    return wrong


def test_processes_that_write_at_the_same_time_do_no_harm(tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        wrong = pool.starmap_async(write_and_read, [(tmp_path, start) for start in (0, 0, 50, 100)])
        assert wrong.get(timeout=600) == [0, 0, 0, 0]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_nothing_is_left_beside_the_data_nor_in_the_temporary_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    first = build(tiny(), trl={"precompute_ref_log_probs": False}).train_dataset
    first.save_to_disk(tmp_path / "data")
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    for pairs in (10, 24):
        trainer = build(tiny(), Dataset.load_from_disk(tmp_path / "data").select(range(pairs)))
    assert trainer.reference_cache == {"train": "computed 14 of 24", "eval": "hit"}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before
    assert not list((tmp_path / "temporary").iterdir())


def test_pairs_that_are_evaluated_later_are_looked_up_too(tiny, forwards):
    trainer = build(tiny())
    forwards.clear()
    trainer.evaluate(Dataset.from_list(PAIRS[:12]))
    assert trainer.reference_cache["eval"] == "hit" and sum(forwards) == RECHECKED


def test_a_stream_is_refused_as_trl_does(tiny):
    trainer = build(tiny())
    with pytest.raises(ValueError, match="not supported with IterableDataset"):
        trainer._precompute_ref_logps(trainer.train_dataset.to_iterable_dataset(), "train", 2)

"""`bench`: both sides really train the same, and what it says follows from what it measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from making import make_pairs, recipe_for, write_jsonl

from dpo_recipes import Data, LoRA, apply, load
from dpo_recipes.benchmark.bare import with_trl_defaults
from dpo_recipes.commands.bench import bench
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.planning import both_trainers
from dpo_recipes.result_tables import bench_lines, bench_table

NUMBERS = {"ratio", "limit", "share_of_limit", "memory_ratio", "loss_difference", "gradient_difference"}


@pytest.fixture
def made(tiny, pairs_file, tmp_path, monkeypatch):
    # A reference that other tests have left was computed in other batches, and differs in the last bit.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build(**changes):
        changes = {"adapter": LoRA(r=4), "data": Data(str(pairs_file)), "max_length": 96} | changes
        return recipe_for(tiny(), **{"micro_batch_size": 4, "global_batch_size": 8, **changes})

    return build


def check_arithmetic(result: dict) -> None:
    seconds = result["seconds_per_step"]
    assert result["share_of_limit"] == pytest.approx(result["ratio"] / result["limit"])
    low, high = result["ratio_quartiles"]
    assert 0 < low <= result["ratio"] <= high
    of_all_steps = result["seconds_of_all_steps"]
    assert result["ratio_of_all_steps"] == pytest.approx(of_all_steps["trl"] / of_all_steps["ours"])
    for side in ("trl", "ours"):
        # Half of the steps take at least the median.
        assert of_all_steps[side] > seconds[side] * result["batches"] / 2
        assert result["pairs_per_second"][side] == pytest.approx(4 / seconds[side])
    ratio_of_tokens = result["tokens_per_second"]["ours"] / result["tokens_per_second"]["trl"]
    assert ratio_of_tokens == pytest.approx(seconds["trl"] / seconds["ours"])
    assert result["memory_ratio"] == pytest.approx(result["held_bytes"]["trl"] / result["held_bytes"]["ours"])
    for side, parts in result["seconds_of_parts"].items():
        assert parts.keys() == {"layers", "head", "rest"} and all(part > 0 for part in parts.values()), side


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(r=4), None], ids=["LoRA", "full"])
def test_without_sharing_both_sides_are_the_same_to_the_last_bit(made, adapter):
    result = bench(made(adapter=adapter, pair_sharing="off"), batches=2)
    assert result.keys() >= NUMBERS
    assert result["loss_difference"] == result["gradient_difference"] == 0
    assert result["memory_ratio"] == pytest.approx(1, abs=0.02)
    check_arithmetic(result)


@pytest.mark.slow
def test_with_sharing_they_agree_and_less_is_held(made):
    result = bench(made(pair_sharing="require"), batches=3)
    assert 0 < result["loss_difference"] < 5e-6
    assert 0 < result["gradient_difference"] < 5e-6
    assert result["limit"] > 1.2 and result["memory_ratio"] > 1.2
    assert result["batches"] == 3
    check_arithmetic(result)

    table, lines = bench_table(result), bench_lines(result)
    assert table.row_count == 8 and len(lines) == 3
    assert f"{result['limit']:.2f}" in lines[0] and "TRL with the same settings" in lines[2]


@pytest.mark.slow
def test_answers_alone_are_scored_to_the_same_loss_and_gradient(made):
    result = bench(made(pair_sharing="off"), batches=2, compact_head=True)
    assert result["loss_difference"] < 1e-6 and result["gradient_difference"] < 2e-6
    assert result["against"].endswith("scoring answers alone")


@pytest.mark.slow
def test_against_trls_defaults_it_computes_in_16_bits_with_checkpoints_and_a_reference_in_each_step(made):
    recipe = made(pair_sharing="off", trl={"precompute_ref_log_probs": True, "gradient_checkpointing": False})
    result = bench(recipe, batches=2, against_defaults=True)
    assert 1e-5 < result["gradient_difference"] < 0.1  # bf16 is TRL's default
    assert result["held_bytes"]["trl"] < 0.7 * result["held_bytes"]["ours"]  # and so are checkpoints
    assert result["against"] == "TRL with its own defaults"


def test_the_defaults_keep_what_decides_the_maths():
    options = {"beta": 0.3, "loss_type": ["ipo"], "bf16": False, "gradient_checkpointing": False, "max_length": 7}
    assert with_trl_defaults(options) == {"beta": 0.3, "loss_type": ["ipo"], "max_length": 7}


@pytest.mark.slow
def test_drawn_lengths_need_no_pairs_and_a_model_that_reaches_so_far(made, tiny):
    recipe = made(data=Data("no/such/data"), pair_sharing="auto")
    with pytest.raises(UsageError, match="no lengths named 'hhh', but ultrafeedback, hh, rag. Did you mean 'hh'"):
        bench(recipe, lengths="hhh")
    short = recipe_for(tiny(max_position_embeddings=128), data=Data("no/such/data"), adapter=None, micro_batch_size=4)
    with pytest.raises(
        RecipeError,
        match="draws pairs of up to 1,024 tokens, and the recipe's model or its reference has 128 positions",
    ):
        bench(short, lengths="hh")


def test_a_model_that_cannot_be_loaded_is_said_before_lengths_are_drawn_for_it(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "of_tomorrow"}))
    with pytest.raises(RecipeError, match="of_tomorrow"):
        bench(recipe_for(folder, adapter=None), lengths="hh")


@pytest.mark.parametrize(
    ("typed", "options", "beside"),
    [
        ("max_length=64", {"lengths": "hh"}, "--lengths hh"),
        ("data.path=a.jsonl", {"lengths": "rag", "random_model": "7M"}, "--lengths rag"),
        ("data.eval=0.1", {"random_model": "7M"}, "--random-model 7M"),
        ("model=elsewhere", {"random_model": "7M", "lengths": "hh"}, "--random-model 7M"),
    ],
)
def test_what_is_typed_and_would_do_nothing_is_refused(typed, options, beside):
    key = typed.partition("=")[0]
    with pytest.raises(UsageError, match=f"^{key} would do nothing beside {beside}: delete one of the two"):
        bench(apply(load("smollm3_ultrafeedback"), [typed]), **options)


@pytest.mark.slow
def test_fewer_pairs_are_taken_at_a_time_where_trls_trainer_has_no_room_for_more(made, monkeypatch):
    monkeypatch.setattr(both_trainers, "_peak", lambda *given: 100 * given[-1])
    monkeypatch.setattr(both_trainers, "device_memory", lambda kind: 300)
    result = bench(made(micro_batch_size=None), batches=3)
    assert (result["pairs_per_batch"], result["batches"]) == (2, 3)
    chosen = [choice for choice in result["chosen"] if choice["key"] == "micro_batch_size"]
    assert [choice["value"] for choice in chosen] == [2]
    assert "a step of TRL's own trainer is planned to need" in chosen[0]["reason"]


@pytest.mark.slow
def test_pairs_at_a_time_that_are_set_and_do_not_fit_are_refused_before_anything_is_loaded(made, monkeypatch):
    monkeypatch.setattr(both_trainers, "device_memory", lambda kind: 1000)
    with pytest.raises(RecipeError, match="with 4 pairs at a time and ours waiting beside it"):
        bench(made(), batches=2)


def test_too_few_pairs_are_said(made, tmp_path):
    few = write_jsonl(tmp_path / "few.jsonl", make_pairs(6))
    with pytest.raises(RecipeError, match="pairs are too few for two batches of 4"):
        bench(made(data=Data(str(few), eval=0.2)))


@pytest.mark.slow
def test_random_weights_need_neither_model_nor_pairs():
    recipe = load("quickstart")
    with pytest.raises(UsageError, match="no random models named '8M', but 7M"):
        bench(recipe, random_model="8M")
    result = bench(replace(recipe, micro_batch_size=1, pair_sharing="auto"), random_model="7M", batches=2, lengths="hh")
    assert (result["model"], result["lengths"], result["pairs_per_batch"]) == ("7M of random weights", "hh", 1)
    # beta is 1.5 and the two sides' gradients nearly cancel, so that their rounding weighs more.
    assert result["gradient_difference"] < 1e-4 and result["limit"] > 1.2

"""The plan against what training really takes: the same parameters exactly, the peak within a few per cent."""

from __future__ import annotations

import gc
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from making import make_pairs, trainer_of
from peft import get_peft_model
from transformers import AutoConfig

from dpo_recipes import Data, LoRA, QLoRA, Recipe, RecipeError
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.skeleton import skeleton
from dpo_recipes.models.weights import load_weights
from dpo_recipes.planning.memory import PARTS, plan
from dpo_recipes.planning.packed_weights import quantization_figures
from dpo_recipes.planning.pair_lengths import PairLength
from dpo_recipes.planning.stored_lengths import pair_lengths
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.training.trainer import RecipeTrainer

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
OPEN = {"gradient_checkpointing": False}
TOKENS = 160
LONG = [PairLength(prompt=1, chosen=TOKENS - 1, rejected=TOKENS - 1)]


def long_pairs(n: int) -> list[dict]:
    """Rows that fill TOKENS on one side and need padding on the other."""
    rows = make_pairs(n)
    for row in rows:
        row["chosen"][0]["content"] = "word " * TOKENS
    return rows


def recipe_for(folder, **changes) -> Recipe:
    given = {"adapter": LoRA(r=4), "global_batch_size": 4, "max_length": TOKENS, "pair_sharing": "off"}
    trl = {"max_steps": 2, **changes.pop("trl", {})}
    return Recipe(model=str(folder), data=Data("unused"), trl=trl, **{**given, **changes})


def built(recipe: Recipe, output: Path, device: Device) -> RecipeTrainer:
    return trainer_of(recipe, long_pairs(12), long_pairs(4), output, device=device)


def resident(model) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def measured_peak(step: Callable[[], Any], tensors: list[torch.Tensor]) -> int:
    """The most bytes that were live while `step` ran, those of `tensors` included."""
    gc.collect()  # or what others left behind would be freed, and subtracted, on the way
    storages = {}  # by address, as several tensors may share one
    for tensor in tensors:
        for part in (tensor, *quantization_figures(tensor)):
            storages[part.untyped_storage().data_ptr()] = part.untyped_storage()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events]  # below zero where memory is freed
    return sum(storage.nbytes() for storage in storages.values()) + max(0, *itertools.accumulate(changes))


@pytest.fixture(scope="module")
def start(tiny, tmp_path_factory):
    """A saved adapter of the small llama."""
    folder = tmp_path_factory.mktemp("start")
    recipe = recipe_for(tiny(**SMALL))
    model = load_weights(recipe, resolve(recipe, Device()), str(tiny(**SMALL)))
    get_peft_model(model, peft_config(LoRA(r=4))).save_pretrained(folder)
    return str(folder)


BF16 = Device("cpu", bf16=True)
CPU = Device()


class Case(NamedTuple):
    """A run that is planned, and then measured."""

    sizes: dict = {}  # of the model, over SMALL
    changes: dict = {}  # of the recipe
    device: Device = Device()


MEASURED = {
    "lora, checkpointing": Case(),
    "lora": Case(changes={"trl": OPEN}),
    "full, accumulation": Case(changes={"adapter": None, "micro_batch_size": 1, "trl": OPEN}),
    "full, wide, checkpointing": Case({"hidden_size": 512, "vocab_size": 264}, {"adapter": None}),
    "full, bf16 autocast": Case({"hidden_size": 256}, {"adapter": None, "micro_batch_size": 2, "trl": OPEN}, BF16),
    "sgd": Case({"hidden_size": 512, "vocab_size": 264}, {"adapter": None, "trl": {"optim": "sgd"}}),
    "tied, large vocabulary": Case(
        {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True, "vocab_size": 35000},
        {"global_batch_size": 1, "trl": OPEN},
    ),
    "bf16 weights": Case(changes={"dtype": "bfloat16", "trl": OPEN}),
    "dora, eager attention": Case(changes={"adapter": LoRA(r=4, use_dora=True), "attn_implementation": "eager"}),
    "sliding window": Case({"model_type": "gemma3_text", "head_dim": 32}, {"trl": OPEN}),
    "experts": Case(
        {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        {"dtype": "bfloat16"},
    ),
    "qlora": Case(changes={"adapter": QLoRA(r=4), "trl": OPEN}),
    "moving copy": Case({"hidden_size": 256}, {"adapter": None, "trl": {**OPEN, "sync_ref_model": True}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MEASURED)
def test_the_planned_peak_is_the_measured_one(tiny, tmp_path, case):
    """Both are exact counts of live bytes; 1 % is for what no model of the step has (metrics, the data loader)."""
    changed, changes, device = MEASURED[case]
    folder = tiny(**{**SMALL, **changed})
    recipe = recipe_for(folder, **changes)
    settings = resolve(recipe, device)
    moving = settings.reference == "moving copy"
    bare = skeleton(recipe, settings, str(folder))
    second = skeleton(recipe, settings, str(folder), trainable=False) if moving else None
    planned = plan(bare, recipe, settings, pairs=LONG, second=second)
    trainer = built(recipe, tmp_path, device)
    held = resident(trainer.model) + (resident(trainer.ref_model) if moving else [])
    measured = measured_peak(trainer.train, held)
    print(f"{case}: planned {planned.peak / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB, {planned}")
    assert (planned.trainable, planned.total) == trainer.parameter_counts()
    assert planned.peak == pytest.approx(measured, rel=0.01)
    assert planned == plan(bare, recipe, settings, pairs=LONG, second=second)  # the skeleton is as it was


READ_ONCE = ("lora, checkpointing", "lora", "full, accumulation", "tied, large vocabulary", "experts", "qlora")


@pytest.mark.slow
@pytest.mark.parametrize("case", READ_ONCE)
def test_so_it_is_where_pairs_are_read_once(tiny, tmp_path, case):
    """For the pairs as they are: what they share, and how long either side is, decides."""
    changed, changes, device = MEASURED[case]
    folder = tiny(**{**SMALL, **changed})
    every_pair = {**changes.get("trl", {}), "max_steps": 12 // changes.get("global_batch_size", 4)}
    recipe = recipe_for(folder, **{**changes, "pair_sharing": "require", "trl": every_pair})
    settings = resolve(recipe, device)
    trainer = built(recipe, tmp_path, device)
    lengths = pair_lengths([trainer.train_dataset], recipe.max_length)
    pairs = lengths.most(lengths.read_once, len(trainer.train_dataset))
    planned = plan(skeleton(recipe, settings, str(folder)), recipe, settings, pairs=pairs)
    measured = measured_peak(trainer.train, resident(trainer.model))
    print(f"{case}: planned {planned.peak / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB, {planned}")
    assert planned.peak == pytest.approx(measured, rel=0.02)


@pytest.mark.slow
def test_a_continued_adapter_is_planned_with_its_frozen_copy(tiny, tmp_path, start):
    for adapter in (LoRA(continue_from=start), QLoRA(continue_from=start)):
        recipe = recipe_for(tiny(**SMALL), adapter=adapter, trl=OPEN)
        settings = resolve(recipe, Device())
        planned = plan(skeleton(recipe, settings, str(tiny(**SMALL))), recipe, settings, pairs=LONG)
        trainer = built(recipe, tmp_path, Device())
        assert (planned.trainable, planned.total) == trainer.parameter_counts()
        assert planned.reference == sum(p.nbytes for n, p in trainer.model.named_parameters() if ".ref." in n)
        assert planned.peak == pytest.approx(measured_peak(trainer.train, resident(trainer.model)), rel=0.01)


@pytest.mark.slow
def test_another_models_log_probabilities_are_the_worst_moment_where_it_is_larger(tiny):
    folder, large = tiny(), tiny(**SMALL | {"hidden_size": 512})
    recipe = recipe_for(folder, reference=str(large))
    settings = resolve(recipe, Device())
    second = skeleton(recipe, settings, str(large), trainable=False)
    both = plan(skeleton(recipe, settings, str(folder)), recipe, settings, pairs=LONG, second=second)
    assert both.moment == "reference" and both.optimizer == 0
    assert both.reference == sum(t.nbytes for t in [*second.parameters(), *second.buffers()])
    same = skeleton(recipe, settings, str(folder), trainable=False)
    small = plan(skeleton(recipe, settings, str(folder)), recipe, settings, pairs=LONG, second=same)
    assert small.moment == "step" and small.reference == 0


@pytest.mark.slow
def test_a_large_evaluation_batch_is_the_worst_moment(tiny):
    recipe = recipe_for(tiny(), micro_batch_size=1, trl={"per_device_eval_batch_size": 32})
    settings = resolve(recipe, Device())
    assert plan(skeleton(recipe, settings, str(tiny())), recipe, settings, pairs=LONG).moment == "evaluation"


@pytest.mark.slow
def test_fewer_tokens_and_pairs_need_less_and_the_parts_are_those_of_the_recipe(tiny):
    def planned(pairs=LONG, **changes):
        recipe = recipe_for(tiny(**SMALL), **changes)
        settings = resolve(recipe, Device())
        return plan(skeleton(recipe, settings, str(tiny(**SMALL))), recipe, settings, pairs=pairs)

    full, lora = planned(adapter=None, micro_batch_size=1), planned(micro_batch_size=1)
    assert full.peak > lora.peak > planned(micro_batch_size=1, pairs=[LONG[0].cut(TOKENS // 2)]).peak
    assert planned(micro_batch_size=4).peak > planned(micro_batch_size=2).peak > lora.peak
    assert planned(trl=OPEN).peak > planned().peak
    assert sum(getattr(lora, part) for part in PARTS) == lora.peak
    assert full.optimizer == 8 * full.trainable and full.gradients == 4 * full.trainable
    assert lora.adapter == 4 * lora.trainable and lora.reference == 0
    states = {"sgd": 0, "lion_8bit": 1, "adamw_torch": 8, "paged_adamw_32bit": 8}
    for name, each in states.items():
        adapter = LoRA(r=64)  # every matrix has 4,096 numbers or more
        found = planned(adapter=adapter, micro_batch_size=1, trl={"optim": name})
        assert found.optimizer == each * found.trainable, name


# ---------------------------------------------------------------------------------------------- what cannot be known


def test_a_model_that_does_not_run_on_fake_tensors_is_a_reason(tiny, monkeypatch):
    recipe = recipe_for(tiny())
    settings = resolve(recipe, Device())
    bare = skeleton(recipe, settings, str(tiny()))
    real = type(bare.get_base_model().base_model).forward
    monkeypatch.setattr(
        type(bare.get_base_model().base_model),
        "forward",
        lambda self, input_ids, **rest: real(self, input_ids=input_ids[: input_ids.max().item()], **rest),
    )
    with pytest.raises(RecipeError, match="does not run on fake tensors: DataDependentOutput"):
        plan(bare, recipe, settings, pairs=LONG)


# ------------------------------------------------------------------------------------------- what is not a tensor's


def planned_for(folder, device=CPU, pairs=LONG, **changes):
    recipe = recipe_for(folder, **changes)
    settings = resolve(recipe, device)
    return plan(skeleton(recipe, settings, str(folder)), recipe, settings, pairs=pairs, process=0)


@pytest.mark.slow
def test_files_are_mapped_while_weights_are_read_and_as_long_as_a_weight_is_a_view_of_them(tiny, tmp_path):
    in_32_bits = tiny(**SMALL)
    in_16_bits = shutil.copytree(in_32_bits, tmp_path / "in_16_bits")
    config_file = in_16_bits / "config.json"
    config_file.write_text(config_file.read_text().replace("float32", "bfloat16"))
    assert AutoConfig.from_pretrained(in_16_bits).dtype == torch.bfloat16
    short = [PairLength(1, 1, 1)]  # so that nothing is larger than loading

    converted = planned_for(in_32_bits, pairs=short, dtype="bfloat16", micro_batch_size=1)
    numbers = converted.total - converted.trainable
    assert converted.moment == "loading" and converted.files == 4 * numbers
    as_they_are = planned_for(in_32_bits, pairs=short, dtype="float32", micro_batch_size=1)
    assert as_they_are.files == 0

    packed = planned_for(in_16_bits, adapter=QLoRA(r=4))
    embedding = SMALL["vocab_size"] * SMALL["hidden_size"]
    assert packed.moment != "loading"
    assert 2 * numbers * 0.5 < packed.files < 2 * (numbers - embedding)  # the embedding is a view of the file


@pytest.mark.slow
def test_pairs_that_are_read_once_need_less_the_more_they_share(tiny):
    mostly_prompt = [PairLength(prompt=TOKENS - 20, chosen=20, rejected=20)]
    folder = tiny(**SMALL)
    changes = {"micro_batch_size": 4, "trl": OPEN}
    twice = planned_for(folder, pairs=mostly_prompt, pair_sharing="off", **changes)
    once = planned_for(folder, pairs=mostly_prompt, pair_sharing="auto", **changes)
    assert once.activations < 0.75 * twice.activations and once.peak < twice.peak
    assert planned_for(folder, pairs=LONG, pair_sharing="auto", **changes).activations > once.activations


@pytest.mark.slow
def test_a_model_without_a_kernel_for_its_attention_reads_pairs_once_too(tiny):
    folder = tiny("gemma2", head_dim=8)
    mostly_prompt = [PairLength(prompt=180, chosen=20, rejected=20)]
    twice = planned_for(folder, pairs=mostly_prompt, trl=OPEN)
    once = planned_for(folder, pairs=mostly_prompt, pair_sharing="auto", trl=OPEN)
    assert once.activations < 0.75 * twice.activations


@pytest.mark.slow
def test_on_a_gpu_what_torch_keeps_of_freed_memory_counts(tiny):
    planned = planned_for(tiny(**SMALL), Device("cuda", bf16=True))
    assert planned.allocator > 0 and planned.files == planned.process == 0
    assert planned.activations > 0 and planned.head > 0  # as of the fullest moment, and not of the last one
    assert planned.peak == sum(getattr(planned, part) for part in PARTS)


@pytest.mark.slow
def test_a_model_whose_configuration_has_dropout_is_planned_as_trl_trains_it_without(tiny):
    """With it on, the attention of a row would refuse to drop what both answers share."""
    folder = tiny("gpt2")
    planned = planned_for(folder, pairs=LONG, pair_sharing="auto", trl=OPEN)
    assert planned.peak > 0 and planned.total > 0

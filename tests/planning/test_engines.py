"""What one of several devices holds: the formulae by hand, what must hold between them, and the facts they rely on."""

from __future__ import annotations

import dataclasses
import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, fsdp_utils
from rich.console import Console
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from transformers import AutoConfig, PreTrainedModel, Trainer

from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.errors import UsageError
from dpo_recipes.models.skeleton import skeleton
from dpo_recipes.planning.engines import (
    ENGINES,
    Launch,
    Sizes,
    divided_by,
    launch,
    notes,
    on_a_device,
    plan_on_engine,
    refuse_engine,
    sizes_of,
    with_masters,
)
from dpo_recipes.planning.from_shape import session_of_shape
from dpo_recipes.planning.memory import PARTS, Plan, plan
from dpo_recipes.planning.pair_lengths import PairLength
from dpo_recipes.planning.shapes import published_config, shape_of
from dpo_recipes.recipe.resolve import Device, resolve

GB = 10**9


def made_up_plan(**parts: int) -> Plan:
    whole = dict.fromkeys(PARTS, 0) | parts
    return Plan(trainable=0, total=0, moment="step", peak=sum(whole.values()), **whole)


# All of 4 billion numbers of 32 bits train: 40 layers of 0.36 GB, and tied embeddings of 1.6 GB.
FULL = made_up_plan(
    weights=16 * GB, gradients=16 * GB, optimizer=32 * GB, activations=3 * GB, head=GB, allocator=2 * GB
)
FULL_SIZES = Sizes(
    whole=16 * GB,
    number=4,
    trained=16 * GB,
    trained_number=4,
    unit=1_600_000_000,
    unit_trained=1_600_000_000,
    tail=1_600_000_000,
    undivided=0,
)
# The same model in 16 bits, frozen, under an adapter of 20 million numbers of 32 bits.
ADAPTER = made_up_plan(
    weights=8 * GB, adapter=80_000_000, gradients=80_000_000, optimizer=160_000_000, activations=3 * GB, head=GB
)
ADAPTER_SIZES = FULL_SIZES._replace(
    whole=8_080_000_000, trained=80_000_000, unit=800_000_000, unit_trained=2_000_000, tail=800_000_000
)


def parts_of(device_plan: Plan) -> dict[str, int]:
    return {part: getattr(device_plan, part) for part in PARTS if getattr(device_plan, part)}


OWN = {"activations": 3 * GB, "head": GB, "allocator": 2 * GB}  # which belong to the device's own micro-batch


@pytest.mark.parametrize(
    ("engine", "parts"),
    [
        ("ddp", {"weights": 16 * GB, "gradients": 16 * GB, "buckets": 16 * GB, "optimizer": 32 * GB}),
        ("zero2", {"weights": 16 * GB, "gradients": 4 * GB, "buckets": 2 * GB, "optimizer": 8 * GB}),
        (
            "zero3",  # 10^9 numbers of 4 bytes stay gathered
            {"weights": 4 * GB, "gathered": 4 * GB, "gradients": 4 * GB, "buckets": 2 * GB, "optimizer": 8 * GB},
        ),
        (
            "fsdp2",  # the head, and two units
            {
                "weights": 4 * GB,
                "gathered": 4_800_000_000,
                "gradients": 4 * GB,
                "buckets": 3_200_000_000,
                "optimizer": 8 * GB,
            },
        ),
    ],
)
def test_by_hand_where_all_weights_train_on_four_devices(engine, parts):
    device_plan = on_a_device(FULL, Launch(4, engine), FULL_SIZES)
    assert parts_of(device_plan) == parts | OWN
    assert device_plan.peak == sum((parts | OWN).values())


def test_by_hand_where_an_adapter_trains_the_frozen_weights_are_divided_too():
    found = {engine: on_a_device(ADAPTER, Launch(8, engine), ADAPTER_SIZES) for engine in ENGINES}
    assert [found[engine].weights for engine in ("ddp", "zero2", "zero3", "fsdp2")] == [8 * GB, 8 * GB, GB, GB]
    assert [found[engine].adapter for engine in ("ddp", "zero2", "zero3", "fsdp2")] == [80e6, 80e6, 10e6, 10e6]
    assert found["zero2"].gradients == 10_000_000 and found["zero2"].optimizer == 20_000_000
    assert found["ddp"].buckets == 80_000_000 and found["fsdp2"].buckets == 4_000_000
    assert all(device_plan.activations == 3 * GB for device_plan in found.values())


def test_what_no_device_can_share_stays_whole():
    packed = ADAPTER_SIZES._replace(undivided=6 * GB)
    assert on_a_device(ADAPTER, Launch(4, "fsdp2"), packed).weights == 6 * GB + GB // 2
    second = dataclasses.replace(ADAPTER, reference=8 * GB)
    assert on_a_device(second, Launch(4, "fsdp2"), ADAPTER_SIZES).reference == 2 * GB
    assert on_a_device(second, Launch(4, "zero2"), ADAPTER_SIZES).reference == 8 * GB


def test_fsdp2_keeps_gradients_whole_over_the_micro_batches_of_a_step():
    assert on_a_device(FULL, Launch(4, "fsdp2"), FULL_SIZES, accumulation=2).gradients == 16 * GB
    assert on_a_device(FULL, Launch(4, "zero3"), FULL_SIZES, accumulation=2).gradients == 4 * GB
    assert "gradients" not in divided_by(Launch(4, "fsdp2"), accumulation=2)
    assert "over 2 micro-batches" in " ".join(notes(Recipe(model="m", data=Data("d")), "fsdp2", 2))


@pytest.mark.parametrize("whole", [FULL, ADAPTER, made_up_plan(weights=7, gradients=5, optimizer=11, activations=3)])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_what_holds_between_engines_and_numbers_of_devices(whole, processes):
    sizes = FULL_SIZES if whole is FULL else ADAPTER_SIZES
    of_engine = {engine: on_a_device(whole, Launch(processes, engine), sizes) for engine in ENGINES}
    held = [part for part in PARTS if part not in ("gathered", "buckets")]  # the rest is for communication
    for part in held:
        ddp, zero2, zero3, fsdp2 = (getattr(of_engine[name], part) for name in ("ddp", "zero2", "zero3", "fsdp2"))
        assert fsdp2 == zero3 <= zero2 <= ddp == getattr(whole, part), part
        assert processes * zero3 >= getattr(whole, part), part
    for engine, device_plan in of_engine.items():
        assert device_plan.peak == sum(getattr(device_plan, part) for part in PARTS)
        assert processes * device_plan.peak >= whole.peak, engine
        twice = on_a_device(whole, Launch(2 * processes, engine), sizes)
        assert twice.peak <= device_plan.peak, engine
    if whole is FULL:
        assert of_engine["zero3"].peak < of_engine["zero2"].peak < of_engine["ddp"].peak


# ------------------------------------------------------------------------------------------- of a run in 16 bits

# The model of FULL as an engine computes with it: 4 billion numbers in 16 bits
IN_16_BITS = dataclasses.replace(
    made_up_plan(weights=8 * GB, gradients=8 * GB, optimizer=16 * GB, activations=3 * GB), trainable=4 * GB
)


def test_by_hand_what_an_engine_keeps_in_32_bits_beside_its_16():
    of_fsdp2 = with_masters(IN_16_BITS, "fsdp2", bytes_of_a_state=8)
    assert parts_of(of_fsdp2) == {"weights": 16 * GB, "gradients": 16 * GB, "optimizer": 32 * GB, "activations": 3 * GB}
    for engine in ("zero2", "zero3"):  # 2 + 2 + 12 bytes, as in the ZeRO paper
        of_zero = with_masters(IN_16_BITS, engine, bytes_of_a_state=8)
        assert parts_of(of_zero) == {
            "weights": 8 * GB,
            "gradients": 8 * GB,
            "optimizer": 48 * GB,
            "activations": 3 * GB,
        }
        assert of_zero.peak == of_fsdp2.peak == 67 * GB
    waiting = with_masters(IN_16_BITS, "fsdp2", bytes_of_a_state=8, accumulation=2)
    assert waiting.gradients == 8 * GB  # as they are reduced, in 16 bits
    early = dataclasses.replace(IN_16_BITS, gradients=0, optimizer=0, peak=11 * GB)
    assert with_masters(early, "fsdp2", 8).peak == 19 * GB  # a moment that has neither


@pytest.mark.slow
def test_a_device_holds_no_copies_of_weights_that_are_gathered_in_16_bits(tmp_path):
    """Under DDP autocast holds a copy of every weight in 16 bits while a step goes on."""
    config = {**published_config("HuggingFaceTB/SmolLM2-135M-Instruct"), "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = Recipe(
        model=str(tmp_path), data=Data("d"), adapter=None, max_length=64, global_batch_size=4, micro_batch_size=1
    )
    device = Device("cuda", bf16=True, processes=4)
    with session_of_shape(recipe, Console(quiet=True), device) as session:
        pairs = [PairLength(1, 63, 63)]
        plans = {engine: plan_on_engine(session, device, pairs, recipe, engine) for engine in ENGINES}

    numbers = shape_of(config).total
    kept = {"ddp": 4 * numbers, "fsdp2": numbers, "zero2": 2 * numbers, "zero3": numbers / 2}
    states = {"ddp": 8 * numbers, "fsdp2": 2 * numbers, "zero2": 3 * numbers, "zero3": 3 * numbers}
    for engine, found in plans.items():
        assert found.trainable == numbers
        assert found.weights == pytest.approx(kept[engine], rel=1e-3)
        assert found.optimizer == pytest.approx(states[engine], rel=1e-3)
        if engine != "ddp":
            assert plans["ddp"].activations - found.activations >= 2 * shape_of(config).in_maps


@pytest.mark.parametrize("engine", ENGINES)
def test_one_process_holds_the_plain_plan(engine):
    assert on_a_device(FULL, Launch(1, engine), FULL_SIZES) == FULL


# ------------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((None, "zero3"), "say how many, as in --num-processes 4 --engine zero3"),
        ((1, "ddp"), "say how many and not 1"),
        ((0, None), "is no number of processes"),
        ((4, "fsdp"), "Did you mean 'fsdp2'?"),
    ],
)
def test_processes_and_engine_that_do_not_go_together_are_refused(given, text):
    with pytest.raises(UsageError) as refused:
        launch(*given)
    assert text in str(refused.value)


def test_several_processes_are_ddps_unless_another_engine_is_named():
    assert launch(4, None) == Launch(4, "ddp") and launch(4, "zero2") == Launch(4, "zero2")
    assert launch(None, None) is launch(1, None) is None


def test_zero3_is_refused_for_4_bit_weights_and_fsdp2_says_that_they_stay_whole():
    packed, plain = (Recipe(model="m", data=Data("d"), adapter=adapter) for adapter in (QLoRA(), LoRA()))
    with pytest.raises(UsageError, match="cannot divide 4-bit weights"):
        refuse_engine(packed, "zero3")
    for engine in ENGINES:
        refuse_engine(plain, engine)
    assert "bnb_4bit_quant_storage" in notes(packed, "fsdp2", 1)[0]
    assert notes(packed, "ddp", 1) == notes(packed, "zero2", 1) == notes(plain, "fsdp2", 1) == []


# -------------------------------------------------------------------------------------------------------- of a model


def bare(folder, **changes):
    recipe = Recipe(model=str(folder), data=Data("unused"), global_batch_size=4, **changes)
    settings = resolve(recipe, Device("cuda", bf16=True, processes=2))
    return skeleton(recipe, settings, str(folder)), recipe, settings


def test_the_sizes_are_those_of_the_models_own_layers(tiny):
    model, _, _ = bare(tiny())

    def bytes_of(module) -> int:
        return sum(parameter.nbytes for parameter in module.parameters())

    found = sizes_of(model)
    assert found.whole == found.trained == bytes_of(model)
    layer, embeddings = bytes_of(model.model.layers[0]), bytes_of(model.get_input_embeddings())
    assert found.unit == found.unit_trained == max(layer, embeddings)
    assert found.tail == model.get_output_embeddings().weight.nbytes
    assert found.number == found.trained_number == 4
    assert found.undivided == sum(buffer.nbytes for buffer in model.buffers())

    adapted, _, _ = bare(tiny(), adapter=LoRA(r=4))
    of_adapter = sizes_of(adapted)
    assert of_adapter.trained == sum(p.nbytes for n, p in adapted.named_parameters() if ".lora_" in n)
    assert 0 < of_adapter.unit_trained < of_adapter.trained
    assert (of_adapter.number, of_adapter.trained_number) == (2, 4)  # frozen in 16 bits, the adapter in 32


@pytest.mark.slow
def test_of_4_bit_weights_what_is_packed_is_undivided(tiny):
    model, recipe, settings = bare(tiny(), adapter=QLoRA(r=4))
    found = sizes_of(model)
    packed = sum(parameter.nbytes for parameter in model.parameters() if parameter.dtype == torch.uint8)
    whole = plan(model, recipe, settings, pairs=[PairLength(1, 9, 9)])
    assert 0 < packed < found.undivided < whole.weights
    assert found.undivided + found.whole - whole.adapter == whole.weights


def test_where_weights_are_gathered_by_module_layers_hold_what_the_libraries_let_them(tiny, monkeypatch):
    """DeepSpeed gathers a weight when its own module is called, which a layer that computes at once does not."""
    model, recipe, settings = bare(tiny(), adapter=LoRA(r=4), micro_batch_size=2, trl={"gradient_checkpointing": False})
    pairs = [PairLength(9, 99, 99)]
    at_once, as_they_come = (
        plan(model, recipe, settings, pairs=pairs, reads_weights=reads).activations for reads in (True, False)
    )
    assert at_once < 0.9 * as_they_come

    asked = {}

    def noting(*_, reads_weights, **__):
        asked[engine] = reads_weights
        return made_up_plan()

    monkeypatch.setattr("dpo_recipes.planning.memory.plan_for", noting)
    session = SimpleNamespace(recipe=recipe, model_path=recipe.model, reference_path="")
    for engine in ENGINES:
        plan_on_engine(session, Device("cuda", bf16=True, processes=2), pairs, recipe, engine)
    assert asked == {"ddp": True, "fsdp2": True, "zero2": True, "zero3": False}


@pytest.mark.slow
def test_the_worst_moment_is_that_of_a_device_whose_allocator_holds_its_share_alone(tiny, tmp_path):
    """On a model large enough for torch's segments of 20 MB, of which only the configuration is there."""
    config = AutoConfig.from_pretrained(tiny(), hidden_size=2048, intermediate_size=8192)
    config.save_pretrained(tmp_path)
    model, recipe, settings = bare(tmp_path, adapter=None, micro_batch_size=2)
    pairs = [PairLength(1, 9, 9)]
    reserved = {}
    for devices in (1, 4):
        spread = Launch(devices, "zero3")
        divided = plan(model, recipe, settings, pairs=pairs, divided_by=divided_by(spread, settings.accumulation))
        without_communication = Sizes(0, 0, 0, 0, 0, 0, 0, 0)
        reserved[devices] = on_a_device(divided, spread, without_communication, settings.accumulation).peak

    trained = 16 * sum(parameter.numel() for parameter in model.parameters())  # weights, gradients and two states
    print(f"{trained:,} bytes are divided: {reserved}")
    assert reserved[1] - reserved[4] == pytest.approx(trained * 3 / 4, rel=0.1)


# ------------------------------------------------------------------------------------- what the formulae rely on


def test_what_is_read_of_accelerate_and_transformers_still_holds(monkeypatch):
    """Read again: `fsdp2_prepare_model` whole, `Accelerator.no_sync`, the Trainer's loop over micro-batches, zero.Init.

    DeepSpeed is not installed here. Its defaults are in its configuration page, and accelerate leaves them.
    """
    assert DistributedDataParallelKwargs().gradient_as_bucket_view is False
    prepared = inspect.getsource(fsdp_utils.fsdp2_prepare_model)
    assert "incompatible_params4bit.add(param)" in prepared  # 4-bit weights are ignored
    assert "tail_modules = (final_norm, output_embed)" in prepared
    assert '"reshard_after_forward": False' in prepared  # of the tail
    assert "_no_split_modules" in inspect.getsource(fsdp_utils.fsdp2_prepare_auto_wrap_policy)
    loop = inspect.getsource(Trainer._run_epoch) if hasattr(Trainer, "_run_epoch") else inspect.getsource(Trainer)
    assert "DistributedType.DEEPSPEED" in loop and "self.accelerator.no_sync" in loop
    assert "needs_zero3_init = is_deepspeed_zero3_enabled() and not _is_quantized" in inspect.getsource(PreTrainedModel)
    assert "if param.requires_grad and param.dtype != torch.float32" in prepared  # kept in 32 bits
    divides = FullyShardedDataParallelPlugin(fsdp_version=2)
    divides.set_mixed_precision("bf16")
    policy = divides.mixed_precision_policy
    assert policy.param_dtype == policy.reduce_dtype == torch.bfloat16  # gathered, and reduced
    assert "fsdp_plugin.set_mixed_precision(self._mixed_precision)" in inspect.getsource(AcceleratorState)
    assert '"mixed_precision": self.args.mixed_precision' in inspect.getsource(Trainer)
    assert "unsharded_accumulated_grad" in inspect.getsource(FSDPParam.to_accumulated_grad_if_needed)
    configured = inspect.getsource(DeepSpeedPlugin)
    assert "reduce_bucket_size" not in configured and "stage3_max_live_parameters" not in configured

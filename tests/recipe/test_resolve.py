"""What a recipe becomes on a device: mode defaults, the batch and precision."""

from __future__ import annotations

import pytest
from making import make_recipe

from dpo_recipes import Data, LoRA, QLoRA
from dpo_recipes.errors import UsageError
from dpo_recipes.losses.trl_losses import COUPLED_LOSSES
from dpo_recipes.recipe.dpo_arguments import dpo_arguments
from dpo_recipes.recipe.resolve import Device, here, resolve

CPU = Device("cpu", processes=1)
GPU = Device("cuda", bf16=True, processes=1)
OLD = Device("cuda", bf16=False, processes=1)  # a GPU without bf16
MAC = Device("mps", processes=1)


@pytest.mark.parametrize(
    ("adapter", "dtype", "device", "weights", "autocast"),
    [
        (None, "auto", GPU, "float32", "bf16"),
        (LoRA(), "auto", GPU, "bfloat16", "bf16"),
        (QLoRA(), "auto", GPU, "bfloat16", "bf16"),
        (None, "auto", OLD, "float32", None),
        (LoRA(), "auto", OLD, "float32", None),
        (QLoRA(), "auto", OLD, "float16", "fp16"),
        (None, "auto", CPU, "float32", None),
        (LoRA(), "auto", CPU, "float32", None),
        (QLoRA(), "auto", CPU, "bfloat16", "bf16"),
        (LoRA(), "auto", MAC, "float32", None),
        (LoRA(), "float32", GPU, "float32", None),
        (LoRA(), "float16", OLD, "float16", "fp16"),
        (LoRA(), "bfloat16", CPU, "bfloat16", "bf16"),
    ],
)
def test_precision_by_mode(adapter, dtype, device, weights, autocast):
    settings = resolve(make_recipe(adapter=adapter, dtype=dtype), device)
    config = dpo_arguments(make_recipe(), settings, "")
    assert (settings.weights, settings.autocast) == (weights, autocast)
    assert (config["bf16"], config["fp16"]) == (autocast == "bf16", autocast == "fp16")
    assert config["use_cpu"] is (device is CPU)


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        (
            {"dtype": "float16", "adapter": LoRA()},
            CPU,
            "dtype='float16' does not train on a CPU: use 'float32' or 'bfloat16'.",
        ),
        (
            {"dtype": "bfloat16", "adapter": LoRA()},
            OLD,
            "dtype='bfloat16' is not native to this GPU: use 'auto', or 'float16' with an adapter.",
        ),
    ],
)
def test_a_precision_that_does_not_exist_is_refused(changes, device, message):
    with pytest.raises(UsageError) as error:
        resolve(make_recipe(**changes), device)
    assert str(error.value) == message


@pytest.mark.parametrize(("adapter", "rate"), [(None, 5e-7), (LoRA(), 5e-6), (QLoRA(), 5e-6)])
def test_the_learning_rate_by_mode(adapter, rate):
    assert resolve(make_recipe(adapter=adapter), GPU).learning_rate == rate
    assert resolve(make_recipe(adapter=adapter, learning_rate=1e-4), GPU).learning_rate == 1e-4


@pytest.mark.parametrize(
    ("total", "micro", "processes", "pairs"),
    [
        (16, None, 1, (4, 4)),
        (16, None, 8, (2, 1)),
        (7, None, 1, (1, 7)),
        (6, None, 1, (3, 2)),
        (1, None, 1, (1, 1)),
        (16, 16, 1, (16, 1)),
        (64, 2, 4, (2, 8)),
        (10**6, None, 1, (4, 250_000)),
    ],
)
def test_micro_batch_and_accumulation_follow_from_the_global_batch(total, micro, processes, pairs):
    settings = resolve(make_recipe(global_batch_size=total, micro_batch_size=micro), Device("cuda", True, processes))
    assert (settings.micro_batch_size, settings.accumulation) == pairs
    assert pairs[0] * pairs[1] * processes == total


@pytest.mark.parametrize(
    ("total", "micro", "processes", "message"),
    [
        (16, 3, 1, "micro_batch_size=3 does not divide the 16 pairs per device and step. It can be 1, 2, 4, 8, 16."),
        (16, 16, 2, "micro_batch_size=16 does not divide the 8 pairs per device and step. It can be 1, 2, 4, 8."),
        (10, None, 4, "global_batch_size=10 pairs do not divide over 4 processes. Nearest: 8 and 12."),
        (1, None, 4, "global_batch_size=1 pairs do not divide over 4 processes. Nearest: 4."),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(total, micro, processes, message):
    with pytest.raises(UsageError) as error:
        resolve(make_recipe(global_batch_size=total, micro_batch_size=micro), Device("cuda", True, processes))
    assert str(error.value) == message


@pytest.mark.parametrize("loss", sorted(COUPLED_LOSSES))
def test_a_loss_that_couples_pairs_needs_its_micro_batch(loss):
    with pytest.raises(UsageError, match=f"loss='{loss}' depends on which pairs share a forward"):
        resolve(make_recipe(loss=loss), GPU)
    assert resolve(make_recipe(loss=loss, micro_batch_size=8), GPU).micro_batch_size == 8


def test_the_remedy_of_one_field_needs_no_other():
    assert resolve(make_recipe(sft_weight=0.1), CPU).micro_batch_size == 4
    with pytest.raises(UsageError, match="loss='aot' depends on which pairs share a forward"):
        resolve(make_recipe(loss="aot", sft_weight=0.1), CPU)


@pytest.mark.parametrize(
    ("changes", "reference", "precompute"),
    [
        ({}, "start weights", True),
        ({"adapter": LoRA()}, "adapter off", True),
        ({"adapter": LoRA(), "trl": {"precompute_ref_log_probs": True}}, "adapter off", True),
        ({"adapter": LoRA(), "trl": {"precompute_ref_log_probs": False}}, "adapter off", False),
        ({"adapter": LoRA(), "data": Data("d", streaming=True), "trl": {"max_steps": 4}}, "adapter off", False),
        ({"adapter": LoRA(continue_from="x")}, "frozen adapter", True),
        ({"adapter": LoRA(), "reference": "y"}, "other model", True),
        ({"reference": "y"}, "other model", True),
        ({"trl": {"sync_ref_model": True}}, "moving copy", False),
    ],
)
def test_who_the_reference_is(changes, reference, precompute):
    recipe = make_recipe(**changes)
    settings = resolve(recipe, GPU)
    assert (settings.reference, settings.precompute) == (reference, precompute)
    assert dpo_arguments(recipe, settings, "")["precompute_ref_log_probs"] is precompute


@pytest.mark.parametrize(("visible", "kind"), [("", "cpu"), ("-1", "cpu"), ("0", "cuda"), (None, "cuda")])
def test_the_device_is_guessed_without_torch(monkeypatch, visible, kind):
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/nvidia0")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert here().kind == kind


def test_the_launcher_says_how_many_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Device().processes == 4
    monkeypatch.delenv("WORLD_SIZE")
    assert Device().processes == 1

"""What a recipe becomes on a device: mode defaults, the batch, precision, the one table to DPOConfig, and `show`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.errors import UsageError
from dpo_recipes.losses.trl_losses import COUPLED_LOSSES
from dpo_recipes.recipe import trl_options as dpoconfig
from dpo_recipes.recipe.overrides import apply
from dpo_recipes.recipe.recipe import hints
from dpo_recipes.recipe.resolve import Device, dpo_config, here, resolve, rows, show

CPU, GPU, OLD, MAC = (
    Device("cpu", processes=1),
    Device("cuda", True, 1),
    Device("cuda", False, 1),
    Device("mps", False, 1),
)


def make(**changes: Any) -> Recipe:
    return Recipe(**{"model": "m", "data": Data("d"), **changes})


@pytest.mark.parametrize(
    ("adapter", "dtype", "device", "weights", "autocast"),
    [
        (None, "auto", GPU, "float32", "bf16"), (LoRA(), "auto", GPU, "bfloat16", "bf16"),
        (QLoRA(), "auto", GPU, "bfloat16", "bf16"),
        (None, "auto", OLD, "float32", None), (LoRA(), "auto", OLD, "float32", None),
        (QLoRA(), "auto", OLD, "float16", "fp16"),
        (None, "auto", CPU, "float32", None), (LoRA(), "auto", CPU, "float32", None),
        (QLoRA(), "auto", CPU, "bfloat16", "bf16"),
        (LoRA(), "auto", MAC, "float32", None), (LoRA(), "float32", GPU, "float32", None),
        (LoRA(), "float16", OLD, "float16", "fp16"), (LoRA(), "bfloat16", CPU, "bfloat16", "bf16"),
    ],
)  # fmt: skip
def test_precision_by_mode(adapter, dtype, device, weights, autocast):
    settings = resolve(make(adapter=adapter, dtype=dtype), device)
    config = dpo_config(make(), settings, "")
    assert (settings.weights, settings.autocast) == (weights, autocast)
    assert (config["bf16"], config["fp16"]) == (autocast == "bf16", autocast == "fp16")
    assert config["use_cpu"] is (device is CPU)


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"dtype": "float16", "adapter": LoRA()}, CPU,
         "dtype='float16' does not train on a CPU: use 'float32' or 'bfloat16'."),
        ({"dtype": "bfloat16", "adapter": LoRA()}, OLD,
         "dtype='bfloat16' is not native to this GPU: use 'auto', or 'float16' with an adapter."),
    ],
)  # fmt: skip
def test_a_precision_that_does_not_exist_is_refused(changes, device, message):
    with pytest.raises(UsageError) as error:
        resolve(make(**changes), device)
    assert str(error.value) == message


@pytest.mark.parametrize(("adapter", "rate"), [(None, 5e-7), (LoRA(), 5e-6), (QLoRA(), 5e-6)])
def test_the_learning_rate_by_mode(adapter, rate):
    assert resolve(make(adapter=adapter), GPU).learning_rate == rate
    assert resolve(make(adapter=adapter, learning_rate=1e-4), GPU).learning_rate == 1e-4


@pytest.mark.parametrize(
    ("total", "micro", "processes", "pairs"),
    [
        (16, None, 1, (4, 4)), (16, None, 8, (2, 1)), (7, None, 1, (1, 7)), (6, None, 1, (3, 2)), (1, None, 1, (1, 1)),
        (16, 16, 1, (16, 1)), (64, 2, 4, (2, 8)), (10**14, None, 1, (4, 25 * 10**12)),
    ],
)  # fmt: skip
def test_micro_batch_and_accumulation_follow_from_the_global_batch(total, micro, processes, pairs):
    settings = resolve(make(global_batch_size=total, micro_batch_size=micro), Device("cuda", True, processes))
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
)  # fmt: skip
def test_a_batch_that_does_not_divide_is_refused(total, micro, processes, message):
    with pytest.raises(UsageError) as error:
        resolve(make(global_batch_size=total, micro_batch_size=micro), Device("cuda", True, processes))
    assert str(error.value) == message


@pytest.mark.parametrize("loss", sorted(COUPLED_LOSSES))
def test_a_loss_that_couples_pairs_needs_its_micro_batch(loss):
    with pytest.raises(UsageError, match=f"loss='{loss}' depends on which pairs share a forward"):
        resolve(make(loss=loss), GPU)
    assert resolve(make(loss=loss, micro_batch_size=8), GPU).micro_batch_size == 8


@pytest.mark.parametrize(
    ("changes", "reference", "precompute"),
    [
        ({}, "start weights", True),
        ({"adapter": LoRA()}, "adapter off", False),
        ({"adapter": LoRA(), "trl": {"precompute_ref_log_probs": True}}, "adapter off", True),
        ({"adapter": LoRA(continue_from="x")}, "frozen adapter", False),
        ({"adapter": LoRA(), "reference": "y"}, "other model", True),
        ({"reference": "y"}, "other model", True),
        ({"trl": {"sync_ref_model": True}}, "moving copy", False),
    ],
)
def test_who_the_reference_is(changes, reference, precompute):
    recipe = make(**changes)
    settings = resolve(recipe, GPU)
    assert (settings.reference, settings.precompute) == (reference, precompute)
    assert dpo_config(recipe, settings, "")["precompute_ref_log_probs"] is precompute


def test_the_table_names_dpoconfig_fields_only_and_all_that_are_ours():
    config = dpo_config(make(), resolve(make(), GPU), "out")
    assert config.keys() <= dpoconfig.options().keys() and config["output_dir"] == "out"
    assert dpoconfig.OURS.keys() - {"auto_find_batch_size", "model_init_kwargs"} <= config.keys()


@pytest.mark.parametrize(
    ("loss", "types", "weights"),
    [
        ("hinge", ["hinge"], None), ({"sigmoid": 1.0}, ["sigmoid"], None),
        ({"sigmoid": 1.0, "hinge": 0.2}, ["sigmoid", "hinge"], [1.0, 0.2]),
        ("cdpo", [], None), ({"hinge": 0.5, "cdpo": 1.0}, ["hinge"], [0.5]),
    ],
)  # fmt: skip
def test_trl_gets_its_own_losses_and_weights(loss, types, weights):
    recipe = make(loss=loss)
    config = dpo_config(recipe, resolve(recipe, GPU), "")
    assert (config["loss_type"], config["loss_weights"]) == (types, weights)


def test_trl_options_have_the_last_word():
    recipe = make(trl={"logging_steps": 5, "per_device_eval_batch_size": 2, "use_cpu": True})
    config = dpo_config(recipe, resolve(recipe, GPU), "")
    assert (config["logging_steps"], config["per_device_eval_batch_size"], config["use_cpu"]) == (5, 2, True)


def test_dpoconfig_accepts_the_table(tmp_path):
    from trl import DPOConfig

    recipe = make(loss={"sigmoid": 1.0, "hinge": 0.5}, trl={"lr_scheduler_type": "cosine", "warmup_steps": 0.1})
    config = dpo_config(recipe, resolve(recipe, CPU), str(tmp_path))
    made = DPOConfig(**config)
    assert (made.loss_type, made.loss_weights, made.beta) == (["sigmoid", "hinge"], [1.0, 0.5], 0.1)
    assert (
        made.per_device_train_batch_size == 4
        and made.learning_rate == 5e-7
        and made.gradient_accumulation_steps == 4
        and not made.bf16
    )


def test_show_leaves_out_what_is_trls_own():
    recipe = make(
        learning_rate=1e-6, num_train_epochs=3, micro_batch_size=8, global_batch_size=8, trl={"logging_steps": 10}
    )
    values = {name: (shown["value"], shown["default"]) for name, shown in show(recipe, GPU)["trl"].items()}
    assert values == {"precompute_ref_log_probs": (True, False), "disable_tqdm": (True, False)}


def test_rows_hold_every_field_once_with_its_origin():
    recipe = apply(make(adapter=LoRA(r=8), loss="cdpo", trl={"max_grad_norm": 0.5}), ["beta=0.3"])
    found = rows(recipe, resolve(recipe, GPU))
    expected = [n for n in hints(Recipe) if n not in ("data", "trl", "loss_args")]
    expected += [f"data.{n}" for n in hints(Data)] + [f"adapter.{n}" for n in hints(LoRA)]
    assert sorted(found) == sorted([*expected, "loss_args.label_smoothing", "trl.max_grad_norm"])
    assert (
        found["beta"] == (0.3, "command line")
        and found["adapter.r"] == (8, "recipe file")
        and found["seed"] == (42, "default")
    )
    assert found["loss_args.label_smoothing"] == (0.1, "default")
    by_mode = {key: value for key, (value, where) in found.items() if where == "mode default"}
    assert by_mode == {
        "adapter.alpha": 16, "learning_rate": 5e-6, "micro_batch_size": 4, "reference": "adapter off",
        "dtype": "bfloat16 weights, bf16 autocast",
    }  # fmt: skip


def test_rows_show_where_the_pairs_come_from():
    def mine(row):
        return row

    data = Data(mix={"a.jsonl": 1.0, "org/set": 0.5}, reader=mine, allow=["border"])
    recipe = make(data=data)
    found = {key.removeprefix("data."): row for key, row in rows(recipe, resolve(recipe, GPU)).items()}
    assert found["mix"] == ({"a.jsonl": 1.0, "org/set": 0.5}, "recipe file") and found["path"] == (None, "default")
    assert found["reader"] == ("mine", "recipe file") and found["allow"] == (["border"], "recipe file")
    assert found["streaming"] == (False, "default") and found["drop_truncated"] == (False, "default")
    json.dumps(show(recipe, GPU))


def test_rows_of_a_continued_adapter_do_not_pretend_to_know_its_rank():
    recipe = make(adapter=QLoRA(continue_from="x"))
    shown = {key for key in rows(recipe, resolve(recipe, GPU)) if key.startswith("adapter.")}
    assert shown == {"adapter.continue_from", "adapter.double_quant"}


def test_show_is_json_and_tells_the_step():
    def mine(pairs, *, beta):
        return pairs.h

    shown = json.loads(json.dumps(show(make(loss={mine: 1.0, "sigmoid": 0.5}), GPU)))
    assert shown["recipe"]["loss"] == {"value": {"mine": 1.0, "sigmoid": 0.5}, "origin": "recipe file"}
    assert shown["recipe"]["adapter"] == {"value": None, "origin": "default"}
    assert shown["trl"]["loss_weights"] == {"value": [0.5], "default": None}
    assert (shown["name"], shown["device"], shown["step"]) == (
        "recipe",
        "cuda",
        "16 pairs a step = 4 pairs x 4 accumulation",
    )
    eight = show(make(), Device("cuda", True, 8))
    assert eight["step"] == "16 pairs a step = 2 pairs x 1 accumulation x 8 processes"
    assert show(make(trl={"use_cpu": True}))["device"] == "cpu"


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

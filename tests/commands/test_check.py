"""`check`: what it finds, in which order, the numbers beside it, and every known pain provoked and caught."""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from making import (
    CHATML,
    DATED,
    THINKING,
    make_model,
    make_pairs,
    make_tokenizer,
    make_tokenizer_with_start,
    quiet,
    recipe_for,
    train_in,
    write_jsonl,
    write_splits,
)
from rich.console import Console

from dpo_recipes import Data, LoRA, QLoRA, Recipe, RecipeError, apply, train
from dpo_recipes.errors import UsageError
from dpo_recipes.planning import from_shape, memory, planned_run, trial_steps
from dpo_recipes.planning.memory import PARTS, Unplannable
from dpo_recipes.training.session import Session

module = importlib.import_module("dpo_recipes.commands.check")  # whose name in the package is the function
check = module.check

SPLIT = ["dropped", "truncated", "border", "lost_text", "special_tokens", "start_token", "end_token", "length"]
BEFORE = ["versions", "recipe"]
PAIRS = ["model", "template", "rendering", *(f"{split} {name}" for split in ("train", "eval") for name in SPLIT)]
SEEN = ["evaluation"]  # what the held-out pairs can show
PLAN = ["chosen", "parameters", "memory", "tokens", "pair sharing"]
RUN = ["step 0", "peak memory", "time"]


def even_pairs(n: int, seed: int = 0) -> list[dict]:
    """Pairs of which the chosen side is the longer one in every second; no prompt of one seed is another's."""
    rows = make_pairs(n, seed)
    for at, row in enumerate(rows):
        row["prompt"][0]["content"] += f" ({seed})"
        if at % 2:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[str, str]:
    """24 pairs to train on and 8 to evaluate with."""
    folder = tmp_path_factory.mktemp("pairs")
    train = write_jsonl(folder / "train.jsonl", even_pairs(24))
    evaluation = write_jsonl(folder / "eval.jsonl", even_pairs(8, 9))
    return str(train), str(evaluation)


@pytest.fixture
def made(tiny, files):
    """made(model=..., beta=...) -> a recipe that passes, with some fields changed."""

    def build(**changes) -> Recipe:
        own = changes.pop("data", Data(files[0], eval=files[1]))
        given = {"adapter": LoRA(r=4), "global_batch_size": 4, "max_length": 128, "model": str(tiny())}
        return Recipe(data=own, **{**given, **changes})

    return build


@pytest.fixture
def with_rows(made, tmp_path, made_up_plan):
    """with_rows(rows, model=..., max_dropped=...) -> a recipe on a file of these rows."""

    def build(rows, **changes) -> Recipe:
        own = {name: changes.pop(name) for name in list(changes) if name in Data.__dataclass_fields__}
        held_out = even_pairs(4, 9) if "prompt" in rows[0] else rows[:2]
        return made(data=write_splits(tmp_path, rows, held_out, **own), **changes)

    return build


def names(found) -> list[str]:
    return [finding.name for finding in found["findings"]]


def of(found, name):
    """The one finding of a name."""
    [finding] = [finding for finding in found["findings"] if finding.name == name]
    return finding


def by_level(found, level) -> dict[str, str]:
    return {finding.name: finding.text for finding in found["findings"] if finding.level == level}


# -------------------------------------------------------------------------------------------------------- what passes


@pytest.mark.slow
def test_a_healthy_recipe_passes_in_one_order_and_prints_nothing(made, capsys):
    found = check(made())
    assert names(found) == BEFORE + PAIRS + SEEN + PLAN
    assert {finding.level for finding in found["findings"][1:]} == {"pass", "info"}
    assert found["run"] is None and capsys.readouterr().out == ""
    assert found["data"]["train"]["kept"] == 24 and found["data"]["eval"]["kept"] == 8
    assert json.loads(json.dumps(found)).keys() == {"findings", "data", "plan", "evaluation", "run", "pairs"}


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_unusual_values_are_warnings_that_let_a_run_go_on(made, tmp_path):
    recipe = made(learning_rate=0.05, beta=20.0, trl={"max_steps": 1})
    warnings = by_level(check(recipe), "warn")
    assert {"learning_rate", "beta"} <= warnings.keys()
    said = io.StringIO()
    train(recipe, runs=tmp_path, console=Console(file=said, width=200))
    assert f"learning_rate: {warnings['learning_rate']}" in said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(r=4), QLoRA(r=4), None], ids=["lora", "qlora", "full"])
def test_the_planned_parameters_are_those_of_the_real_model(made, tmp_path, adapter):
    recipe = made(adapter=adapter)
    found = check(recipe)
    start = Session(recipe, quiet())
    start.read_pairs()
    counts = start.make_trainer(tmp_path, []).parameter_counts()
    assert (found["plan"]["trainable"], found["plan"]["total"]) == counts
    assert of(found, "parameters").text == f"{counts[0]:,} of {counts[1]:,} train"
    assert start.report == found["data"]


@pytest.mark.slow
@pytest.mark.usefixtures("made_up_plan")
def test_the_plan_is_made_for_the_longest_pair_of_either_split_as_max_length_cuts_it(made, files, tmp_path):
    longest = max(len(a) + len(b) for a, b in longest_ids(made()))
    assert check(made())["plan"]["tokens"] == longest < 128
    held = [row | {"prompt": [{"role": "user", "content": "x" * 200}]} for row in make_pairs(1)]
    data = Data(files[0], eval=str(write_jsonl(tmp_path / "long.jsonl", held)))
    assert 128 < check(made(data=data, max_length=1024))["plan"]["tokens"] < 300
    assert check(made(data=data, max_length=240))["plan"]["tokens"] == 240


def longest_ids(recipe):
    start = Session(recipe, quiet())
    start.read_pairs()
    sides = []
    for row in (*start.train, *start.eval):
        sides += [(row["prompt_ids"], row["chosen_ids"]), (row["prompt_ids"], row["rejected_ids"])]
    return sides


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 6),
        ({"global_batch_size": 16}, 2),
        ({"global_batch_size": 64}, 1),
        ({"num_train_epochs": 2.5}, 15),
        ({"global_batch_size": 10, "micro_batch_size": 2, "num_train_epochs": 0.5}, 2),
        ({"trl": {"max_steps": 7}}, 7),
    ],
)
def test_the_planned_steps_are_those_that_the_trainer_takes(made, tmp_path, changes, steps):
    recipe = made(**changes)
    # Before the trainer is made: a DPOConfig, which check makes too, resets the state that a living trainer uses.
    assert check(recipe)["plan"]["steps"] == steps
    start = Session(recipe, quiet())
    start.read_pairs()
    trainer = start.make_trainer(tmp_path, [])
    batches = len(trainer.get_train_dataloader())
    accumulation, epochs = trainer.args.gradient_accumulation_steps, trainer.args.num_train_epochs
    own = trainer.args.max_steps if trainer.args.max_steps > 0 else -(-batches // accumulation) * epochs
    assert steps == -(-own // 1)


@pytest.mark.slow
def test_what_check_says_is_what_train_does(made, tmp_path):
    recipe = made(global_batch_size=8, learning_rate=1e-3)
    found = check(recipe)
    run = train_in(tmp_path, recipe)
    told = run.data
    for split in ("train", "eval"):
        assert len(told[split].pop("sha256")) == 64  # which a run that goes on compares, and check does not need
    assert told == json.loads(json.dumps(found["data"]))
    assert len([row for row in run.metrics if "loss" in row]) == found["plan"]["steps"] == 3
    assert of(found, "parameters").text.split(" train")[0] in run.reference["policy"].replace(" parameters", "")


# ------------------------------------------------------------------------------------------------------- what fails


def upside_down(pairs, *, beta):
    """A step down its gradient makes the rejected side likelier."""
    return beta * pairs.h


def lying(pairs, *, beta):
    return (1 - beta * pairs.h).clamp(min=0)


lying.at_start = lambda beta, **_: 5.0

NEEDS = {
    "pairs": "it needs the model, which failed",
    "plan": "it needs the model, which failed",
    "run": "it needs the pairs, which failed",
}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": "./nowhere"}, "model='./nowhere': there is no such folder."),
        ({"data": Data("./nowhere.jsonl")}, "./nowhere.jsonl"),
        ({"micro_batch_size": 3}, "micro_batch_size=3 does not divide the 4 pairs per device and step."),
        ({"loss": "sft"}, "set micro_batch_size"),
        ({"model": "org/model"}, "HF_HUB_OFFLINE is set, and this machine has no copy of model org/model"),
    ],
    ids=["model", "data", "batch", "loss", "hub"],
)
def test_what_cannot_begin_is_one_fail_and_what_depends_on_it_is_skipped(made, changes, text):
    found = check(made(**changes), run=True)
    assert names(found) == [*BEFORE, "model", "pairs", "plan", "run"]
    [(name, said)] = by_level(found, "fail").items()
    assert name == "model" and text in said
    assert by_level(found, "skipped") == NEEDS
    assert found["data"] is found["plan"] is found["run"] is None


@pytest.mark.usefixtures("made_up_plan")
def test_without_a_chat_template_the_pairs_fail_and_the_plan_is_made_for_max_length(made, tiny):
    found = check(made(model=str(tiny(template=None))), run=True)
    assert names(found) == [*BEFORE, "model", "pairs", "chosen", "parameters", "memory", "pair sharing", "run"]
    assert "has no chat template" in by_level(found, "fail")["pairs"]
    assert by_level(found, "skipped") == {"run": NEEDS["run"]}
    assert found["plan"]["tokens"] == 128 and found["plan"]["steps"] == 0
    found = check(made(model=str(tiny(template=None)), max_length=None))
    assert by_level(found, "skipped") == {"plan": "Neither the pairs nor max_length say how long a pair can be."}


def test_rows_that_cannot_be_used_fail_above_the_limit(with_rows):
    rows = even_pairs(20)
    for row in rows[3:6]:
        row["rejected"] = row["chosen"]
    found = check(with_rows(rows))
    assert list(by_level(found, "fail")) == ["pairs"]
    assert (
        "3 of 20 rows cannot be used" in of(found, "pairs").text and "data.max_dropped=0.15" in of(found, "pairs").text
    )
    found = check(with_rows(rows, max_dropped=0.15))
    assert not by_level(found, "fail") and found["data"]["train"]["kept"] == 17
    assert "3 of 20 pairs (15.0%) are dropped" in of(found, "train dropped").text


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (upside_down, "it prefers the rejected side"),
        (lying, "declared 5.0 where policy and reference agree, but it is 1.0"),
    ],
)
def test_a_loss_that_breaks_the_kit_is_a_fail_and_the_rest_goes_on(made, loss, wrong):
    found = check(made(loss=loss))
    assert names(found) == [*BEFORE, f"loss {loss.__name__}", *PAIRS, *SEEN, *PLAN]
    assert list(by_level(found, "fail")) == [f"loss {loss.__name__}"]
    assert wrong in of(found, f"loss {loss.__name__}").text


@pytest.mark.usefixtures("made_up_plan")
def test_a_loss_that_keeps_to_the_kit_passes_with_its_own_numbers(made):
    found = check(made(loss={"cdpo": 1.0, "ipo_sum": 0.5}, loss_args={"label_smoothing": 0.2}))
    passed = by_level(found, "pass")
    assert passed["loss cdpo"] == passed["loss ipo_sum"] == "passes the conformance kit"


# ------------------------------------------------------------------------------------------------------ does it fit

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 500}
OPEN = {"gradient_checkpointing": False}


@pytest.mark.slow
def test_memory_is_planned_for_the_device_that_is_named(made):
    plan = check(made(), gpu="24GB")["plan"]
    assert plan["memory"] == 24 * 10**9 and plan["fits"] and plan["ways_out"] == []
    assert (plan["num_processes"], plan["engine"], plan["buckets"]) == (1, None, 0)
    assert plan["peak"] == sum(plan[part] for part in PARTS)
    own = check(made())["plan"]
    assert own["here"] == own["peak"] and own["process"] > 10**8 and plan["process"] == 0
    assert plan["here"] == pytest.approx(own["here"], rel=0.1)  # but for what the process holds by now
    assert own["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.slow
def test_ways_out_say_what_they_save_and_the_one_that_fits_passes(made):
    recipe = made(adapter=None, micro_batch_size=4, trl=OPEN)
    found = check(recipe, gpu="1MB")
    saved = [way["saves"] for way in found["plan"]["ways_out"]]
    assert saved == sorted(saved, reverse=True) and not any(way["fits"] for way in found["plan"]["ways_out"])
    memory = of(found, "memory")
    assert memory.level == "fail" and not found["plan"]["fits"]
    assert "It does not fit. Ways out, the best first: micro_batch_size=1 " in memory.text
    assert "micro_batch_size=1 saves " in memory.text and ", at the same maths, not enough" in memory.text

    smaller = check(apply(recipe, ["micro_batch_size=1"]), gpu="80GB")["plan"]["peak"]
    assert smaller < found["plan"]["peak"]
    gpu = f"{int(smaller / 0.94)}B"
    found = check(recipe, gpu=gpu)
    best = found["plan"]["ways_out"][0]
    assert best["change"] == "micro_batch_size=1" and best["fits"] and best["same_maths"]
    again = check(apply(recipe, ["micro_batch_size=1"]), gpu=gpu)
    assert of(again, "memory").level == "info" and again["plan"]["ways_out"] == []


@pytest.mark.usefixtures("made_up_plan")
def test_where_no_field_is_left_that_is_said(made):
    found = check(made(adapter=QLoRA(r=4), micro_batch_size=1), gpu="1KB")
    assert of(found, "memory").text.endswith("It does not fit. No field is left to change.")


@pytest.mark.slow
def test_one_of_several_devices_is_planned_with_its_share_of_the_batch(made):
    found = check(made(adapter=None, trl=OPEN), gpu="24GB", num_processes=2, engine="ddp")
    plan = found["plan"]
    assert (plan["num_processes"], plan["engine"], plan["fits"]) == (2, "ddp", True)
    assert plan["buckets"] == 4 * plan["trainable"] and plan["gathered"] == 0
    assert plan["peak"] == sum(plan[part] for part in PARTS)
    assert " of 24.00 GB on each of 2 devices under ddp, in a step: " in of(found, "memory").text
    said = of(found, "processes")
    assert said.level == "info" and "4 pairs a step = 2 pairs x 1 accumulation x 2 processes" in said.text
    assert "not compared with runs on several GPUs" in said.text and "--launch ddp --num-processes 2" in said.text


@pytest.mark.slow
def test_a_model_that_is_not_at_hand_is_planned_by_its_known_shape(tiny, monkeypatch):
    config = json.loads((tiny() / "config.json").read_text())
    monkeypatch.setattr(from_shape, "config_of", lambda model, revision: config if model == "org/known" else None)
    recipe = recipe_for("org/known", adapter=None, max_length=64, micro_batch_size=1)
    found = check(recipe, gpu="24GB", num_processes=4, engine="fsdp2")
    assert by_level(found, "fail").keys() == {"model"}  # which it says as before
    assert "the known shape of org/known alone, for pairs that fill max_length=64" in of(found, "shape").text
    plan = found["plan"]
    assert (plan["num_processes"], plan["engine"], plan["fits"], plan["tokens"]) == (4, "fsdp2", True, 64)
    assert plan["total"] == plan["trainable"] > 0 and plan["weights"] < plan["total"] * 4

    unknown = check(recipe_for("org/unknown"), gpu="24GB")
    assert unknown["plan"] is None and of(unknown, "plan").level == "skipped"
    does_not_divide = check(recipe.evolve(global_batch_size=6), gpu="24GB", num_processes=4)
    assert "do not divide over 4 processes" in of(does_not_divide, "plan").text


@pytest.mark.slow
def test_where_it_does_not_fit_other_engines_and_more_processes_are_ways_out(made):
    found = check(made(adapter=None, micro_batch_size=1, trl=OPEN), gpu="1KB", num_processes=2, engine="zero2")
    changes = {way["change"]: way for way in found["plan"]["ways_out"]}
    assert {"--engine ddp", "--engine fsdp2"} <= changes.keys()  # as DeepSpeed's bucket is larger than this model
    # The bucket, 500 million numbers of 16 bits, less what DDP holds more of everything.
    assert changes["--engine ddp"]["saves"] == pytest.approx(1e9, rel=0.01) and changes["--engine ddp"]["same_maths"]
    assert "--engine fsdp2 saves " in of(found, "memory").text


@pytest.mark.parametrize(
    ("changes", "engine", "text"),
    [
        ({"global_batch_size": 16}, "ddp", "16 pairs do not divide over 3 processes. Nearest: 15 and 18."),
        ({"global_batch_size": 3, "adapter": QLoRA(r=4)}, "zero3", "cannot divide 4-bit weights"),
    ],
)
def test_what_cannot_be_spread_is_a_fail_of_the_plan(made, changes, engine, text):
    found = check(made(**changes), gpu="24GB", num_processes=3, engine=engine)
    assert text in of(found, "plan").text and of(found, "plan").level == "fail"


def test_several_processes_without_gpus_need_to_know_their_memory(made):
    with pytest.raises(UsageError, match="as in --gpu 24GB"):
        check(made(trl={"use_cpu": True}), num_processes=2)


@pytest.mark.slow
def test_a_part_that_would_read_0_is_left_out(made):
    text = of(check(made(), gpu="24GB"), "memory").text
    assert "weights 0.1 MB" in text and " 0.0 MB" not in text


@pytest.mark.parametrize("gpu", ["much", "24 gigs", "0GB", "-1GB"])
def test_a_gpu_that_is_no_amount_of_memory_is_a_typo(made, gpu):
    with pytest.raises(UsageError, match="is no amount of memory. Examples: 24GB"):
        check(made(), gpu=gpu)


@pytest.mark.slow
def test_a_model_that_does_not_run_on_fake_tensors_is_skipped_and_still_tried(made, monkeypatch):
    def refuse(*args, **kwargs):
        raise Unplannable("This model does not run on fake tensors.")

    monkeypatch.setattr(memory, "plan_for", refuse)
    found = check(made(), run=True)
    assert by_level(found, "skipped") == {"plan": "This model does not run on fake tensors."}
    assert names(found)[-5:] == ["plan", "pair sharing", *RUN] and of(found, "peak memory").text.endswith(
        "; not planned"
    )
    assert found["run"]["seconds"] == 0 < found["run"]["seconds_per_step"]


@pytest.mark.usefixtures("made_up_plan")
def test_an_adapter_that_lacks_tensors_fails_before_a_weight_is_read(made, tiny, tmp_path):
    from peft import get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    from dpo_recipes.models.adapter import peft_config

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(tiny())), peft_config(LoRA(r=4)))
    model.save_pretrained(tmp_path / "start")
    recipe = made(adapter=LoRA(continue_from=str(tmp_path / "start")))
    assert not by_level(check(recipe), "fail")
    file = tmp_path / "start" / "adapter_model.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    tensors.pop(first)
    save_file(tensors, file)
    failed = by_level(check(recipe), "fail")
    assert list(failed) == ["model"] and f"Missing from its file: {first} (1 of" in failed["model"]


@pytest.mark.usefixtures("made_up_plan")
def test_a_batch_of_more_pairs_than_there_are_is_a_warning(made):
    found = check(made(global_batch_size=32, micro_batch_size=8))
    assert "there are 24 pairs to train on" in by_level(found, "warn")["batch"]
    assert "batch" not in by_level(check(made(global_batch_size=24, micro_batch_size=8)), "warn")


# ------------------------------------------------------------------------------------------------- what can be seen


@pytest.mark.usefixtures("made_up_plan")
def test_it_is_said_what_the_held_out_pairs_can_show(made):
    found = check(made())
    assert found["evaluation"]["pairs"]["count"] == 8 and "prompts" not in found["evaluation"]
    text = of(found, "evaluation").text
    assert text.startswith("8 held-out pairs. Of differences in accuracy between two runs they show: none at all")
    assert text.endswith("2 points are seen with 3,923 or 9,806 of them.")


def brevity(prompt: str, completion: str) -> float:
    return -len(completion)


@pytest.mark.usefixtures("made_up_plan")
def test_with_a_reward_it_is_said_of_the_prompts_too(made):
    found = check(made(reward=brevity))
    assert found["evaluation"]["prompts"]["count"] == 8
    assert of(found, "answers").text.startswith("8 prompts. Of differences in win rate between two runs they show:")


# ------------------------------------------------------------------------------------------------------- real steps

TRIED = {
    "lora, checkpointing": (WIDE, {}),
    "lora, accumulation": (WIDE, {"micro_batch_size": 2, "trl": OPEN}),
    "full, checkpointing": (WIDE, {"adapter": None}),
    "full, precomputed, wide vocabulary": (
        {"vocab_size": 33000},
        {"adapter": None, "global_batch_size": 1, "trl": OPEN},
    ),
    "bf16 weights": (WIDE, {"dtype": "bfloat16", "trl": OPEN}),
    "qlora": (WIDE, {"adapter": QLoRA(r=4)}),
    "a large evaluation batch": ({}, {"micro_batch_size": 1, "trl": {"per_device_eval_batch_size": 8}}),
    "fewer pairs than a step takes": ({}, {"global_batch_size": 32, "micro_batch_size": 8}),
}


# In 16 bits a CPU's library of matrix products keeps some 70 MB for each new length at first, which `check` says.
OF_NEW_LENGTHS = {"bf16 weights": 0.25e9, "qlora": 0.25e9}


@pytest.mark.slow
@pytest.mark.parametrize("case", TRIED)
def test_real_steps_hold_what_was_planned_and_time_adds_up(made, tiny, case):
    sizes, changes = TRIED[case]
    found = check(made(model=str(tiny(**sizes)), **changes), run=True)
    of_all = [name for name in names(found) if name != "batch"]  # which warns of fewer pairs than a step takes
    assert of_all == BEFORE + PAIRS + SEEN + PLAN + RUN and not by_level(found, "fail")
    run, plan = found["run"], found["plan"]
    # What the tests before this one have freed is used again, so that in this process the plan may be too high.
    assert run["peak"] <= 1.15 * plan["here"] + OF_NEW_LENGTHS.get(case, 0)
    assert run["seconds"] == run["seconds_per_step"] * plan["steps"] > 0
    whole = timedelta(seconds=round(run["seconds"]))
    steps = "1 step takes" if plan["steps"] == 1 else f"{plan['steps']:,} steps take"
    assert f"{steps} {whole}, without evaluation and answers" in of(found, "time").text
    assert of(found, "step 0").text == "policy and reference agree, and the loss has its known value"


@pytest.mark.slow
# Of words fewer than a tile of TRL's head, the system sees less than the tile that is planned: not of a real model's.
@pytest.mark.parametrize("case", ["lora, checkpointing", "full, precomputed, wide vocabulary"])
def test_a_process_of_its_own_takes_what_was_planned(made, tiny, tmp_path, case):
    sizes, changes = TRIED[case]
    recipe = made(model=str(tiny(**sizes)), **changes)
    file = tmp_path / "tried.py"
    file.write_text(f"from dpo_recipes import Data, LoRA, Recipe\n\nrecipe = {recipe!r}\n", encoding="utf-8")
    words = [sys.executable, "-m", "dpo_recipes", "check", str(file), "--run", "--json"]
    coloured = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=coloured, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["run"]["seconds_per_step"] > 0
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["tried.py"]
    assert found["plan"]["here"] == pytest.approx(found["run"]["peak"], rel=0.15)


@pytest.mark.slow
def test_a_plan_for_another_device_stands_beside_a_run_on_this_one(made):
    found = check(made(), gpu="80GB", run=True)
    plan = found["plan"]
    assert plan["here"] == pytest.approx(check(made())["plan"]["peak"], rel=0.1)
    assert plan["here"] > plan["peak"]
    assert found["run"]["peak"] <= 1.15 * plan["here"]


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_leaves_nothing_on_the_disk(made, tmp_path, monkeypatch, fails):
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    trl = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 9}
    assert not by_level(check(made(trl=trl), run=True), "fail")
    if fails:
        monkeypatch.setattr(trial_steps, "_peak", interrupt)
        with pytest.raises(KeyboardInterrupt):
            check(made(), run=True)
    assert os.listdir(tmp_path / "here") == os.listdir(tmp_path / "temporary") == []


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_an_adapter_that_does_not_start_at_zero_is_a_fail(made, monkeypatch):
    model = importlib.import_module("dpo_recipes.models.adapter")
    real = model.peft_config

    def shifted(adapter):
        config = real(adapter)
        config.init_lora_weights = False
        return config

    monkeypatch.setattr(model, "peft_config", shifted)
    found = check(made(), run=True)
    assert names(found)[-1] == "run" and list(by_level(found, "fail")) == ["run"] and found["run"] is None
    assert "the policy must equal its reference, but they differ by" in of(found, "run").text


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_a_loss_that_is_not_what_it_declares_is_a_fail_at_the_first_step_too(made):
    found = check(made(loss=lying), run=True)
    assert list(by_level(found, "fail")) == ["loss lying", "run"]
    assert "Before the first update the loss must be 5, but it is 1 although" in of(found, "run").text


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_only_what_was_looked_at_is_said_of_the_first_step(made, tmp_path):
    mixed = check(made(loss={"sigmoid": 1.0, "sft": 0.1}, micro_batch_size=4), run=True)
    assert of(mixed, "step 0").text == "policy and reference agree"
    other = check(made(reference=str(make_model(tmp_path / "other", seed=1))), run=True)
    assert names(other) == BEFORE + PAIRS + SEEN + PLAN + RUN[1:] and not by_level(other, "fail")


def particular(pairs, *, beta):
    """Passes the kit and breaks on real pairs, which are longer than the kit's."""
    if real_pairs:
        raise ValueError("these pairs are real")
    return (1 - beta * pairs.h).clamp(min=0)


real_pairs = False


def switched_on_after(make_trainer, monkeypatch):
    """make_trainer, behind which the loss `particular` breaks."""

    def make(self, *args, **kwargs):
        trainer = make_trainer(self, *args, **kwargs)
        monkeypatch.setitem(globals(), "real_pairs", True)
        return trainer

    return make


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_whatever_breaks_a_trial_is_a_fail(made, monkeypatch):
    monkeypatch.setattr(Session, "make_trainer", switched_on_after(Session.make_trainer, monkeypatch))
    found = check(made(loss=particular, micro_batch_size=1), run=True)
    assert "The loss particular fails on real pairs: ValueError: these pairs are real" in by_level(found, "fail")["run"]
    assert list(by_level(found, "fail")) == ["run"] and found["run"] is None
    monkeypatch.undo()

    found = check(made(trl={"lr_scheduler_type": "warmup_stable_decay"}), run=True)
    assert any("num_decay_steps" in text for text in by_level(found, "fail").values())

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trial_steps, "_peak", full)
    found = check(made(), run=True)
    assert by_level(found, "fail") == {"run": "OutOfMemoryError: Tried to allocate 2.00 GiB."}


def test_a_bug_of_ours_outside_the_trial_is_not_hidden(made, monkeypatch):
    monkeypatch.setattr(Session, "read_pairs", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check(made(), run=True)


@pytest.mark.usefixtures("made_up_plan")
def test_what_does_not_fit_here_is_not_tried(made, monkeypatch):
    for place in (module, planned_run):
        monkeypatch.setattr(place, "device_memory", lambda kind: 10**6)
    found = check(made(), run=True)
    assert list(by_level(found, "fail")) == ["memory"] and found["run"] is None
    assert re.fullmatch(r"It needs [0-9.]+ [MG]B, and the cpu has 1\.0 MB\.", by_level(found, "skipped")["run"])
    assert by_level(check(made(), gpu="80GB", run=True), "skipped").keys() == {"run"}


@pytest.mark.usefixtures("made_up_plan")
def test_no_pairs_and_a_stream_are_not_tried(made, files):
    stream = check(made(data=Data(files[0], eval=files[1], streaming=True), trl={"max_steps": 5}), run=True)
    assert by_level(stream, "skipped") == {"run": "There are no stored pairs to try."}
    assert stream["plan"]["steps"] == 5 and stream["plan"]["tokens"] == 128 and not by_level(stream, "fail")
    none = check(made(max_length=8, data=Data(files[0], eval=files[1], max_dropped=1.0)), run=True)
    assert list(by_level(none, "fail")) == ["train dropped", "eval dropped"]
    assert by_level(none, "skipped") == {"run": "There are no stored pairs to try."}


# ------------------------------------------------------------------------------------------------- pains, provoked


@pytest.fixture
def with_tokenizer(tmp_path, made_up_plan):
    """with_tokenizer(template, start=True) -> a model folder; `start`: a start token goes before plain text."""

    def build(template: str | None = CHATML, start: bool = False) -> str:
        folder = make_model(tmp_path / "model")
        tokenizer = make_tokenizer_with_start(template) if start else make_tokenizer(template)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return build


def refused(recipe: Recipe, tmp_path: Path, finding) -> None:
    """`train` stops on what `check` fails on, with the same words, and leaves no run behind."""
    assert finding.level == "fail"
    with pytest.raises(RecipeError) as error:
        train_in(tmp_path, recipe)
    assert finding.text in str(error.value)
    assert not any((tmp_path / "runs").glob("*"))


@pytest.mark.slow
def test_a_doubled_start_token(with_rows, with_tokenizer, tmp_path):
    rows = [{"prompt": f"<s>Q{n}", "chosen": f" a{n}", "rejected": f" b{n}"} for n in range(8)]
    recipe = with_rows(rows, model=with_tokenizer(start=True), format="text", eval=0.25)
    finding = of(check(recipe), "train start_token")
    assert finding.text.startswith("6 of 6 pairs (100.0%; rows ") and "start with two start tokens" in finding.text
    refused(recipe, tmp_path, finding)
    whole = [row | {"prompt": row["prompt"][3:]} for row in rows]
    found = check(with_rows(whole, model=recipe.model, format="text", eval=0.25))
    assert found["data"]["train"]["start_token"] == {"none": 0, "one": 6, "doubled": 0, "rows": [], "wanted": True}
    assert of(found, "train start_token").level == "pass"


def test_a_doubled_start_token_in_a_template(made, with_tokenizer):
    found = check(made(model=with_tokenizer("{{ '<s><s>' }}" + CHATML, start=True)))
    assert found["data"]["train"]["start_token"]["doubled"] == 24 and of(found, "train start_token").level == "fail"
    found = check(made(model=with_tokenizer("{{ '<s>' }}" + CHATML, start=True)))
    assert found["data"]["train"]["start_token"]["one"] == 24 and not by_level(found, "fail")


@pytest.mark.slow
def test_a_missing_and_a_doubled_end_token(made, with_tokenizer, tmp_path):
    recipe = made(model=with_tokenizer(CHATML.replace("<|im_end|>'", "'")))
    finding = of(check(recipe), "train end_token")
    assert finding.text.startswith("The end token is missing in 24 of 24 pairs (100.0%) and repeated in 0 of 24 pairs")
    refused(recipe, tmp_path, finding)
    found = check(made(model=with_tokenizer(CHATML.replace("<|im_end|>'", "<|im_end|><|im_end|>'"))))
    assert found["data"]["train"]["end_token"]["repeated"] == 24 and of(found, "train end_token").level == "fail"


def forms(question: str, chosen: str, rejected: str) -> dict[str, dict]:
    """One pair in four shapes."""
    asked, sides = {"role": "user", "content": question}, {"chosen": chosen, "rejected": rejected}

    def said(text):
        return {"role": "assistant", "content": text}

    return {
        "preference": {"prompt": [asked], **{name: [said(text)] for name, text in sides.items()}},
        "ultrafeedback": {
            "prompt": question,
            "prompt_id": "1",
            "messages": [asked, said(chosen)],
            "score_chosen": 8.0,
            "score_rejected": 4.0,
            **{name: [asked, said(text)] for name, text in sides.items()},
        },
        "sharegpt": {
            "conversations": [{"from": "human", "value": question}],
            **{name: {"from": "gpt", "value": text} for name, text in sides.items()},
        },
        "hh_rlhf": {name: f"\n\nHuman: {question}\n\nAssistant: {text}" for name, text in sides.items()},
    }


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_the_same_pairs_in_every_shape_are_the_same_tokens(made, tmp_path):
    rows = [
        forms(r["prompt"][0]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in even_pairs(12)
    ]
    read = {}
    for form in rows[0]:
        path = write_jsonl(tmp_path / f"{form}.jsonl", [row[form] for row in rows])
        found = check(made(data=Data(str(path), eval=0.2)))
        assert found["data"]["format"] == form and not by_level(found, "fail")
        read[form] = {name: found["data"][name] for name in ("train", "eval", "fingerprint", "text")}
    assert read["sharegpt"] == read["hh_rlhf"] == read["ultrafeedback"] == read["preference"]


def test_rows_of_the_wrong_shape_name_the_columns(with_rows):
    rows = [{"question": "q", "good": "a", "bad": "b"}] * 5
    found = check(with_rows(rows, eval=0.2))
    [(name, text)] = by_level(found, "fail").items()
    assert name == "pairs" and all(column in text for column in ("question", "good", "bad"))


@pytest.mark.slow
def test_pairs_that_truncation_makes_identical(with_rows, tmp_path):
    rows = even_pairs(20)
    for n in (3, 4):
        for side in ("chosen", "rejected"):
            rows[n][side][0]["content"] = "the same words " * 10 + side
    recipe = with_rows(rows)
    finding = of(check(recipe), "train dropped")
    assert "identical after truncation: 2 of 20 pairs (10.0%; rows 3, 4)." in finding.text
    refused(recipe, tmp_path, finding)
    assert check(with_rows(rows, max_length=256))["data"]["train"]["dropped"] == {}


@pytest.mark.slow
def test_sides_that_lose_their_end_are_counted_with_the_length_that_would_keep_them(with_rows):
    rows = even_pairs(20)
    for row in rows[:6]:
        row["chosen"][0]["content"] += " and so on" * 10
    found = check(with_rows(rows))
    assert list(by_level(found, "fail")) == ["train truncated"]
    most = found["data"]["train"]["max_length_keeping_99"]
    assert f"Set max_length={most}, or data.drop_truncated=True." in of(found, "train truncated").text
    assert of(check(with_rows(rows, max_length=most)), "train truncated").level == "pass"
    dropped = check(with_rows(rows, drop_truncated=True, max_dropped=0.5))
    assert not by_level(dropped, "fail") and dropped["data"]["train"]["kept"] == 14


@pytest.mark.slow
def test_a_generation_prompt_that_opens_thinking_is_no_prefix(made, with_tokenizer, tmp_path):
    recipe = made(model=with_tokenizer(THINKING))
    finding = of(check(recipe), "train border")
    assert finding.text.startswith("24 of 24 pairs (100.0%; rows 0, 1, 2) have a prompt whose tokens change")
    assert "Its end '<think>\\n' is left out" in finding.text
    refused(recipe, tmp_path, finding)
    allowed = recipe.evolve(data=recipe.data.evolve(allow=["border"]))
    assert of(check(allowed), "train border").level == "warn" and not by_level(check(allowed), "fail")


def test_length_that_tells_the_sides_apart(with_rows):
    found = check(with_rows(make_pairs(20)))
    assert found["data"]["train"]["pick_longer_accuracy"] == found["data"]["train"]["longer_chosen"] == 1.0
    assert list(by_level(found, "warn")) == ["train length"] and not by_level(found, "fail")
    assert "in 100.0% of the pairs" in of(found, "train length").text
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in make_pairs(20)]
    assert "in 0.0% of the pairs" in by_level(check(with_rows(swapped)), "warn")["train length"]


@pytest.mark.usefixtures("made_up_plan")
def test_todays_date_and_an_unset_thinking_switch(made, tiny, files):
    dated = functools.partial(made, model=str(tiny(template=DATED)), max_length=192)
    said = [f.text for f in check(dated())["findings"] if (f.level, f.name) == ("warn", "template")]
    assert len(said) == 2
    assert "prints today's date" in said[0] and "set data.template_date" in said[0]
    assert "can think" in said[1] and "data.chat_template_kwargs={'enable_thinking': False}" in said[1]
    asked = Data(files[0], eval=files[1], template_date="2025-07-08", chat_template_kwargs={"enable_thinking": False})
    found = check(dated(data=asked))
    assert of(found, "template").level == "pass" and not by_level(found, "fail")


@pytest.mark.slow
def test_pairs_that_stand_the_other_way_round_too(with_rows, tmp_path):
    rows = even_pairs(20)
    rows[7] = rows[6] | {"chosen": rows[6]["rejected"], "rejected": rows[6]["chosen"]}
    recipe = with_rows(rows)
    finding = of(check(recipe), "contradictions")
    assert finding.text.startswith("2 train pairs stand in the data the other way round too: rows 6, 7")
    refused(recipe, tmp_path, finding)


def test_a_tokenizer_with_more_tokens_than_the_model_is_seen_in_the_configuration(made, with_tokenizer):
    folder = with_tokenizer()
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{n}>" for n in range(10)])
    tokenizer.save_pretrained(folder)
    failed = by_level(check(made(model=folder), run=True), "fail")
    assert list(failed) == ["model"] and "has 270 tokens, but the model 264 embeddings" in failed["model"]

"""Recipes, overrides and options that cannot work: one message with the reason, before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from making import write_recipe

from dpo_recipes import Data, LoRA, Recipe, RecipeError, apply, check, load, train


@pytest.fixture(autouse=True)
def _files(here) -> None:
    """A few files that options may name."""
    (here / "no.json").write_text("{'single': 'quotes'}")
    (here / "fine.json").write_text("{}")


@pytest.fixture
def nothing_loads(monkeypatch):
    """Weights that are asked for are a failure of the test: a refusal must come before them."""

    def load_weights(*args, **kwargs):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("dpo_recipes.models.weights.load_weights", load_weights)


@pytest.fixture
def value() -> Recipe:
    """A recipe whose model and data are never looked at."""
    return make_value("m", "d")


@pytest.fixture
def recipe(tiny, pairs_file) -> Recipe:
    """One that trains: 18 pairs, 3 steps."""
    return make_value(str(tiny()), str(pairs_file))


def make_value(model: str, pairs: str) -> Recipe:
    return Recipe(
        model=model,
        data=Data(pairs, eval=0.25),
        adapter=LoRA(r=4),
        learning_rate=1e-3,
        global_batch_size=6,
        max_length=112,
        trl={"gradient_checkpointing": False},
    )


# What stands behind the recipe's name on the command line, and a telling part of the message. All of it is known from
# the values alone.
REFUSED_AS_VALUES = [
    # Numbers that cannot be meant
    ("learning_rate=1e6", "must be at most 1: one step would overwrite the weights"),
    ("beta=1e30", "must be at most 1,000: "),
    ("beta=1e-12", "must be at least 1e-05: "),
    ("num_train_epochs=1000", "asked for in steps, trl.max_steps"),
    ("global_batch_size=1000000000", "number of pairs in one optimiser step"),
    ("max_length=1000000000", "none switches truncation off"),
    ("max_length=1e9", "must be a whole number or none"),
    ("seed=-1", "must be in [0, 2**32)"),
    ("adapter.alpha=1000000", "scales the adapter by 250000"),
    ("adapter.r=1000000", "no adapter is wider than the layers"),
    ("adapter.dropout=1.5", "must be in [0, 1)"),
    ("adapter.dropout=0.1", "does nothing, as TRL disables all dropout"),
    ("trl.max_steps=0", "leave it out to train for num_train_epochs"),
    ("trl.max_steps=-5", "must be at least 1"),
    ("trl.weight_decay=-0.1", "must be at least 0 and at most 1"),
    ("trl.max_grad_norm=-1", "0 switches clipping off"),
    ("trl.ld_alpha=1.5", "weight of the tokens past the shorter side"),
    ("trl.adam_beta1=1.5", "must be at least 0 and below 1"),
    ("trl.save_steps=0", "set the strategy of the same name to 'no'"),
    ("trl.logging_steps=0", "must be above 0"),
    ("trl.warmup_steps=-3", "a number below 1 is a share of all steps"),
    ("trl.dataset_num_proc=0", "it is a number of processes"),
    ("trl.dataloader_num_workers=-1", "0 reads in this one"),
    # Options that do nothing, or harm, whatever their value
    ("trl.label_smoothing=0.7", "loss='cdpo' is label smoothing"),
    ("trl.use_liger_kernel=true", "not applied to TRL's DPO loss"),
    ("trl.resume_from_checkpoint=x", "only example scripts read it"),
    ("trl.hub_model_id=a/b", "read with push_to_hub only"),
    ("trl.gradient_checkpointing_kwargs={'use_reentrant':True}", "read with gradient_checkpointing"),
    ("trl.dataloader_prefetch_factor=2", "read with dataloader_num_workers only"),
    ("trl.bf16=true", "has a place of its own: set dtype"),
    ("trl.fp16_full_eval=true", "would cast the policy's own weights to 16 bit for good"),
    ("trl.metric_for_best_model=loss", "would do nothing here"),
    ("trl.neftune_noise_alpha=5.0", "so that DPO compares noise"),
    ("trl.length_column_name=size", "the lengths of the pairs have a column already"),
    ("trl.train_sampling_strategy=batch_rebalance", "is not one of random, sequential, group_by_length"),
    # Words
    ("trl.report_to=wandbb", "Did you mean 'wandb'?"),
    ("trl.optim=adamw_torhc", "Did you mean 'adamw_torch'?"),
    ("trl.lr_scheduler_type=cosin", "Did you mean 'cosine'?"),
    ("trl.load_best_model_at_end=true", "needs evaluations while training"),
    ("trl.save_strategy=best", "needs evaluations while training"),
    # Overrides of every wrong form
    ("beta 0.1", "nor KEY=VALUE"),
    ("--beta=0.1", "Write beta=VALUE."),
    ("beta=", "nor KEY=VALUE"),
    ("beta==0.1", "must be a number such as 0.1"),
    ("beta＝0.1", "full-width equals sign"),
    ("data=other.jsonl", "Write data.path=VALUE"),
    ("adapter.r=16.5", "must be a whole number"),
    ("adapter=LoRA(r=8)", "as in adapter=lora adapter.r=8"),
    ("loss=Sigmoid", "Did you mean 'sigmoid'?"),
    ("loss={'sigmod':1.0}", "Did you mean 'sigmoid'?"),
    ("loss={'sigmoid':-1}", "weights are positive, finite numbers"),
    ("model= ", "must be text"),
    ("learning_rate=5e‑6", "must be a number such as 0.1 or 5e-7"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED_AS_VALUES, ids=[case[0] for case in REFUSED_AS_VALUES])
def test_a_value_that_cannot_work_is_refused_where_it_is_set(value, override, message):
    with pytest.raises(RecipeError) as refused:
        apply(value, [override])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_two_lengths_of_one_run_are_refused(value):
    with pytest.raises(RecipeError, match=r"num_train_epochs=2 does nothing beside trl\.max_steps=5"):
        apply(value, ["num_train_epochs=2", "trl.max_steps=5"])


# Known on this machine, without the pairs.
REFUSED_BY_THE_MACHINE = [
    (["trl.report_to=swanlab"], "needs the package swanlab, which is not installed: pip install swanlab"),
    (["trl.report_to=tensorboard,clearml"], "trl.report_to=tensorboard needs the package tensorboard"),
    (["trl.optim=galore_adamw"], "trl.optim=galore_adamw needs the package galore-torch"),
    (["trl.deepspeed=fine.json"], "needs the package deepspeed"),
    (["trl.accelerator_config=missing.json"], "there is no such file in"),
    (["trl.accelerator_config=no.json"], "is no JSON file"),
    (["trl.fsdp=full_shard"], "use dpo-recipes train RECIPE --launch fsdp2"),
    (["trl.ddp_backend=gloo"], "trl.ddp_backend='gloo' would do nothing here: it is read where several processes"),
    (["trl.log_on_each_node=false"], "read where several processes train together"),
    (["trl.optim=sgd", "trl.adam_beta2=0.95"], "trl.adam_beta2=0.95 would do nothing here: optim='sgd' does not read"),
    (["trl.optim_args=momentum=0.9"], "trl.optim_args: momentum=0.9 would do nothing here: optim='adamw_torch_fused'"),
    (["trl.optim=sgd", "trl.optim_args=momentum=0.9,momentun=0.9"], "optim_args: momentun=0.9 would do nothing here"),
    (["trl.activation_offloading=true"], "and here is no GPU. Delete it."),
    (["trl.torch_compile=true", "trl.torch_compile_backend=indutcor"], "Did you mean 'inductor'?"),
    (["trl.torch_compile_mode=max_autotune"], "Did you mean 'max-autotune'?"),
    (["trl.push_to_hub=true"], "sends the model to the hub, and HF_HUB_OFFLINE is set"),
    (["trl.lr_scheduler_type=cosine_with_min_lr"], "min_lr"),
    (["trl.lr_scheduler_type=cosine", "trl.lr_scheduler_kwargs={'cycles':2}"], "cannot be made: "),
    (["trl.lr_scheduler_type=reduce_lr_on_plateau"], "requires an eval strategy"),
]
MACHINE_IDS = [" ".join(case[0]) for case in REFUSED_BY_THE_MACHINE]


@pytest.mark.parametrize(("overrides", "message"), REFUSED_BY_THE_MACHINE, ids=MACHINE_IDS)
def test_what_this_machine_cannot_do_is_refused_before_the_pairs(
    recipe, overrides, message, here, monkeypatch, nothing_loads
):
    real = importlib.util.find_spec
    absent = {"swanlab", "tensorboard", "clearml", "galore_torch", "deepspeed"}
    monkeypatch.setattr("dpo_recipes.training.options.find_spec", lambda name: None if name in absent else real(name))

    def read_pairs(session):
        raise AssertionError("the pairs were read")

    monkeypatch.setattr("dpo_recipes.training.session.Session.read_pairs", read_pairs)
    with pytest.raises(RecipeError) as refused:
        train(apply(recipe, overrides), runs=here / "runs")
    assert message in str(refused.value)
    assert not list(here.glob("runs/*"))


HEALTHY_OPTIMIZERS = [
    {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
    {"adam_beta2": 0.999},  # as it is by default
    {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
    {"optim": "rmsprop", "optim_args": "alpha=0.9"},
    {"optim": "adafactor"},
]


@pytest.mark.parametrize("options", HEALTHY_OPTIMIZERS, ids=str)
def test_numbers_that_the_optimizer_reads_are_taken(tmp_path, options):
    from trl import DPOConfig

    from dpo_recipes.training.options import try_options

    try_options(DPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **options), options)


def test_what_several_processes_read_is_taken_where_they_are(monkeypatch):
    from dpo_recipes.training.options import require_options

    monkeypatch.setenv("WORLD_SIZE", "2")
    require_options({"ddp_backend": "gloo", "ddp_timeout": 60})


# Known when the pairs are counted: 18 pairs, 3 steps.
TOO_LONG_FOR_THE_RUN = [
    (["trl.warmup_steps=100"], "fail", "trl.warmup_steps=100 in a run of 3 steps: the learning rate would never reach"),
    (["trl.warmup_steps=9", "trl.max_steps=4"], "warn", "A share of all steps fits any run: trl.warmup_steps=0.1."),
    (["trl.eval_strategy=steps", "trl.eval_steps=50"], "warn", "there is no evaluation while training"),
    (["trl.save_steps=50"], "warn", "there is no checkpoint before the end"),
    (["trl.logging_steps=50"], "warn", "only the first steps are logged"),
    (["trl.max_steps=300"], "warn", "reads each of the 18 pairs 100 times"),
    (
        ["trl.load_best_model_at_end=true", "trl.eval_strategy=epoch", "trl.save_strategy=epoch"],
        "warn",
        "the checkpoint with the lowest loss on the held-out pairs, not the last one",
    ),
]
LENGTH_IDS = [" ".join(case[0]) for case in TOO_LONG_FOR_THE_RUN]


@pytest.mark.parametrize(("overrides", "level", "message"), TOO_LONG_FOR_THE_RUN, ids=LENGTH_IDS)
def test_what_does_not_fit_into_the_run_is_a_finding(value, overrides, level, message):
    from dpo_recipes.training.length import length_findings

    (finding,) = length_findings(apply(value, overrides), 18)
    assert finding.level == level and message in finding.text


@pytest.mark.parametrize("overrides", [[], ["trl.warmup_steps=0.1"], ["trl.warmup_steps=2"], ["trl.save_steps=2"]])
def test_what_fits_into_the_run_is_no_finding(value, overrides):
    from dpo_recipes.training.length import length_findings

    assert length_findings(apply(value, overrides), 18) == []


# Pairs to train on, and a warm-up that is all of the run.
ONE_STEP = [
    (1, ["trl.warmup_steps=0.1"], "A step takes 6 pairs, and there is 1 pair to train on. Bring more pairs"),
    (6, ["trl.warmup_steps=0.1"], "and there are 6 pairs to train on"),
    (18, ["trl.warmup_steps=0.1", "trl.max_steps=1"], "Set trl.max_steps=2 or more, or trl.warmup_steps=0."),
    (18, ["trl.warmup_steps=1", "trl.max_steps=1"], "trl.warmup_steps=1 makes the learning rate 0 in it"),
]


@pytest.mark.parametrize(("pairs", "overrides", "message"), ONE_STEP)
def test_a_run_of_one_step_that_warms_up_would_train_nothing(value, pairs, overrides, message):
    from dpo_recipes.training.length import length_findings

    (finding,) = length_findings(apply(value, overrides), pairs)
    assert finding.level == "fail" and message in finding.text


@pytest.mark.parametrize(
    ("pairs", "overrides"),
    [(1, []), (1, ["trl.warmup_steps=0"]), (1, ["trl.warmup_steps=0.1", "num_train_epochs=2"]), (1, ["beta=0.2"])],
)
def test_a_run_of_few_steps_that_trains_something_is_no_finding(value, pairs, overrides):
    from dpo_recipes.training.length import length_findings

    findings = length_findings(apply(value, overrides), pairs)
    assert [finding.name for finding in findings] == ["batch"]  # that one pair fills no step is said of it alone


def test_a_warm_up_longer_than_the_run_stops_training_and_check_before_the_weights(
    recipe, here, nothing_loads, monkeypatch
):
    monkeypatch.setattr("dpo_recipes.commands.check.add_plan", lambda *given: None)  # it says nothing of this
    too_long = apply(recipe, ["trl.warmup_steps=100"])
    with pytest.raises(RecipeError, match=r"warm-up: trl\.warmup_steps=100 in a run of 3 steps"):
        train(too_long, runs=here / "runs")
    assert not list(here.glob("runs/*"))
    found = [finding for finding in check(too_long)["findings"] if finding.name == "warm-up"]
    assert [finding.level for finding in found] == ["fail"]


# A recipe file, and a telling part of the message.
IMPORTS = "from dpo_recipes import Data, LoRA, Recipe\n"
RECIPE = 'recipe = Recipe(model="m", data=Data("d"))\n'
BROKEN_FILES = {
    "calls sys.exit": ("import sys\nsys.exit(3)\n", ", line 3: SystemExit: 3."),
    "tab error": ("if True:\n\tx = 1\n        y = 2\n", ", line 4: this is not valid Python: inconsistent use of tabs"),
    "missing package": (
        "import no_such_package\n",
        ", line 2: ModuleNotFoundError: No module named 'no_such_package'.",
    ),
    "a function": ("def recipe():\n    pass\n", "not a value of type function."),
    "a list": ("recipe = []\n", "not a value of type list."),
    "nothing": ("", "and nothing of that name is in it."),
    "two recipes": (RECIPE + RECIPE, "in lines 2 and 3: only the last would be used."),
    "endless recursion": ("def f():\n    f()\nf()\n", "RecursionError"),
    "null bytes": ("\0", "null bytes"),
}


@pytest.mark.parametrize(("body", "message"), BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_broken_recipe_file_is_one_message_with_its_place(here, body, message):
    file = write_recipe(here / "mine.py", body, head=IMPORTS)
    with pytest.raises(RecipeError) as refused:
        load(file)
    assert str(file) in str(refused.value) and message in str(refused.value)


def test_a_folder_is_no_recipe(here):
    with pytest.raises(RecipeError, match="is a folder, and a recipe is a Python file. Files in it: none."):
        load(here)


def test_what_a_recipe_file_prints_does_not_spoil_the_json(here):
    write_recipe(here / "loud.py", 'print("hello")\n' + RECIPE, head=IMPORTS)
    command = [sys.executable, "-m", "dpo_recipes", "show", "loud.py", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "loud" and done.stderr == "hello\n"


def test_a_recipe_that_asks_for_nothing_unusual_passes_the_checks_of_its_options(value):
    from dpo_recipes.training.options import require_options

    require_options(value.trl)
    require_options({"accelerator_config": "fine.json", "report_to": "none", "optim": "sgd"})
    require_options({"accelerator_config": {"split_batches": False}, "report_to": ["none"]})

"""`key=value`: typed from its field, and a clear message for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.errors import UsageError
from dpo_recipes.recipe.overrides import apply, literal

RECIPE = Recipe(
    model="m",
    data=Data("d", train="train_prefs", chat_template_kwargs={"enable_thinking": False, "tone": "dry"}),
    adapter=LoRA(r=32),
    loss="sigmoid",
    beta=0.1,
    num_train_epochs=2,
    trl={"lr_scheduler_type": "cosine"},
)
FULL = Recipe(model="m", data=Data("d"))


def get(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("beta=0.05", 0.05),
        ("beta=1", 1.0),
        ("beta = 0.05", 0.05),
        ("beta=5e-2", 0.05),
        ("learning_rate=none", None),
        ("learning_rate=1e-5", 1e-5),
        ("global_batch_size=64", 64),
        ("max_length=none", None),
        ("max_length=2048", 2048),
        ("model=a=b", "a=b"),
        ("model=123", "123"),
        ("model=None", "None"),
        ("revision=none", None),
        ("revision=1.0", "1.0"),
        ("trust_remote_code=true", True),
        ("trust_remote_code=False", False),
        ("seed=7", 7),
        ("dtype=float32", "float32"),
        ("loss=hinge", "hinge"),
        ('loss={"sigmoid": 1, "cdpo": 0.1}', {"sigmoid": 1, "cdpo": 0.1}),
        ("data.path=a/b.jsonl", "a/b.jsonl"),
        ("data.train=train[:100]", "train[:100]"),
        ("data.eval=0.1", 0.1),
        ("data.eval=test", "test"),
        ("data.chat_template={{ x }} = y", "{{ x }} = y"),
        ("data.template_date=2025-07-08", "2025-07-08"),
        ("data.reader=none", None),
        ("data.mix={'a.jsonl': 1.0, 'org/set': 0.5}", {"a.jsonl": 1.0, "org/set": 0.5}),
        ("data.allow=border,truncated", ["border", "truncated"]),
        ("data.allow=border", ["border"]),
        ("data.allow=['border']", ["border"]),
        ("data.allow=[]", []),
        ("data.drop_truncated=true", True),
        ("data.chat_template_kwargs.enable_thinking=true", True),
        ("data.chat_template_kwargs={'a': 1}", {"a": 1}),
        ("adapter.r=64", 64),
        ("adapter.alpha=none", None),
        ("adapter.target_modules=all-linear", "all-linear"),
        ("adapter.target_modules=q_proj,v_proj", ["q_proj", "v_proj"]),
        ("adapter.target_modules=['q_proj', 'v_proj']", ["q_proj", "v_proj"]),
        ("adapter.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("adapter.use_dora=true", True),
        ("trl.max_grad_norm=0.5", 0.5),
        ("trl.warmup_steps=10", 10),
        ("trl.optim=adafactor", "adafactor"),
        ("trl.gradient_checkpointing=false", False),
        ("trl.report_to=none", "none"),
        ("trl.report_to=None", "none"),
        ("trl.report_to=wandb,trackio", ["wandb", "trackio"]),
        ("trl.lr_scheduler_kwargs={'num_cycles': 2}", {"num_cycles": 2}),
        ("trl.optim_args=a=1,b=2", "a=1,b=2"),
        ("trl.pad_to_multiple_of=none", None),
        ("trl.lr_scheduler_type=linear", "linear"),
    ],
)
def test_a_value_is_typed_from_its_field(text, value):
    key = text.partition("=")[0].strip()
    found = get(apply(RECIPE, [text]), key)
    assert found == value and type(found) is type(value)


def test_the_rest_stays_as_it_was():
    changed = apply(
        RECIPE,
        ["beta=0.3", "adapter.alpha=8", "data.eval=test", "data.chat_template_kwargs.tone=warm", "trl.save_steps=5"],
    )
    assert changed.adapter == LoRA(r=32, alpha=8) and changed.data.train == "train_prefs"
    assert changed.data.chat_template_kwargs == {"enable_thinking": False, "tone": "warm"}
    assert changed.trl == {"lr_scheduler_type": "cosine", "save_steps": 5}
    assert RECIPE.beta == 0.1 and RECIPE.trl == {"lr_scheduler_type": "cosine"} and apply(RECIPE, []) == RECIPE


def test_a_run_is_capped_whatever_the_epochs_of_the_file():
    changed = apply(RECIPE, ["trl.max_steps=2"])
    assert (changed.num_train_epochs, changed.trl["max_steps"]) == (2, 2)
    assert apply(changed, ["data.streaming=true"]).data.streaming is True


def test_a_dictionary_may_be_set_as_a_whole_and_then_in_parts():
    changed = apply(RECIPE, ["trl={'max_grad_norm': 0.5}", "trl.save_steps=5", "loss=cdpo", "loss_args={}"])
    assert changed.trl == {"max_grad_norm": 0.5, "save_steps": 5} and changed.loss_args == {}


def test_a_path_takes_the_place_of_a_mix_and_a_mix_that_of_a_path():
    mixed = apply(RECIPE, ["data.mix={'a.jsonl': 1, 'b.jsonl': 0.5}"])
    assert mixed.data.paths == {"a.jsonl": 1, "b.jsonl": 0.5} and mixed.data.path is None
    assert (mixed.data.train, mixed.data.chat_template_kwargs) == ("train", RECIPE.data.chat_template_kwargs)
    again = apply(mixed, ["data.path=c.jsonl"])
    assert again.data.paths == {"c.jsonl": 1.0} and again.data.mix == {} and again.data.train == "train"
    assert apply(RECIPE, ["data.mix={'a.jsonl': 1, 'org/set': 1}"]).data.train == "train_prefs"
    assert apply(mixed, ["data.eval=0.1"]).data.mix == mixed.data.mix
    for both in (["data.path=c.jsonl", "data.mix={'a': 1}"], ["data.mix={}"], ["data.path=none"]):
        with pytest.raises(UsageError, match="one of the two"):
            apply(mixed, both)


def test_the_adapter_is_chosen_by_name_and_keeps_its_numbers():
    assert apply(RECIPE, ["adapter=none"]).adapter is None is apply(RECIPE, ["adapter=None"]).adapter
    assert apply(RECIPE, ["adapter=qlora", "adapter.double_quant=false"]).adapter == QLoRA(r=32, double_quant=False)
    assert apply(apply(RECIPE, ["adapter=qlora"]), ["adapter=LoRA"]).adapter == LoRA(r=32)
    assert apply(FULL, ["adapter=lora", "adapter.r=8"]).adapter == LoRA(r=8)


def test_a_continued_adapter_brings_its_own_rank():
    changed = apply(RECIPE, ["adapter.continue_from=runs/x/model"]).adapter
    assert changed == LoRA(continue_from="runs/x/model") and changed.given == {"continue_from"}
    with pytest.raises(UsageError, match=r"adapter\.r cannot stand beside continue_from"):
        apply(RECIPE, ["adapter.continue_from=x", "adapter.r=8"])


REFUSED = [
    (["beta"], "'beta' is neither an option (see --help) nor KEY=VALUE, such as beta=0.05. Write beta=VALUE."),
    (["beta", "0.05"], "'beta' is neither an option (see --help) nor KEY=VALUE, such as beta=0.05. Write beta=VALUE."),
    (["beta=", "0.05"], "'beta=' is neither an option"),
    (["data.format="], "such as beta=0.05. Write data.format=VALUE (in a recipe file data=Data(format=VALUE))."),
    (["=0.05"], "'=0.05' is neither an option"),
    (["trl.=1"], "'trl.=1' is neither an option"),
    ([""], "'' is neither an option"),
    (["0.05"], "'0.05' is neither an option"),
    (["bets"], "such as beta=0.05. Did you mean 'beta'?"),
    (
        ["--beta", "0.05"],
        "'--beta' is neither an option (see --help) nor KEY=VALUE, such as beta=0.05. Write beta=VALUE.",
    ),
    (
        ["--beta=0.05"],
        "'--beta=0.05' is neither an option (see --help) nor KEY=VALUE, such as beta=0.05. Write beta=VALUE.",
    ),
    (["--betta"], "such as beta=0.05. Did you mean 'beta'?"),
    (["--lora_r", "8"], "Write adapter.r=VALUE (in a recipe file adapter=LoRA(r=VALUE))."),
    (["-b", "1"], "'-b' is neither an option"),
    (["beta=1", "beta=2"], "beta is set twice, to '1' and to '2': keep one"),
    (["loss=sigmoid:1", "loss=sft:0.1"], "keep one, and quote a dict."),
    (["betta=1"], "betta is not a field of the recipe. Did you mean 'beta'?"),
    (["βeta=1"], "βeta is not a field of the recipe. Did you mean 'beta'?"),
    (["kettle=1"], "kettle is not a field of the recipe. `dpo-recipes show RECIPE` lists them all."),
    (["r=8"], "r is not a field of the recipe. Write adapter.r=VALUE (in a recipe file adapter=LoRA(r=VALUE))."),
    (["adapter.R=8"], "Write adapter.r=VALUE"),
    (["lora.r=8"], "Write adapter.r=VALUE"),
    (["format=text"], "Write data.format=VALUE (in a recipe file data=Data(format=VALUE))."),
    (["data.beta=1"], "data.beta is not a field of the recipe. Write beta=VALUE."),
    (["lr=1"], "Write learning_rate=VALUE."),
    (["model_name_or_path=x"], "Write model=VALUE."),
    (
        ["warmup_steps=1"],
        "It is DPOConfig's: write trl.warmup_steps=VALUE (in a recipe file trl={'warmup_steps': VALUE}).",
    ),
    (
        ["over_fitting=off"],
        "It is a rule of the guard: write rules.over_fitting=VALUE (in a recipe file rules={'over_fitting': VALUE}).",
    ),
    (["max_prompt_length=512"], "max_prompt_length is gone since TRL 0.29: set max_length"),
    (["trl.warmup_ratio=0.1"], "trl.warmup_ratio='0.1' is gone from transformers 5: trl={'warmup_steps': 0.1}"),
    (["gradient_accumulation_steps=8"], "It is set by global_batch_size (and micro_batch_size)."),
    (["output_dir=x"], "It is set by the run folder"),
    (["data=x"], "data is not a field of the recipe. Write data.path=VALUE (in a recipe file data=Data(path=VALUE))."),
    (["trl=x"], "trl='x' must be a dict such as {'name': value}."),
    (["data.tran=x"], "data.tran is not a field of the recipe. Did you mean 'data.train'?"),
    (["data.chat_template_kwargs.a.b=1"], "Did you mean 'data.chat_template_kwargs'?"),
    (["data.train.x=1"], "data.train.x is not a field of the recipe."),
    (["beta.x=1"], "beta.x is not a field of the recipe. Did you mean 'beta'?"),
    (
        ["trl.max_grad_nrom=1"],
        "trl.max_grad_nrom='1' is not a field of the installed DPOConfig. Did you mean 'max_grad_norm'?",
    ),
    (["trl.optimizer=AdamW"], "trl.optimizer='AdamW' is not a field of the installed DPOConfig."),
    (["adapter=dora"], "adapter='dora' must be none, lora or qlora. Did you mean 'lora'?"),
    (
        ["adapter=none", "adapter.r=8"],
        "adapter.r has nothing to act on: add adapter=lora.",
    ),
    (["adapter.double_quant=true"], "adapter.double_quant has nothing to act on: add adapter=qlora."),
    (["beta=abc"], "beta='abc' must be a number such as 0.1 or 5e-7."),
    (["beta=nan"], "beta='nan' must be a number such as 0.1 or 5e-7."),
    (["beta=1,5"], "beta='1,5' must be a number such as 0.1 or 5e-7."),
    (["beta=True"], "beta='True' must be a number such as 0.1 or 5e-7."),
    (["num_train_epochs=2", "trl.max_steps=5"], "num_train_epochs=2 does nothing beside trl.max_steps=5"),
    (["adapter=LoRA(r=8)"], "Its numbers are given one by one, as in adapter=lora adapter.r=8."),
    (["beta\N{FULLWIDTH EQUALS SIGN}0.1"], "has a full-width equals sign: write the one of the keyboard"),
    (["model= "], "Recipe.model=' ' must be text."),
    (["beta=1e400"], "Recipe.beta=inf must be a positive, finite number."),
    (["beta=((((((1"], "beta='((((((1' must be a number"),
    (["global_batch_size=16.0"], "global_batch_size='16.0' must be a whole number."),
    (["learning_rate=fast"], "learning_rate='fast' must be a number such as 0.1 or 5e-7 or none."),
    (["trust_remote_code=yes"], "trust_remote_code='yes' must be true or false."),
    (["data.reader=f"], "data.reader='f' must be a function or none."),
    (["data.allow=bordr"], "Data.allow=['bordr'] must be a list of findings to allow: border, start_token,"),
    (["data.mix=a.jsonl"], "data.mix='a.jsonl' must be a dict such as {'name': value}."),
    (["data.mix={'a': 2}"], "Data.mix={'a': 2} must be paths with the share of their pairs to use, in (0, 1]."),
    (["reward=f"], "reward='f' must be a function or RewardModel(...) or JudgeEndpoint(...) or none."),
    (['loss={"sigmoid":1,'], "neither TRL's nor ours."),
    (['loss={"sigmoid":"x"}'], "a mix of several is {'sigmoid': 1.0, 'sft': 0.1}"),
    (["loss=cdpo", "loss_args.label_smoothing=abc"], "has the wrong type: expected a number such as 0.1, its default."),
    (["loss_args=1"], "loss_args='1' must be a dict such as {'name': value}."),
    (["trl.max_steps=2.5"], "trl.max_steps='2.5' has the wrong type: DPOConfig declares max_steps: int."),
    (["trl.gradient_checkpointing=1"], "wrong type: DPOConfig declares gradient_checkpointing: bool."),
]


@pytest.mark.parametrize(("assignments", "message"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_what_is_wrong_is_said(assignments, message):
    with pytest.raises(UsageError) as error:
        apply(RECIPE, assignments)
    assert message in str(error.value)


def score(prompt: str, completion: str) -> float:
    return 0.0


def prepare(folder: Path, seed: int) -> None:
    pass


def prepare_with(folder: Path, seed: int, model: str | None = None) -> None:
    """Make pairs with whichever model is named."""


MADE = {"model": "{prepared}/m", "data": Data("{prepared}/d"), "prepare": prepare}


@pytest.mark.parametrize(
    ("assignments", "ways_out"),
    [
        (["data.path=my.jsonl"], "train starter model=org/name data.path=my.jsonl"),
        (["model=org/mine"], "train starter model=org/mine data.path=pairs.jsonl"),
        (["model=org/mine", "data.path=my.jsonl"], "train starter model=org/mine data.path=my.jsonl"),
        (["data.mix={'a.jsonl': 1.0}"], "new mine --from starter"),
    ],
)
@pytest.mark.parametrize("scores", [{"reward": score}, {"measures": {"mine": score}}], ids=["reward", "measures"])
def test_what_a_recipe_makes_for_its_own_reward_is_not_parted_from_it(assignments, ways_out, scores):
    with pytest.raises(UsageError, match="does not go with recipe, which makes its own model and pairs") as error:
        apply(Recipe(**MADE, **scores), assignments)
    assert f"dpo-recipes {ways_out}" in str(error.value)


def test_a_recipe_whose_pairs_are_made_with_the_model_takes_another_one():
    recipe = Recipe(**(MADE | {"prepare": prepare_with}), reward=score)
    assert apply(recipe, ["model=org/mine"]).model == "org/mine"
    with pytest.raises(UsageError, match="does not go with recipe"):
        apply(recipe, ["data.path=my.jsonl"])


def test_a_recipe_that_makes_its_files_takes_other_values_and_places_within_them():
    recipe = Recipe(**MADE, reward=score)
    assert apply(recipe, ["beta=0.3", "data.eval=0.1", "data.path={prepared}/others"]).data.path == "{prepared}/others"


def test_without_a_reward_what_a_recipe_makes_may_be_parted():
    assert apply(Recipe(**MADE), ["data.path=my.jsonl"]).data.path == "my.jsonl"
    half = Recipe(model="m", data=Data("{prepared}/d"), prepare=prepare, reward=score)
    assert apply(half, ["model=other"]).model == "other"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        (" 0.5", 0.5),
        ("True", True),
        ("none", None),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("a b", "a b"),
        ("'q'", "q"),
    ],
)
def test_literals(text, value):
    assert literal(text) == value


def test_what_belongs_to_the_set_or_model_before_goes_with_it():
    data = Data("hub/set", train="a[:50%]+b[:25%]", eval=0.1, subset="Preference", data_dir="x", revision="r1")
    recipe = Recipe(model="hub/model", revision="r2", data=data)
    changed = apply(recipe, ["data.path=pairs.jsonl", "model=folder"])
    assert changed.data == Data("pairs.jsonl", eval=0.1) and changed.revision is None
    assert apply(recipe, ["data.path=other/set", "data.subset=B"]).data == Data(
        "other/set", train="a[:50%]+b[:25%]", eval=0.1, subset="B"
    )
    assert apply(recipe, ["model=other/model", "revision=r3"]).revision == "r3"
    assert apply(recipe, ["beta=0.2"]).revision == "r2" and apply(recipe, ["data.eval=0.2"]).data.subset == "Preference"

"""Recipe, Data, LoRA, QLoRA: frozen, keyword-only, inert; every field acts or is refused."""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import dpo_recipes
from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.losses.plugins import PLUGIN_LOSSES
from dpo_recipes.losses.trl_losses import TRL_LOSSES
from dpo_recipes.recipe.dpo_arguments import dpo_arguments
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.recipe.validation import field_types

PACKAGE = Path(dpo_recipes.__file__).parent
GPU = Device("cuda", bf16=True, processes=1)


def make(**changes: Any) -> Recipe:
    return Recipe(**{"model": "m", "data": Data("d"), "adapter": LoRA(), **changes})


def fill(folder: Path, seed: int) -> None:
    pass


def reward(prompt: str, completion: str) -> float:
    return 0.0


# Every field: a value other than its default, what must stand beside it, and what it changes: the DPOConfig and
# settings of the run ("run"), or the folder whose code reads it.
ACTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "model": ("other", {}, "commands"),
    "data": (Data("other"), {}, "commands"),
    "revision": ("v2", {}, "models"),
    "adapter": (None, {}, "run"),
    "reference": ("other", {}, "run"),
    "loss": ("hinge", {}, "run"),
    "loss_args": ({"label_smoothing": 0.2}, {"loss": "cdpo"}, "recipe"),
    "sft_weight": (0.1, {}, "run"),
    "beta": (0.3, {}, "run"),
    "learning_rate": (1e-4, {}, "run"),
    "global_batch_size": (64, {}, "run"),
    "micro_batch_size": (8, {}, "run"),
    "num_train_epochs": (2.5, {}, "run"),
    "max_length": (None, {}, "run"),
    "dtype": ("float32", {}, "run"),
    "attn_implementation": ("eager", {}, "models"),
    "pair_sharing": ("off", {}, "training"),
    "trust_remote_code": (True, {}, "run"),
    "seed": (7, {}, "run"),
    "reward": (reward, {}, "evaluation"),
    "measures": ({"length": reward}, {}, "evaluation"),
    "answers": (2, {}, "evaluation"),
    "answers_temperature": (0.7, {}, "evaluation"),
    "rules": ({"over_fitting": "off"}, {}, "guard"),
    "forgetting": ("texts.jsonl", {}, "evaluation"),
    "forgetting_limit": (0.1, {}, "evaluation"),
    "prepare": (fill, {"model": "{prepared}/m"}, "training"),
    "trl": ({"max_grad_norm": 0.5}, {}, "run"),
    "Data.path": ("other", {}, "recipe"),
    "Data.mix": ({"a": 1.0, "b": 0.5}, {}, "recipe"),
    "Data.reader": (len, {}, "data"),
    "Data.streaming": (True, {"trl": {"max_steps": 5}}, "data"),
    "Data.drop_truncated": (True, {}, "training"),
    "Data.allow": (["border"], {}, "training"),
    "Data.reference": ("somewhere", {}, "training"),
    "Data.train": ("train[:10]", {}, "data"),
    "Data.eval": ("test", {}, "data"),
    "Data.subset": ("en", {}, "data"),
    "Data.data_dir": ("harmless-base", {}, "data"),
    "Data.revision": ("v2", {}, "data"),
    "Data.format": ("text", {}, "data"),
    "Data.chat_template": ("{{ x }}", {}, "models"),
    "Data.chat_template_kwargs": ({"enable_thinking": False}, {}, "models"),
    "Data.template_date": ("2025-07-08", {}, "models"),
    "Data.system": ("merge", {}, "training"),
    "Data.pairing": ("best_worst", {}, "data"),
    "Data.turns": ("all", {}, "data"),
    "Data.max_dropped": (0.5, {}, "data"),
    "Data.exclude": ("suspects.jsonl", {}, "data"),
    "LoRA.r": (64, {}, "models"),
    "LoRA.alpha": (8, {}, "models"),
    "LoRA.dropout": (0.1, {"trl": {"disable_dropout": False}}, "models"),
    "LoRA.target_modules": (["q_proj"], {}, "models"),
    "LoRA.use_rslora": (True, {}, "models"),
    "LoRA.use_dora": (True, {}, "models"),
    "LoRA.continue_from": ("runs/x/model", {}, "run"),
    "QLoRA.double_quant": (False, {}, "models"),
}
FIELDS = [
    *(f.name for f in dataclasses.fields(Recipe)),
    *(f"Data.{f.name}" for f in dataclasses.fields(Data)),
    *(f"LoRA.{f.name}" for f in dataclasses.fields(LoRA)),
    *(f"QLoRA.{name}" for name in field_types(QLoRA).keys() - field_types(LoRA).keys()),
]


def run(recipe: Recipe) -> tuple[Any, ...]:
    settings = resolve(recipe, GPU)
    return settings, dpo_arguments(recipe, settings, "")


@functools.cache
def words_read_in(folder: str) -> set[Any]:
    """The attributes that the code of a folder reads, and the constants that stand in it."""
    words = set()
    for file in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            words.add(getattr(node, "attr", getattr(node, "value", None)))
    return words


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_changes_the_run_or_is_read(field):
    value, beside, where = ACTS[field]
    owner, _, name = field.rpartition(".")
    if owner == "Data":
        path = {} if name == "mix" else {"path": "d"}
        changed = make(data=Data(**{**path, name: value}), **beside)
    elif owner:
        changed = make(adapter={"LoRA": LoRA, "QLoRA": QLoRA}[owner](**{name: value}), **beside)
    else:
        changed = make(**{name: value, **beside})
    if field == "prepare":  # beside it stands what would be refused without it
        assert changed.prepare is fill
    else:
        assert changed != make(**beside)

    if where == "run":
        assert run(changed) != run(make(**beside))
    else:
        assert name in words_read_in(where), f"{where} does not read {field}"


@pytest.mark.parametrize("cls", [Recipe, Data, LoRA, QLoRA])
def test_values_are_frozen_keyword_only_and_compare_by_their_fields(cls):
    kwargs = {Recipe: {"model": "m", "data": Data("d")}, Data: {"path": "d"}}.get(cls, {})
    value = cls(**kwargs)
    for f in dataclasses.fields(cls):
        assert f.kw_only or (cls, f.name) == (Data, "path")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, f.name, None)
    assert value == cls(**kwargs) and value.given == set(kwargs)


def test_names_of_losses_and_weights():
    def mine(pairs, *, beta):
        return pairs.h

    recipe = make(loss={"sigmoid": 1, "cdpo": 0.5, mine: 2.0})
    assert recipe.loss_names == {"sigmoid", "cdpo", "mine"}
    assert recipe.trl_losses == {"sigmoid": 1}
    assert recipe.plugins == {"cdpo": (PLUGIN_LOSSES["cdpo"], 0.5), "mine": (mine, 2.0)}
    assert make(loss="hinge").weights == {"hinge": 1.0} and make().name == "recipe"


@pytest.mark.parametrize("loss", [*TRL_LOSSES, *PLUGIN_LOSSES])
def test_every_known_loss_makes_a_recipe(loss):
    beside = {"exo_pair": {"trl": {"label_smoothing": 1e-3}}}.get(loss, {})
    assert run(make(loss=loss, micro_batch_size=4, **beside))


# Values that have been published, or that a shipped recipe has: none of them may be refused.
PUBLISHED: list[dict[str, Any]] = [
    {"beta": 0.001, "loss": "sppo_hard"},
    {"beta": 0.01, "learning_rate": 5e-9},
    {"beta": 5, "loss": "sigmoid_norm"},
    {"beta": 10, "loss": "reference_free"},
    {"beta": 1.5, "learning_rate": 1e-3},
    {"learning_rate": 1e-2, "loss": "ipo", "global_batch_size": 90, "micro_batch_size": 1},
    {"learning_rate": 1e-4, "loss": "hinge", "global_batch_size": 512},
    {"adapter": LoRA(r=64, alpha=16), "num_train_epochs": 5},
    {"adapter": LoRA(r=1, alpha=32), "learning_rate": 5e-4},
    {"max_length": 24576},
    {"trl": {"ld_alpha": 0.5}},
    {"trl": {"weight_decay": 0.05, "adam_epsilon": 1e-5, "max_grad_norm": 10.0}},
    {"trl": {"sync_ref_model": True, "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512}, "adapter": None},
]


@pytest.mark.parametrize("values", PUBLISHED, ids=str)
def test_what_has_been_published_is_taken(values):
    make(**values)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "Recipe.model='' must be text."),
    ({"model": None}, "Recipe.model=None must be text."),
    ({"data": "d"}, "Recipe.data='d' must be Data(...)."),
    ({"adapter": LoRA}, "Recipe.adapter=LoRA must be LoRA(...) or QLoRA(...) or none."),
    ({"adapter": True}, "Recipe.adapter=True must be LoRA(...) or QLoRA(...) or none."),
    ({"beta": "0.1"}, "Recipe.beta='0.1' must be a number such as 0.1 or 5e-7."),
    ({"beta": True}, "Recipe.beta=True must be a number such as 0.1 or 5e-7."),
    ({"beta": 0}, "Recipe.beta=0 must be a positive, finite number."),
    ({"beta": math.nan}, "Recipe.beta=nan must be a positive, finite number."),
    ({"beta": 1e-12}, "Recipe.beta=1e-12 must be at least 1e-05: "),
    ({"beta": 1e30}, "Recipe.beta=1e+30 must be at most 1,000: "),
    ({"learning_rate": 1e6}, "Recipe.learning_rate=1000000.0 must be at most 1: one step would overwrite"),
    ({"num_train_epochs": 1000}, "Recipe.num_train_epochs=1000 must be at most 100: published runs take 1 to 5;"),
    ({"global_batch_size": 10**9}, "Recipe.global_batch_size=1000000000 must be at most 1,000,000: "),
    ({"max_length": 10**9}, "Recipe.max_length=1000000000 must be at most 10,000,000: no model reads more"),
    ({"measures": {"length_stderr": reward}}, "measures['length_stderr']: a name that ends in _stderr"),
    ({"measures": {" ": reward}}, "measures[' ']: the name is shown in a table."),
    ({"learning_rate": -1.0}, "Recipe.learning_rate=-1.0 must be a positive, finite number."),
    ({"num_train_epochs": math.inf}, "Recipe.num_train_epochs=inf must be a positive, finite number."),
    ({"global_batch_size": 0}, "Recipe.global_batch_size=0 must be at least 1."),
    ({"global_batch_size": 1.0}, "Recipe.global_batch_size=1.0 must be a whole number."),
    ({"micro_batch_size": -2}, "Recipe.micro_batch_size=-2 must be at least 1."),
    ({"max_length": 1}, "Recipe.max_length=1 must be at least 2."),
    ({"seed": -1}, "Recipe.seed=-1 must be in [0, 2**32)."),
    ({"seed": 2**32}, "must be in [0, 2**32)."),
    (
        {"dtype": "bf16"},
        "Recipe.dtype='bf16' must be one of auto, float32, bfloat16, float16. Did you mean 'bfloat16'?",
    ),
    ({"dtype": "float16", "adapter": None}, "16-bit weights swallow small steps"),
    ({"dtype": "float32", "adapter": QLoRA()}, "does nothing under QLoRA, which computes in bf16: delete it."),
    ({"trust_remote_code": 1}, "Recipe.trust_remote_code=1 must be true or false."),
    ({"trl": ["x"]}, "Recipe.trl=['x'] must be a dict such as {'name': value}."),
    ({"trl": {1: 2}}, "Recipe.trl={1: 2} must be a dict"),
    ({"loss": ["sigmoid"]}, "must be text or a dict such as {'name': value} or a function."),
    ({"loss": {}}, "Recipe.loss={} must be at least one loss."),
    ({"loss": "sft", "beta": 0.2}, "beta does nothing: loss='sft' is plain likelihood."),
    ({"loss": "exo_pair"}, "loss='exo_pair' needs trl.label_smoothing above 0; the EXO paper uses 0.001."),
    ({"loss_args": {"x": 1}}, "Recipe.loss_args.x=1 is read by no loss of ['sigmoid']."),
    ({"sft_weight": 0}, "Recipe.sft_weight=0 must be a positive, finite number."),
    ({"sft_weight": 101}, "Recipe.sft_weight=101 must be at most 100: it is added to the loss"),
    ({"sft_weight": 0.1, "loss": "sft"}, "sft_weight=0.1 does nothing: loss='sft' is that term alone. Delete it."),
    (
        {"sft_weight": 0.1, "loss": {"sigmoid": 1.0, "sft": 0.5}},
        "sft_weight=0.1 beside loss={'sft': 0.5, ...}: the mix has that term already. Keep one of the two.",
    ),
    ({"reward": lambda text: 0.0}, "reward(prompt, completion): too many positional arguments."),
    ({"reward": 1.0}, "Recipe.reward=1.0 must be a function or RewardModel(...) or JudgeEndpoint(...) or none."),
    ({"measures": {"length": len}}, "measures['length'](prompt, completion): too many positional arguments."),
    ({"prepare": lambda: None, "model": "{prepared}"}, "prepare(folder, seed): too many"),
    (
        {"prepare": fill},
        "{prepared} in model, data.path or reference goes with a `prepare` that fills it: both or neither.",
    ),
    ({"model": "{prepared}/m"}, "{prepared} in model, data.path or reference goes with"),
    (
        {"adapter": LoRA(dropout=0.1)},
        "adapter.dropout does nothing, as TRL disables all dropout, without trl={'disable_dropout': False}.",
    ),
    (
        {"trl": {"sync_ref_model": True}},
        "trl.sync_ref_model moves a copy: no adapter, reference, reward or precompute_ref_log_probs",
    ),
    ({"adapter": None, "reference": "x", "trl": {"sync_ref_model": True}}, "trl.sync_ref_model moves a copy"),
    ({"adapter": None, "trl": {"precompute_ref_log_probs": False}}, "would keep a second model in memory"),
    ({"reference": "x", "trl": {"precompute_ref_log_probs": False}}, "would keep a second model in memory"),
    ({"data": Data("d", reference="r"), "trl": {"precompute_ref_log_probs": False}}, "data.reference=r holds log-"),
    ({"trl": {"beta": 0.2}}, "trl.beta=0.2 has a place of its own: set beta."),
    ({"loss": "cdpo", "trl": {"ld_alpha": 0.5}}, "would never reach the plugin loss in ['cdpo']"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_work_or_does_nothing_is_refused(changes, message):
    with pytest.raises(UsageError) as error:
        make(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (Data, {"eval": 1.0}, "Data.eval=1.0 must be a split, a file, or the share to hold out, between 0 and 1."),
        *(
            (Data, {"eval": no}, f"Data.eval={no!r} must be a split, a file, or the share")
            for no in ("10%", "none", "False")
        ),
        (Data, {"eval": ""}, "Data.eval='' must be text or a number such as 0.1 or 5e-7."),
        (Data, {"max_dropped": 5}, "Data.max_dropped=5 must be a share in [0, 1]."),
        (
            Data,
            {"format": "texts"},
            "must be one of preference, text, ultrafeedback, chosen_messages, hh_rlhf, sharegpt, alpaca, orca, shp, "
            "helpsteer2, helpsteer3, summarize, ultrainteract, ranking or none. Did you mean 'text'?",
        ),
        (
            Data,
            {"template_date": "2025-02-31"},
            "must be a date that is not in the future, as YYYY-MM-DD, such as 2025-07-08.",
        ),
        (Data, {"template_date": "20250708"}, "must be a date that is not"),
        (Data, {"chat_template_kwargs": None}, "must be a dict such as {'name': value}."),
        (LoRA, {"r": 0}, "LoRA.r=0 must be at least 1."),
        (LoRA, {"alpha": 0}, "LoRA.alpha=0 must be at least 1."),
        (LoRA, {"r": 10**6}, "LoRA.r=1000000 must be at most 16,384: no adapter is wider than the layers"),
        (LoRA, {"alpha": 10**6}, "adapter.alpha=1000000 over adapter.r=16 scales the adapter by 62500: at most"),
        (LoRA, {"dropout": 1.0}, "LoRA.dropout=1.0 must be in [0, 1)."),
        (LoRA, {"target_modules": []}, "LoRA.target_modules=[] must be 'all-linear' or names of modules"),
        (LoRA, {"target_modules": "all_linear"}, "must be 'all-linear' or names"),
        (LoRA, {"target_modules": ["q_proj", "lm_head"]}, "never the head, whose weight TRL reads past"),
        (QLoRA, {"target_modules": ("q_proj",)}, "must be text or a list such as ['q_proj', 'v_proj']."),
        (
            QLoRA,
            {"r": 8, "continue_from": "x"},
            "adapter.r cannot stand beside continue_from: that adapter brings its own.",
        ),
    ],
)
def test_parts_refuse_too(cls, kwargs, message):
    with pytest.raises(UsageError) as error:
        cls(**({"path": "d"} if cls is Data else {}) | kwargs)
    assert message in str(error.value)


def test_a_clock_that_is_behind_makes_no_date_of_a_recipe_wrong(monkeypatch):
    class Clock(date):
        @classmethod
        def today(cls) -> date:
            return cls(1970, 1, 1)

    monkeypatch.setattr("dpo_recipes.recipe.data.date", Clock)
    assert Data("d", template_date="2025-07-08").template_date == "2025-07-08"
    with pytest.raises(UsageError, match="not in the future"):
        Data("d", template_date="2999-01-01")


def test_a_continued_qlora_may_still_choose_its_quantisation():
    assert QLoRA(double_quant=False, continue_from="x").given == {"double_quant", "continue_from"}


def test_a_loss_function_of_another_shape_is_the_files_error():
    def mine(pairs, beta):
        return pairs.h

    with pytest.raises(
        RecipeError, match=r"loss mine\(pairs, beta\) must be written `def name\(pairs, \*, beta, \.\.\.\)`"
    ):
        make(loss=mine)


def test_a_changed_recipe_still_says_where_it_came_from():
    recipe = make().from_where(source=Path("mine.py"), cli_keys=frozenset({"model"}), called="mine")
    changed = recipe.evolve(beta=0.3)
    assert (changed.source, changed.cli_keys, changed.called) == (Path("mine.py"), {"model"}, "mine")
    assert changed.name == "mine" and changed.given == recipe.given | {"beta"}
    assert recipe == make() and make().source is None  # neither a field nor a value of the class

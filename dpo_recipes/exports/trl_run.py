"""A run written for TRL alone: its pairs, a plain script, and the file of `trl dpo --config` where that can say it all.

What is written trains to the same losses. Where TRL has no word for what a recipe says, nothing is written.

Leans on TRL 1.16: the options of `trl dpo`, that it takes model and tokenizer from one name, and that one name of
`lora_target_modules` is read as a pattern; the columns of pairs that `DPOTrainer` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ..errors import RecipeError, stop_at_fails
from ..formats.pair_weights import WEIGHT
from ..planning.chosen_settings import adopt
from ..recipe.adapters import LoRA, QLoRA
from ..recipe.dpo_arguments import dpo_arguments
from ..recipe.recipe import Recipe
from ..recipe.trl_options import options
from ..runs import files
from ..runs.folder import Run
from ..runs.rebuilt import recipe_of
from ..training.checked_pairs import are_other_pairs
from ..training.session import Session
from ..training.with_images import refuse_images
from . import trl_script
from .folders import write_export

SCRIPT = "train_dpo.py"
YAML = "dpo.yaml"
COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")  # of a pair, as TRL reads them
# Of one process, as the script is: a run may have divided its batch over several.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
# What only our own progress bar and our own pace of checkpoints need.
OURS_ALONE = ("output_dir", "disable_tqdm", "save_strategy", "save_total_limit")
# Said even where it is TRL's default: it decides the result.
ALWAYS = ("beta", "loss_type", "max_length", "learning_rate", "num_train_epochs", "seed")


def export_trl(recipe: Recipe, run: Run | None, folder: Path, console: Console) -> dict[str, Any]:
    """Write the recipe for TRL alone, as `run` was trained, or as it would be trained here; returns its export.json.

    RecipeError where TRL cannot say it, or where the pairs are no longer those of the run.
    """
    _refuse_what_trl_lacks(recipe)
    session = Session(recipe, console)
    session.read_pairs()
    stop_at_fails(session.findings)
    refuse_images(session, "export --trl", "it writes the pairs as a jsonl file")
    _refuse_pairs_that_trl_cannot_read(session)
    if run is None:
        adopt(session)
        recipe = session.recipe
    else:
        _refuse_other_pairs(session, run)

    weights = session.settings.weights
    arguments = dpo_arguments(recipe, session.settings, "model")
    if run is not None:
        weights = str(run.recipe["dtype"]["value"]).split()[0]  # of "bfloat16 weights, bf16 autocast"
        arguments |= _of_the_run(arguments, run)
    said = {"output_dir": "model", **_worth_saying(recipe, arguments)}
    on_cpu = bool(arguments["use_cpu"])
    why_no_yaml = _why_no_yaml(session, on_cpu)
    result: dict[str, Any] = {
        "run": None if run is None else str(run.path),
        "recipe": recipe.name,
        "files": [SCRIPT, "pairs/train.jsonl"],
        "pairs": {"train": len(session.train), "test": len(session.eval)},
        "why_no_yaml": why_no_yaml,
        "left_out": _left_out(recipe, session),
    }

    def fill(where: Path) -> None:
        _write_pairs(where, session, result)
        template = _template_to_set(session)
        if template is not None:
            files.write_text(where / "chat_template.jinja", template)
            result["files"].append("chat_template.jinja")
        script = trl_script.script(session, weights, said, has_template=template is not None, on_cpu=on_cpu)
        files.write_text(where / SCRIPT, script)
        if why_no_yaml is None:
            text = yaml.safe_dump(_yaml_values(session, weights, said), sort_keys=False, allow_unicode=True)
            files.write_text(where / YAML, f"# trl dpo --config {YAML}, from this folder\n{text}")
            result["files"].append(YAML)
        files.write_text(where / "README.md", trl_script.page(recipe, result))
        files.write_json(where / "export.json", result)

    write_export(folder, fill)
    return result


# ----------------------------------------------------------------------------------------------- what cannot be said


def _refuse_what_trl_lacks(recipe: Recipe) -> None:
    if recipe.plugins:
        names = ", ".join(sorted(recipe.plugins))
        raise RecipeError(
            f"loss={names} is no loss of TRL's, whose trainer would have to be changed for it: there is no plain "
            "script for this recipe. With a loss of TRL's there is, such as loss=sigmoid."
        )
    if recipe.data.streaming:
        raise RecipeError(
            "data.streaming: the pairs of a stream are read and dropped while it trains, and TRL would read other "
            "ones. To export it, read the data set whole: data.streaming=false"
        )


def _refuse_pairs_that_trl_cannot_read(session: Session) -> None:
    pairs = session.train
    if WEIGHT in pairs.column_names and any(weight != 1 for weight in pairs[WEIGHT]):
        raise RecipeError(
            "The pairs have weights, and TRL's losses weigh all pairs alike: there is no plain script for this recipe."
        )
    for name in ("chat_template_kwargs",):
        if name not in pairs.column_names:
            continue
        missing = sum(value is None for value in pairs[name])
        if 0 < missing < len(pairs):
            raise RecipeError(
                f"{missing:,} of {len(pairs):,} pairs have no {name}, and TRL reads the column in all rows or in none."
            )


def _refuse_other_pairs(session: Session, run: Run) -> None:
    """The files of then may have changed, or the data set on the hub."""
    if are_other_pairs(session, run, "train"):
        raise RecipeError(
            f"{session.recipe.data.name} gives other pairs today than {run.path} was trained on: "
            f"{len(session.train):,} now, {run.data['train']['kept']:,} then. Bring back the data of then."
        )


def _why_no_yaml(session: Session, on_cpu: bool) -> str | None:
    """Why `trl dpo --config` cannot say this recipe, which a script can; None where it can."""
    recipe = session.recipe
    if recipe.reference is not None:
        return "`trl dpo` knows no reference but the model it starts from"
    if recipe.adapter is not None and recipe.adapter.continue_from:
        return "`trl dpo` begins a new adapter, and continues none"
    if _template_to_set(session) is not None:
        return "`trl dpo` takes the tokenizer of the model as it is, and this recipe sets its chat template"
    if on_cpu and isinstance(recipe.adapter, QLoRA):
        return "on some CPUs bitsandbytes packs 4-bit weights anew, without a gradient, and `trl dpo` lets it"
    return None


def _template_to_set(session: Session) -> str | None:
    """The chat template, where the one that comes with the tokenizer is not the one that renders the pairs."""
    if session.report["text"]:
        return None
    tokenizer = session.tokenizer
    used: str | None = tokenizer.tokenizer.chat_template
    is_own = session.recipe.data.chat_template is None and used == tokenizer.template
    return None if is_own else used


def _left_out(recipe: Recipe, session: Session) -> list[str]:
    """What the run does and TRL alone does not; none of it changes what is trained."""
    sentences = []
    if recipe.pair_sharing != "off":
        sentences.append("Each pair is read twice and padded: the same losses, in more time.")
    if session.settings.precompute:
        sentences.append("The reference's log-probabilities are computed anew by TRL, and not taken from our cache.")
    dropped = sum(drop["count"] for drop in session.report["train"]["dropped"].values())
    if dropped:
        sentences.append(f"The {dropped:,} rows that cannot be trained on are not in the files; nothing counts them.")
    sentences.append("Nothing watches over the run: no rules of the guard, no stop at a loss that is no number.")
    sentences.append("No held-out numbers before training with intervals, no sampled answers, no report.")
    if recipe.reward is not None or recipe.measures:
        sentences.append("The reward and the measures of the recipe are not asked.")
    if recipe.forgetting is not None or recipe.forgetting_limit is not None:
        sentences.append("What is forgotten is not measured.")
    if recipe.checkpoints_are_paced:
        sentences.append("Checkpoints come every 500 steps, as is TRL's default, and not by the clock.")
    sentences.append("TRL tells Hugging Face that a trainer was made; HF_HUB_DISABLE_TELEMETRY=1 keeps it from that.")
    return sentences


# ------------------------------------------------------------------------------------------------- what is written


def _of_the_run(arguments: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The values with which the run was trained, on whatever device that was."""
    trained_with = json.loads((run.path / "trl.json").read_text(encoding="utf-8"))
    own = ("output_dir", *BATCH)
    return {name: trained_with[name] for name in arguments if name in trained_with and name not in own}


def _worth_saying(recipe: Recipe, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from TRL's own defaults, and what decides the result."""
    known = options()
    said = {}
    for name, value in arguments.items():
        is_ours_alone = name in OURS_ALONE and name not in recipe.trl
        is_default = value is None or (name in known and known[name].default == value)
        if name in ALWAYS or not (is_ours_alone or is_default):
            said[name] = value
    return said


def _write_pairs(where: Path, session: Session, result: dict[str, Any]) -> None:
    (where / "pairs").mkdir()
    for pairs, name in ((session.train, "train"), (session.eval, "test")):
        if not len(pairs):
            continue
        columns = [column for column in COLUMNS if column in pairs.column_names and _has_values(pairs, column)]
        chosen_columns = pairs.select_columns(columns)
        with (where / "pairs" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in chosen_columns:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if name == "test":
            result["files"].append("pairs/test.jsonl")


def _has_values(pairs: Any, column: str) -> bool:
    return any(value is not None for value in pairs[column])


def _yaml_values(session: Session, weights: str, said: Mapping[str, Any]) -> dict[str, Any]:
    recipe = session.recipe
    values: dict[str, Any] = {"model_name_or_path": session.model_path, "dtype": weights}
    if recipe.revision:
        values["model_revision"] = recipe.revision
    if recipe.attn_implementation:
        values["attn_implementation"] = recipe.attn_implementation
    values |= {"dataset_name": "pairs", "dataset_train_split": "train", "dataset_test_split": "test"}
    if recipe.adapter is not None:
        values |= _adapter_in_yaml(recipe.adapter)
    return {**values, **said}


def _adapter_in_yaml(adapter: LoRA) -> dict[str, Any]:
    modules = adapter.target_modules
    if isinstance(modules, list) and len(modules) == 1:
        modules = rf"(.*\.)?{modules[0]}"  # one name alone would be taken for a pattern of whole names
    values: dict[str, Any] = {
        "use_peft": True,
        "lora_r": adapter.r,
        "lora_alpha": adapter.alpha or 2 * adapter.r,
        "lora_dropout": adapter.dropout,
        "lora_target_modules": modules,
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
    }
    if isinstance(adapter, QLoRA):
        values |= {"load_in_4bit": True, "use_bnb_nested_quant": adapter.double_quant}
    return values


def recipe_and_run(named: Run | Recipe) -> tuple[Recipe, Run | None]:
    """(recipe, run) of a finished run, or (recipe, None) of a recipe that has not been run."""
    if isinstance(named, Recipe):
        return named, None
    return recipe_of(named), named

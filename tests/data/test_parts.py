"""What each path gives to a side: splits, slices and mixes of them, forms, the hub, and what is refused."""

from __future__ import annotations

import datasets
import pytest
from reading_files import (
    EXPLICIT,
    HH,
    LEAKED,
    NO_TRANSCRIPT,
    conversations,
    h4,
    only_drop,
    pairs_of,
    read,
    refused,
    save,
    three,
)

from dpo_recipes.data import preference_dataset as data
from dpo_recipes.errors import RecipeError
from dpo_recipes.recipe.data import Data

# Splits and slices


def test_a_folder_of_splits_and_its_slices(tmp_path):
    save(tmp_path / "train_prefs.jsonl", three(30))
    save(tmp_path / "test_prefs-00000-of-00002.jsonl", three(50)[40:45])
    save(tmp_path / "test_prefs-00001-of-00002.jsonl", three(50)[45:])
    found = read(tmp_path, train="train_prefs[:50%]", eval="test_prefs")
    assert (len(found.train), len(found.eval)) == (15, 10)
    assert found.report["train"] == {"split": "train_prefs[:50%]", "rows": 15, "kept": 15, "dropped": {}}
    found = read(tmp_path, train="train_prefs[:4]+train_prefs[-2:]", eval="test_prefs[5:]")
    assert [row["prompt"][0]["content"] for row in found.train] == ["q00", "q01", "q02", "q03", "q28", "q29"]
    assert len(found.eval) == 5
    message = refused(tmp_path, train="train_pref")
    assert (
        "no split 'train_pref'" in message and "It has: test_prefs, train_prefs. Did you mean 'train_prefs'?" in message
    )
    assert "no split 'test'" in refused(tmp_path, train="train_prefs", eval="test")
    assert len(read(tmp_path, train="train_prefs", eval=save(tmp_path / "other.jsonl", three(7))).eval) == 7
    assert "'train_prefs[40:50]' selects no rows" in refused(tmp_path, train="train_prefs[40:50]")
    assert "is no split" in refused(tmp_path, train="train_prefs[a]")


def test_folders_saved_by_datasets(tmp_path):
    one = datasets.Dataset.from_list(three(10))
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=one.select([0])).save_to_disk(tmp_path / "many")
    before = sorted(tmp_path.rglob("*"))
    assert len(pairs_of(read(tmp_path / "one"))) == 10
    found = read(tmp_path / "many", eval="test")
    assert (len(found.train), len(found.eval)) == (9, 1)
    assert found.report["train"]["dropped"] == {LEAKED: {"count": 1, "rows": ["0"]}}
    assert sorted(tmp_path.rglob("*")) == before  # nothing of ours is left in the user's folder


def test_one_file_has_the_split_train_alone(tmp_path):
    path = save(tmp_path / "pairs.json", three(40))
    assert "pairs.json is a single file, which has no splits. Leave data.train" in refused(
        path, train="train_prefs[:9]"
    )
    assert "pairs.json is a single file, which has no splits. Give a share" in refused(path, eval="test_prefs")
    found = read(path, train="train[:20]")
    assert (len(found.train), len(found.eval)) == (19, 1)
    found = read(path, train="train[:10]+train[20:30]", eval="train[30:]")
    assert (len(found.train), len(found.eval)) == (20, 10)
    found = read(path, train="train[:30]", eval="train[30:]")
    assert (len(found.train), len(found.eval)) == (30, 10)
    found = read(path, eval=save(tmp_path / "other.jsonl", three(45)[38:]))
    assert (len(found.train), len(found.eval)) == (38, 7)
    assert found.report["train"]["dropped"] == {LEAKED: {"count": 2, "rows": ["38", "39"]}}
    assert "Did you mean 'other.jsonl'?" in refused(path, eval=str(tmp_path / "othr.jsonl"))
    wrong = save(tmp_path / "wrong.jsonl", [{"prompt": "q", "chosen": 1, "rejected": "b"}])
    message = refused(path, eval=wrong)
    assert message.startswith(f"{wrong}: 0 of its first 1 rows can be used") and "malformed: chosen is int" in message


# Forms, and what is refused


def test_an_empty_column_beside_the_prompt_and_a_named_format_are_no_obstacle(tmp_path):
    assert len(pairs_of(read(save(tmp_path / "a.jsonl", three(input="", history=[])), eval=0.1))) == 20
    assert len(pairs_of(read(save(tmp_path / "b.jsonl", three(input="x")), format="preference"))) == 20


def test_an_ambiguous_form_lists_the_candidates_and_naming_one_settles_it(tmp_path):
    path = save(tmp_path / "p.jsonl", HH[:3] + [{"chosen": f"It is a{i}", "rejected": "It is b"} for i in range(3)])
    message = refused(path)
    assert "text reads 3 of its first 6 rows, hh_rlhf 3 otherwise" in message
    assert "data.format='text' or 'hh_rlhf'." in message
    assert f"{NO_TRANSCRIPT}: 3" in refused(path, format="hh_rlhf")
    assert read(path, format="text", eval=0.2).report["format"] == "text"
    few = save(tmp_path / "few.jsonl", [*three(40), {**three(1)[0], "prompt": "Human: x"}])
    assert only_drop(read(few))[0] == "malformed: prompt was rendered before, by a transcript"
    mixed = save(tmp_path / "m.jsonl", h4(5) + [{**row, "prompt": "q"} for row in EXPLICIT[:5]])
    assert "preference reads 5 of its first 10 rows, ultrafeedback 5 otherwise" in refused(mixed)
    assert "can be used, read as 'hh_rlhf'" in refused(save(tmp_path / "h.jsonl", h4()), format="hh_rlhf")
    assert "malformed: chosen is list, not str: 20 (rows" in refused(str(tmp_path / "h.jsonl"), format="text")


def test_train_and_evaluation_must_both_be_text_or_both_messages(tmp_path):
    save(tmp_path / "train.jsonl", EXPLICIT)
    save(tmp_path / "test.jsonl", [{"chosen": "It is a", "rejected": "It is b"}] * 3)
    assert "read as 'preference', the evaluation pairs as 'text'" in refused(tmp_path, eval="test")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "p.jsonl",
            b'{"prompt": "x", "chosen": "a", "rejected": "b"}\n\n{"prompt": "x", "cho',
            "line 3 is not one whole",
        ),
        ("p.json", b'[{"prompt": "x"},\n {"prompt": ', "line 2 column"),
        ("p.jsonl", b'["prompt", "chosen"]', "item 0 is 'prompt', not an object"),
        ("p.jsonl", b'{"prompt": "x"}\n3\n', "line 2 is 3, not an object"),
        ("p.json", b'{\n "prompt": "x"\n}', "it is one object over several lines"),
        ("p.jsonl", '{"prompt": "ä"}'.encode("latin-1"), "is not in UTF-8: byte 0xe4"),
        ("p.jsonl", '{"prompt": "a"}'.encode("utf-16"), "UTF-8"),
        ("p.jsonl", b"", "p.jsonl has no rows: it is an empty file"),
        ("p.json", b"[]", "p.json has no rows."),
        ("p.csv", b"prompt,chosen,rejected\n", "p.csv has no rows."),
        ("p.csv", b"prompt,chosen,rejected\nx,a\n", "line 2 has fewer cells than line 1"),
        ("p.csv", b"prompt,chosen,rejected\nx,a,b,c\n", "line 2 has more cells than line 1"),
        ("p.csv", b"x,it is a,it is b\ny,it is c,it is d\n", "Its columns: x, it is a, it is b."),
        ("p.csv", b'prompt,chosen,rejected\nx,"a,b\n', "is not readable as csv"),
        ("p.parquet", b"PAR1 but not really", "is not readable as parquet"),
        ("p.parquet", b"", "has no rows: it is an empty file"),
        ("p.jsonl.gz", b"plain text", "is not readable as jsonl.gz"),
        ("p.txt", b"x", "is text without columns"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert words in message and name in message


def test_a_parquet_file_without_rows(tmp_path):
    datasets.Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}).to_parquet(tmp_path / "p.parquet")
    assert "has no rows" in refused(tmp_path / "p.parquet")


def test_missing_and_doubled_paths(tmp_path):
    save(tmp_path / "pairs.jsonl", three())
    message = refused(tmp_path / "pair.jsonl")
    assert "does not exist" in message and "Did you mean 'pairs.jsonl'?" in message
    assert "no such file or folder in nowhere/at." in refused("nowhere/at/all.jsonl")
    assert "no such file or folder here." in refused("nowhere.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "holds no pairs" in refused(folder)
    for name in ("train.jsonl", "train.json"):
        save(folder / name, three())
    assert "train.json and train.jsonl are not one whole split 'train'" in refused(folder)


@pytest.mark.parametrize("field", ["subset", "data_dir", "revision"])
def test_fields_of_the_hub_do_nothing_for_a_file(tmp_path, field):
    assert f"data.{field}='main' does nothing" in refused(save(tmp_path / "p.jsonl", three()), **{field: "main"})


@pytest.mark.parametrize(
    "field", [{"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {"a": 1}}, {"template_date": "2025-07-08"}]
)
def test_fields_of_the_template_do_nothing_for_text(tmp_path, field):
    ((name, value),) = field.items()
    message = refused(save(tmp_path / "p.jsonl", three()), format="text", **field)
    assert f"data.{name}={value!r} does nothing" in message


# The hub


def test_a_hub_data_set_is_loaded_with_all_its_fields(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        rows = datasets.Dataset.from_list(h4(10))
        return datasets.DatasetDict(train_prefs=rows, test_prefs=rows.select([1, 2]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fields = {"subset": "default", "data_dir": "d", "revision": "3949bf5", "train": "train_prefs[:5]"}
    found = read("HuggingFaceH4/ultrafeedback_binarized", eval="test_prefs", **fields)
    how = {"data_dir": "d", "revision": "3949bf5", "streaming": False}
    assert asked == [(("HuggingFaceH4/ultrafeedback_binarized", "default"), how)]
    assert (len(found.train), len(found.eval)) == (3, 2)
    assert found.report["train"]["dropped"] == {LEAKED: {"count": 2, "rows": ["1", "2"]}}
    message = refused("HuggingFaceH4/ultrafeedback_binarized", train="train_pref")
    assert "It has: train_prefs, test_prefs. Did you mean 'train_prefs'?" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub."),
            "doesn't exist on the Hub",
        ),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "scripts are no longer supported"),
        (datasets.exceptions.DataFilesNotFoundError("No (supported) data files found in a/b"), "No (supported) data"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(monkeypatch, error, words):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refused("a/b")
    assert message.startswith("a/b cannot be loaded: ") and words in message and "Check data." in message


def test_an_unreachable_hub_is_the_callers(monkeypatch):
    def load_dataset(*args, **kwargs):
        try:
            raise ConnectionError("reset by peer")
        except ConnectionError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match="reset by peer"):
        read("a/b")


# A mix, row numbers and notes


def mixed(paths: dict, **fields):
    return data.read(
        Data(mix={str(p): share for p, share in paths.items()}, **fields), {str(p): s for p, s in paths.items()}
    )


def test_a_mix_reads_each_source_as_its_form_and_takes_its_share(tmp_path):
    one = save(tmp_path / "one.jsonl", three(40))
    two = save(
        tmp_path / "two.parquet",
        [{"question": f"r{i}", "system": "s", "chosen": f"a {i}", "rejected": "b"} for i in range(20)],
    )
    found = mixed({one: 0.25, two: 1.0}, eval=0.1)
    train = found.report["train"]
    assert (found.report["path"], found.report["format"]) == (f"{one} + {two}", "preference + orca")
    assert (train["rows"], train["kept"], train["held_out"], len(found.eval)) == (60, 27, 3, 3)
    assert train["dropped"]["outside its share of the mix"]["count"] == 30
    assert found.report["sources"] == {str(one): "preference", str(two): "orca"}
    rows = [row["row"] for row in (*found.train, *found.eval)]
    assert sum(row.startswith(f"{one}:") for row in rows) == 10 and f"{two}:19" in rows
    again = mixed({one: 0.25, two: 1.0}, eval=0.1)
    assert again.report == found.report and again.train.to_list() == found.train.to_list()


def test_a_mix_of_text_and_messages_or_of_split_and_no_split_is_refused(tmp_path):
    one = save(tmp_path / "one.jsonl", three(40))
    two = save(tmp_path / "two.jsonl", [{"chosen": f"It is {i}", "rejected": "It is b"} for i in range(20)])
    with pytest.raises(RecipeError, match="a template fits one only"):
        mixed({one: 1.0, two: 1.0})
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "train.jsonl", three(60)[50:])
    save(folder / "test.jsonl", three(70)[60:])
    with pytest.raises(RecipeError, match="has no split 'test', as others have"):
        mixed({one: 1.0, folder: 1.0}, eval="test")
    assert len(mixed({one: 1.0, folder: 1.0}, eval=str(folder / "test.jsonl")).eval) == 10


def test_row_numbers_are_those_of_the_split_whatever_slice_is_read(tmp_path):
    rows = three(30)
    rows[12]["chosen"] = ""
    path = save(tmp_path / "a.jsonl", rows)
    found = read(path, train="train[10:20]", max_dropped=0.5)
    assert found.report["train"]["dropped"] == {"empty side": {"count": 1, "rows": ["12"]}}
    assert {row["row"] for split in (found.train, found.eval) for row in split} == {*map(str, range(10, 20))} - {"12"}
    both = read(path, train="train[:2]+train[12:15]", max_dropped=0.5)
    assert both.report["train"]["dropped"]["empty side"]["rows"] == ["train:12"]


def test_a_slice_of_a_file_and_a_folder_beside_it_are_held_out(tmp_path, monkeypatch):
    path, other = save(tmp_path / "a.jsonl", three(30)), save(tmp_path / "b.jsonl", conversations(5))
    assert [row["row"] for row in read(path, eval=f"{other}[2:4]").eval] == ["2", "3"]
    (tmp_path / "held").mkdir()
    save(tmp_path / "held" / "test.jsonl", three(3))
    monkeypatch.chdir(tmp_path)
    assert "held has no split ''. It has: test." in refused(path, eval="held")


def test_messages_beside_an_empty_prompt_are_not_said_to_have_been_text(tmp_path):
    rows = [{"prompt": "", **row} for row in conversations(20)]
    assert read(save(tmp_path / "a.jsonl", rows), eval=0.2).report["notes"] == []

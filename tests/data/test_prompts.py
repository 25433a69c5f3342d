"""Prompts of a file: what is read, and what is refused by file and row."""

import gzip
import json

import pytest
from making import message, write_jsonl

from dpo_recipes.data.prompts import as_text, read_prompts
from dpo_recipes.errors import RecipeError


def asked(text):
    return [message("user", text)]


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffWhy?\r\n\n  How come?  \nWhy?\n", "utf-8")
    assert read_prompts(str(file)) == ([asked("Why?"), asked("How come?")], 1)


SYSTEM = message("system", "Be brief.")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Why?"}, asked("Why?")),
        ({"prompt": asked("Why?"), "chosen": "a", "rejected": "b"}, asked("Why?")),
        ({"question": "Why?"}, asked("Why?")),
        ({"instruction": "Add.", "input": "1 and 2"}, asked("Add.\n1 and 2")),
        ({"messages": [SYSTEM, *asked("Why?"), message("assistant", "So.")]}, [SYSTEM, *asked("Why?")]),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, asked("Why?")),
        ({"prompt": "", "messages": asked("Why?")}, asked("Why?")),
    ],
)
def test_a_row_has_its_prompt_in_one_of_several_columns(tmp_path, row, prompt):
    assert read_prompts(str(write_jsonl(tmp_path / "p.jsonl", [row]))) == ([prompt], 0)


def test_compressed_rows_are_read_too(tmp_path):
    file = tmp_path / "p.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps({"prompt": "Why?"}).encode()))
    assert read_prompts(str(file)) == ([asked("Why?")], 0)


@pytest.mark.parametrize(
    ("row", "message_part"),
    [
        ({"text": "Why?"}, "row 1: malformed: the row has no prompt"),
        ({"prompt": "  "}, "row 1: malformed: the row has no prompt"),
        ({"prompt": 7}, "row 1: malformed: prompt is int"),
        ({"messages": [message("assistant", "So.")]}, "row 1: malformed: messages has no user message"),
    ],
)
def test_a_row_without_a_prompt_is_named(tmp_path, row, message_part):
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "Why?"}, row])
    with pytest.raises(RecipeError, match=message_part) as refused:
        read_prompts(str(file))
    assert str(file) in str(refused.value)


def test_what_is_no_file_of_prompts_is_one_message(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n", "utf-8")
    (tmp_path / "latin.txt").write_bytes("Größe?".encode("latin-1"))
    for name, words in (
        ("empty.txt", "holds no prompts"),
        ("latin.txt", "is not UTF-8"),
        ("none.txt", "No such file"),
        ("none.jsonl", "does not exist"),
        ("prompts.md", "does not exist"),
    ):
        with pytest.raises(RecipeError, match=words):
            read_prompts(str(tmp_path / name))


def test_a_folder_of_several_files_must_name_one(tmp_path):
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": "Why?"}])
    with pytest.raises(RecipeError, match="several splits"):
        read_prompts(str(tmp_path))


def test_plain_text_is_what_one_user_message_says():
    assert as_text([asked("Why?")]) == ["Why?"]
    with pytest.raises(RecipeError, match="no chat template"):
        as_text([[SYSTEM, *asked("Why?")]])

"""Every form of raw pairs that is read, from every type of file, and the report of both sides."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys

import pyarrow as pa
import pytest
from making import said, user
from reading_files import EXPLICIT, HH, conversations, h4, only_drop, pairs_of, read, save, three


@pytest.mark.parametrize(
    ("rows", "form"),
    [
        (h4(), "ultrafeedback"),
        ([{**row, "score_chosen": 8.0} for row in conversations()], "preference"),  # trl-lib/ultrafeedback_binarized
        (EXPLICIT, "preference"),  # trl-lib/hh-rlhf-helpful-base
        ([{**row, "prompt": [row["chosen"][0]]} for row in conversations()], "ultrafeedback"),
        ([{**row, "prompt": row["prompt"][0]["content"]} for row in EXPLICIT], "preference"),
        ([{**row, "chosen": "good", "rejected": "bad"} for row in EXPLICIT], "preference"),
    ],
)
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_message_forms_give_the_same_explicit_pairs(tmp_path, rows, form, name):
    found = read(save(tmp_path / name, rows))
    assert pairs_of(found) == EXPLICIT
    assert (found.report["format"], found.text) == (form, False)
    assert found.train.column_names == ["prompt", "chosen", "rejected", "pair_key", "row"]


def test_hh_rlhf_splits_at_the_last_assistant_turn(tmp_path):
    found = read(save(tmp_path / "pairs.jsonl", HH))
    assert found.report["format"] == "hh_rlhf"
    assert pairs_of(found)[3] == {
        "prompt": [user("q03"), said("Which one?"), user("That")],
        "chosen": [said("The sky is blue")],
        "rejected": [said("The sky")],
    }


def test_hh_rlhf_with_windows_line_ends_and_with_a_prompt_column(tmp_path):
    cut = HH[0]["chosen"].rindex(" The sky")
    windows, beside = [], []
    for row in HH:
        windows.append({side: text.replace("\n", "\r\n") for side, text in row.items()})
        beside.append({"prompt": row["chosen"][:cut]} | {side: text[cut:] for side, text in row.items()})
    first = pairs_of(read(save(tmp_path / "a.jsonl", HH)))
    assert pairs_of(read(save(tmp_path / "b.jsonl", windows))) == first
    assert pairs_of(read(save(tmp_path / "c.jsonl", beside))) == first
    found = read(save(tmp_path / "d.jsonl", [*beside, {**beside[0], "chosen": " "}]))  # the prompt's turn is no reply
    assert only_drop(found) == ("empty side", {"count": 1, "rows": ["20"]})


def test_three_strings_become_messages_or_stay_text(tmp_path):
    path = save(tmp_path / "tldr.jsonl", [{**row, "prompt": row["prompt"] + "\nTL;DR:"} for row in three()])
    found = read(path)
    assert pairs_of(found)[0]["prompt"] == [user("q00\nTL;DR:")] and not found.text
    assert "data.format=text" in found.report["notes"][0]
    found = read(path, format="text")
    assert pairs_of(found)[0] == {"prompt": "q00\nTL;DR:", "chosen": "good 0", "rejected": "bad 0"} and found.text


def test_implicit_text_splits_in_whole_words(tmp_path):
    rows = [{"chosen": f"{i} The sky is blue\n", "rejected": f"{i} The sky"} for i in range(10)]
    rows += [
        {"chosen": "10 It is  bluer", "rejected": "10 It is  blue"},
        {"chosen": "11 ä漢 字", "rejected": "11 ä漢 字典"},
    ]
    found = read(save(tmp_path / "pairs.jsonl", rows))
    assert found.text and found.report["format"] == "text" and "share at the start" in found.report["notes"][0]
    by_prompt = {row["prompt"]: (row["chosen"], row["rejected"]) for row in pairs_of(found)}
    assert by_prompt["3 The"] == (" sky is blue\n", " sky")
    assert by_prompt["10 It is"] == ("  bluer", "  blue")
    assert by_prompt["11 ä漢"] == (" 字", " 字典")


def test_smoltalk2_keeps_template_kwargs_without_none_and_the_recipe_wins(tmp_path):
    own = {"custom_instructions": "", "enable_thinking": False, "python_tools": None, "xml_tools": None}
    path = save(tmp_path / "pairs.parquet", [{**row, "chat_template_kwargs": own, "source": "x"} for row in h4()])
    assert read(path).train[0]["chat_template_kwargs"] == {"custom_instructions": "", "enable_thinking": False}
    found = read(path, chat_template_kwargs={"enable_thinking": True, "date_string": "1 May 2025"})
    assert found.train[0]["chat_template_kwargs"] == {
        "custom_instructions": "",
        "enable_thinking": True,
        "date_string": "1 May 2025",
    }
    assert found.train.column_names == ["prompt", "chosen", "rejected", "chat_template_kwargs", "pair_key", "row"]


def test_the_recipes_template_kwargs_make_a_column(tmp_path):
    found = read(save(tmp_path / "pairs.jsonl", three()), chat_template_kwargs={"enable_thinking": False})
    assert {str(row["chat_template_kwargs"]) for row in pairs_of(found)} == {"{'enable_thinking': False}"}


def test_tools_and_tool_calls_pass_through(tmp_path):
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "clock"}}]}
    talk = [user("time?"), call, {"role": "tool", "name": "clock", "content": "noon"}]
    rows = [{"chosen": [*talk, said("Noon.")], "rejected": [*talk, said("Late.")], "tools": [tool]}]
    rows += [{**conversations(1)[0], "tools": None}, {**conversations(2)[1], "tools": json.dumps([tool])}]
    found = pairs_of(read(save(tmp_path / "pairs.jsonl", rows), eval=0.3))
    assert [row["tools"] for row in found] == [None, [tool], [tool]]
    assert found[2]["prompt"] == [talk[0], {**call, "content": ""}, talk[2]]
    assert found[0]["prompt"] == [user("q00")]  # no tool_calls=None, although neighbours have some
    assert found[2]["chosen"] == [said("Noon.")]


def test_unicode_numbers_and_words_like_none_survive_every_file_type(tmp_path):
    odd = ["NA", "None", "007", "1e5", "null", "[1, 2]", '{"a": 1}', "ä漢🙂\u2028x", "a\r\nb", '"quoted"']
    rows = [{"prompt": f"q{i}", "chosen": text, "rejected": "true"} for i, text in enumerate(odd)]
    want = [[said(text)] for text in odd]
    for name in ("p.jsonl", "p.json", "p.parquet"):
        assert [row["chosen"] for row in pairs_of(read(save(tmp_path / name, rows)))] == want, name
    import csv

    with open(tmp_path / "p.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert [row["chosen"] for row in pairs_of(read(tmp_path / "p.csv"))] == want
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    assert [row["chosen"] for row in pairs_of(read(tmp_path / "p.jsonl.gz"))] == want


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.csv"])
def test_a_compressed_file_is_read_as_the_file_itself(tmp_path, name):
    rows = three(6)
    if name == "p.csv":
        lines = [f"{row['prompt']},{row['chosen']},{row['rejected']}\n" for row in rows]
        (tmp_path / name).write_text("prompt,chosen,rejected\n" + "".join(lines), encoding="utf-8-sig")
    else:
        save(tmp_path / name, rows)
    plain = (tmp_path / name).read_bytes()
    want = pairs_of(read(tmp_path / name, eval=0.2))
    assert len(want) == 6

    half = len(plain) // 2
    zstd = pa.Codec("zstd").compress
    packed = {
        f"{name}.gz": gzip.compress(plain),
        f"{name}.xz": lzma.compress(plain),
        f"{name}.zst": zstd(plain, asbytes=True),
        f"frames-{name}.zst": zstd(plain[:half], asbytes=True) + zstd(plain[half:], asbytes=True),
    }
    for packed_name, content in packed.items():
        path = tmp_path / packed_name
        path.write_bytes(content)
        assert pairs_of(read(path, eval=0.2)) == want
    streamed = read(path, eval=str(path), streaming=True, max_dropped=1)
    assert len(list(streamed.eval)) == 6 and list(streamed.train) == []  # all of the prompts are in both


def test_a_header_that_is_repeated_in_a_csv_file_is_dropped_and_counted(tmp_path):
    header, rows = "prompt,chosen,rejected\n", [f"q{i},good {i},bad {i}\n" for i in range(60)]
    text = header + "".join(rows[:20]) + header + "".join(rows[20:40]) + "\ufeff" + header + "".join(rows[40:])
    (tmp_path / "p.csv").write_text(text, encoding="utf-8-sig")
    train = read(tmp_path / "p.csv").report["train"]
    assert train["dropped"] == {"repeated header line": {"count": 2, "rows": ["20", "41"]}}
    assert (train["rows"], train["kept"] + train["held_out"]) == (62, 60)


def test_rows_that_differ_in_keys_and_types_beside_the_pair_are_read(tmp_path):
    rows = three(4)
    rows[0]["score"], rows[1]["score"], rows[2]["extra"] = 1, 1.5, {"a": None}
    assert len(pairs_of(read(save(tmp_path / "p.jsonl", rows)))) == 4


def test_the_report_is_json_and_several_processes_read_the_same(tmp_path):
    path = save(tmp_path / "a.jsonl", three(30) + [{"prompt": "q", "chosen": "x", "rejected": "x"}])
    one, two = read(path), read(path, num_proc=2)
    assert json.loads(json.dumps(one.report)) == one.report == two.report
    keys = {"path", "train", "eval", "format", "text", "fingerprint", "notes", "contradictions"}
    keys |= {"near_duplicates", "near_prompts"}
    assert one.report.keys() == keys


def test_importing_costs_neither_torch_nor_datasets():
    code = "import sys, dpo_recipes.data.preference_dataset; "
    code += "print(sorted({'torch', 'datasets', 'trl', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_text_and_messages_may_stand_in_one_row(tmp_path):
    rows = [*three(2), {"prompt": [user("x")], "chosen": "a", "rejected": [said("b")]}]
    found = pairs_of(read(save(tmp_path / "p.jsonl", rows), eval=0.3))
    assert found[2] == {"prompt": [user("x")], "chosen": [said("a")], "rejected": [said("b")]}

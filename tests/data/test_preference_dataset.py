"""Every form of raw pairs that is read, every one that is refused, and what is dropped, with numbers."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from making import make_pairs, write_jsonl

from dpo_recipes.data import preference_dataset as data
from dpo_recipes.errors import RecipeError
from dpo_recipes.recipe.recipe import Data


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def save(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path, num_proc=None, **fields):
    return data.read(Data(str(path), **fields), {str(path): 1.0}, num_proc=num_proc)


def pairs_of(found) -> list[dict]:
    """Train and held-out pairs together, in the order of their prompts."""
    both = [
        {column: row[column] for column in row if column not in ("row", "pair_key")}
        for row in (*found.train, *found.eval)
    ]
    return sorted(both, key=lambda row: str(row["prompt"]))


def refused(path, **fields) -> str:
    with pytest.raises(RecipeError) as caught:
        read(path, **fields)
    message = str(caught.value)
    assert len(message) < 1600 and message.rstrip(")").endswith((".", "?")), message
    return message


def three(n=20, **more):
    return [{"prompt": f"q{i:02}", "chosen": f"good {i}", "rejected": f"bad {i}", **more} for i in range(n)]


def conversations(n=20):
    return [{"chosen": [user(f"q{i:02}"), said("good")], "rejected": [user(f"q{i:02}"), said("bad")]} for i in range(n)]


def h4(n=20):
    """Rows as HuggingFaceH4/ultrafeedback_binarized has them."""
    return [
        {
            "prompt": f"q{i:02}",
            "prompt_id": str(i),
            **row,
            "messages": row["chosen"],
            "score_chosen": 8.0,
            "score_rejected": 4.5,
        }
        for i, row in enumerate(conversations(n))
    ]


EXPLICIT = [{"prompt": [user(f"q{i:02}")], "chosen": [said("good")], "rejected": [said("bad")]} for i in range(20)]
HH = [
    {
        "chosen": f"\n\nHuman: q{i:02}\n\nAssistant: Which one?\n\nHuman: That\n\nAssistant: The sky is blue",
        "rejected": f"\n\nHuman: q{i:02}\n\nAssistant: Which one?\n\nHuman: That\n\nAssistant: The sky",
    }
    for i in range(20)
]


LEAKED = "prompt is in the evaluation pairs"


# Forms


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
    windows = [{side: text.replace("\n", "\r\n") for side, text in row.items()} for row in HH]
    cut = HH[0]["chosen"].rindex(" The sky")
    beside = [{"prompt": row["chosen"][:cut], **{s: row[s][cut:] for s in row}} for row in HH]
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


def test_pairs_and_prompts_that_are_nearly_the_same_are_counted(tmp_path):
    rows = [{"prompt": f"What is {i} plus 1?", "chosen": f"It is {i + 1}", "rejected": "Who knows"} for i in range(40)]
    nearly = {"prompt": "what is 3 plus 1", "chosen": "It is 4.", "rejected": "“Who knows…”"}
    other = {"prompt": "What is 3.1 plus 1?", "chosen": "It is 4.1", "rejected": "Who knows"}
    found = read(save(tmp_path / "a.jsonl", [*rows, nearly, other]), eval=save(tmp_path / "b.jsonl", rows[3:4]))
    assert found.report["train"]["dropped"] == {LEAKED: {"count": 1, "rows": ["3"]}}
    assert found.report["near_duplicates"] == {"count": 0, "rows": []}
    assert found.report["near_prompts"] == {"count": 1, "rows": ["0"]}

    again = {**nearly, "chosen": "It is 4 ..."}
    train = save(tmp_path / "c.jsonl", [*rows, nearly, again])
    far = save(tmp_path / "d.jsonl", [{**other, "prompt": "Why?"}])
    report = read(train, eval=far).report
    assert report["near_duplicates"] == {"count": 2, "rows": ["40", "41"]}
    assert report["near_prompts"] == {"count": 0, "rows": []}


# Several pairs of one row


def ranked(n=40):
    return [
        {"prompt": f"q{i:02}", "responses": [f"a {i}", f"b {i}", f"c {i}", f"d {i}"], "scores": [i, 3, -1, 3]}
        for i in range(n)
    ]


def prompts(side) -> set[str]:
    return {row["prompt"][0]["content"] for row in side}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_ranking_makes_pairs_whose_prompt_stays_on_one_side_and_ties_are_counted(tmp_path, name):
    found = read(save(tmp_path / name, ranked()), eval=0.2)
    train = found.report["train"]
    # Of 6 pairs a row, b and d tie always, and a ties with both where i is 3.
    assert train["dropped"] == {"tie": {"count": 42, "rows": ["0[1=3]", "1[1=3]", "2[1=3]"]}}
    assert (train["rows"], train["pairs_made"], train["kept"] + train["held_out"]) == (40, 240, 198)
    assert train["several"] == {"replies": {"rows": 40, "pairs": 198}}
    assert found.report["format"] == "ranking"
    assert not prompts(found.train) & prompts(found.eval)
    assert "40 rows have several replies to a prompt; they make 198 pairs (data.pairing=all)." in found.report["notes"]
    assert all(row["row"].startswith(row["prompt"][0]["content"][1:].lstrip("0") or "0") for row in found.train)


def test_the_pairing_is_the_recipes_and_its_draw_the_seeds(tmp_path):
    path = save(tmp_path / "a.jsonl", ranked())

    def labels(seed=0, **fields):
        found = data.read(Data(path, eval=0.2, **fields), {path: 1.0}, seed=seed)
        return [row["row"] for row in (*found.train, *found.eval)], prompts(found.eval)

    one_a_row, _ = labels(pairing="best_worst")
    assert len(one_a_row) == 40 and "0[1>2]" in one_a_row and "39[0>2]" in one_a_row
    first, again, other = (labels(seed, pairing="best_random") for seed in (1, 1, 2))
    assert first == again and sorted(first[0]) != sorted(other[0])
    assert first[1] == other[1]  # the same prompts are held out
    assert labels(1)[0] == labels(2)[0]  # where nothing is drawn, the seed decides nothing


def test_lists_of_rejected_replies_are_read_from_files_and_readers(tmp_path):
    rows = [{**row, "rejected": [row["rejected"], "never", "no"]} for row in three(10)]
    found = read(save(tmp_path / "a.parquet", rows), eval=0.2)
    assert len(found.train) + len(found.eval) == 30 and not prompts(found.train) & prompts(found.eval)
    by_reader = read(save(tmp_path / "b.jsonl", rows), eval=0.2, reader=dict)
    assert pairs_of(by_reader) == pairs_of(found)
    streamed = read(save(tmp_path / "c.jsonl", rows), eval=save(tmp_path / "d.jsonl", rows[:2]), streaming=True)
    assert len(list(streamed.train)) == 24 and len(streamed.eval) == 6


def test_of_text_without_a_prompt_the_pairs_of_a_row_stay_on_one_side(tmp_path):
    rows = [{"chosen": f"It is {i} so", "rejected": [f"It is {i} not", f"It was {i}"]} for i in range(30)]
    found = read(save(tmp_path / "a.jsonl", rows), eval=0.3, format="text")
    sides = [{row["row"].partition("[")[0] for row in side} for side in (found.train, found.eval)]
    assert len(found.train) + len(found.eval) == 60 and sides[0] and sides[1] and not sides[0] & sides[1]


def talks(n=30):
    """Conversations of two turns, of which the first differs in all and the last in most."""
    rows = []
    for i in range(n):
        start, then = user(f"q{i}"), user("And then?")
        last = [said(f"c {i}"), said(f"d {i}" if i % 3 else f"c {i}")]
        first = [said(f"a {i}"), said(f"b {i}")]
        rows.append({"chosen": [start, first[0], then, last[0]], "rejected": [start, first[1], then, last[1]]})
    return rows


def test_the_last_turn_of_a_conversation_is_a_pair_or_each_that_differs(tmp_path):
    path = save(tmp_path / "a.jsonl", talks())
    last = read(path, eval=0.2, max_dropped=0.4)
    reason = "only earlier turns differ, which data.turns='all' reads"
    assert last.report["train"]["dropped"] == {reason: {"count": 10, "rows": ["0", "3", "6"]}}
    assert last.report["train"]["oddities"]["earlier turns"] == {"share": 1.0, "count": 20, "rows": ["1", "2", "4"]}

    every = read(path, eval=0.2, turns="all")
    assert every.report["train"]["several"] == {"turns": {"rows": 30, "pairs": 50}}
    assert "oddities" not in every.report["train"]
    sides = [{row["prompt"][0]["content"] for row in side} for side in (every.train, every.eval)]
    assert len(every.train) + len(every.eval) == 50 and sides[0] and sides[1] and not sides[0] & sides[1]
    rows = {row["row"]: row for row in (*every.train, *every.eval)}
    assert rows["1 turn 0"]["prompt"] == [user("q1")] and len(rows["1 turn 1"]["prompt"]) == 3


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ({"pairing": "best_worst"}, "data.pairing='best_worst' does nothing: no row of "),
        ({"turns": "all"}, "data.turns='all' does nothing: no row of "),
    ],
)
def test_a_pairing_or_turns_without_several_of_them_do_nothing(tmp_path, field, why):
    assert why in refused(save(tmp_path / "a.jsonl", three()), **field)


def test_weights_are_a_column_where_they_are_not_all_1(tmp_path):
    rows = [{**row, "weight": weight} for row, weight in zip(three(10), [1, 2.5, 0, None, *[1] * 6], strict=True)]
    found = read(save(tmp_path / "a.jsonl", rows), eval=0.2)
    weights = {row["row"]: row["weight"] for row in (*found.train, *found.eval)}
    assert weights == {"0": 1.0, "1": 2.5, **{str(number): 1.0 for number in range(3, 10)}}
    assert found.report["train"]["dropped"] == {"weight is 0": {"count": 1, "rows": ["2"]}}
    found = read(save(tmp_path / "b.parquet", [{**row, "weight": 1} for row in three(10)]), eval=0.2)
    assert "weight" not in found.train.column_names


def test_scores_against_the_labels_are_counted_however_few_they_are(tmp_path):
    rows = [{**row, "score_chosen": 8.0, "score_rejected": 4.5} for row in three(300)]
    rows[7] |= {"score_chosen": 1.0}
    rows[9] |= {"score_chosen": 4.5}
    found = read(save(tmp_path / "a.jsonl", rows), eval=0.1)
    assert found.report["train"]["oddities"] == {
        "scores": {"share": 1 / 300, "count": 1, "rows": ["7"]},
        "equal scores": {"share": 1 / 300, "count": 1, "rows": ["9"]},
    }


def test_rows_that_differ_in_keys_and_types_beside_the_pair_are_read(tmp_path):
    rows = three(4)
    rows[0]["score"], rows[1]["score"], rows[2]["extra"] = 1, 1.5, {"a": None}
    assert len(pairs_of(read(save(tmp_path / "p.jsonl", rows)))) == 4


# Splits, slices and what is held out


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


def test_the_hold_out_is_the_same_for_every_file_and_shares_no_prompt(tmp_path):
    rows = [{"prompt": f"q{i % 25}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(100)]
    first, second = (read(save(tmp_path / name, rows), eval=0.1) for name in ("a.jsonl", "b.parquet"))
    assert first.eval.to_list() == second.eval.to_list()
    assert first.report["fingerprint"] == second.report["fingerprint"]
    prompts = [{str(row["prompt"]) for row in part} for part in (first.train, first.eval)]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 25
    assert len(first.eval) == 12  # 10, and the rest of the last prompt's four pairs
    assert first.report["train"] == {"split": "train", "rows": 100, "kept": 88, "dropped": {}, "held_out": 12}
    assert first.report["eval"] == {"split": "0.1 of train", "rows": 12, "kept": 12, "dropped": {}}
    assert len(read(save(tmp_path / "two.jsonl", three(2))).eval) == 1
    same = [{**row, "prompt": "q"} for row in three(5)]
    assert "leaves none to train on" in refused(save(tmp_path / "same.jsonl", same))


@pytest.mark.slow
def test_the_fingerprint_is_of_the_rows_alone(tmp_path):
    path = save(tmp_path / "a.jsonl", three(12))
    code = (
        "import sys; from dpo_recipes.data import preference_dataset as data; "
        "from dpo_recipes.recipe.recipe import Data; "
        "print(data.read(Data(sys.argv[1]), {sys.argv[1]: 1.0}).report['fingerprint'])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "5", "HF_HOME": str(tmp_path / "elsewhere")}
    other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=env, check=True)
    here = read(path).report["fingerprint"]
    assert other.stdout.strip() == here
    assert read(save(tmp_path / "b.jsonl", [{**row, "extra": 1} for row in three(12)])).report["fingerprint"] == here
    changed = three(12)
    changed[5]["chosen"] += "!"
    assert read(save(tmp_path / "a.jsonl", changed)).report["fingerprint"] != here  # and the old file is not cached


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


# What is dropped

DROPPED = {
    "empty side": {"prompt": "x", "chosen": " \n", "rejected": "b"},
    "identical sides": {"prompt": "x", "chosen": "a", "rejected": "a"},
    "empty prompt": {"prompt": "  ", "chosen": "a", "rejected": "b"},
}
DROPPED_MESSAGES = [
    ("empty side", [user("x"), said("")], [user("x"), said("b")]),
    ("malformed: chosen holds a message without 'content'", [user("x"), said(None)], [user("x"), said("b")]),
    ("empty side", [], [user("x"), said("b")]),
    ("empty side", None, [user("x"), said("b")]),
    ("identical sides", [user("x"), said("b")], [user("x"), said("b")]),
    ("last role is not assistant", [user("x"), user("y")], [user("x"), said("b")]),
    ("prompts differ between sides", [user("x"), said("a")], [user("y"), said("b")]),
    ("prompts differ between sides", [user("x"), said("a")], [user("x"), said("a"), user("y"), said("b")]),
    ("empty prompt", [user(" "), said("a")], [user(" "), said("b")]),
    ("empty prompt", [said("a")], [said("b")]),
    ("empty prompt", [{"role": "system", "content": "s"}, said("a")], [{"role": "system", "content": "s"}, said("b")]),
    ("prompt ends with the assistant", [user("x"), said("h"), said("a")], [user("x"), said("h"), said("b")]),
]
H, NO_TRANSCRIPT = "\n\nHuman: q", "malformed: chosen is no transcript of Human and Assistant in turn"
DROPPED_TRANSCRIPTS = [
    (NO_TRANSCRIPT, "no turns", f"{H}\n\nAssistant: b"),
    (NO_TRANSCRIPT, f"{H}\n\nAssistant: a\n\nAssistant: c", f"{H}\n\nAssistant: b"),
    (NO_TRANSCRIPT, f"Note{H}\n\nAssistant: a", f"{H}\n\nAssistant: b"),
    ("last role is not assistant", f"{H}\n\nAssistant: a{H}", f"{H}\n\nAssistant: b"),
    ("empty side", f"{H}\n\nAssistant: ", f"{H}\n\nAssistant: b"),
    ("empty side", None, f"{H}\n\nAssistant: b"),
    ("identical sides", f"{H}\n\nAssistant: b ", f"{H}\n\nAssistant: b"),
    ("prompts differ between sides", f"{H} r\n\nAssistant: a", f"{H}\n\nAssistant: b"),
    ("empty prompt", "\n\nHuman:\n\nAssistant: a", "\n\nHuman:\n\nAssistant: b"),
]


def only_drop(found) -> tuple[str, dict]:
    ((reason, entry),) = found.report["train"]["dropped"].items()
    assert all(row["prompt"] for row in pairs_of(found))
    return reason, entry


@pytest.mark.parametrize("form", ["preference", "text"])
@pytest.mark.parametrize("reason", DROPPED)
def test_defects_of_strings_are_counted(tmp_path, reason, form):
    found = read(
        save(tmp_path / "p.jsonl", three(3) + [{**DROPPED[reason], "n": i} for i in range(4)] + three(6)[3:]),
        max_dropped=0.4,
        format=form,
    )
    assert only_drop(found) == (reason, {"count": 4, "rows": ["3", "4", "5"]})


@pytest.mark.parametrize(("reason", "chosen", "rejected"), DROPPED_MESSAGES)
def test_defects_of_messages_are_counted(tmp_path, reason, chosen, rejected):
    rows = [*conversations(20), {"chosen": chosen, "rejected": rejected}]
    assert only_drop(read(save(tmp_path / "p.jsonl", rows))) == (reason, {"count": 1, "rows": ["20"]})


@pytest.mark.parametrize(("reason", "chosen", "rejected"), DROPPED_TRANSCRIPTS)
def test_defects_of_transcripts_are_counted(tmp_path, reason, chosen, rejected):
    rows = [{"chosen": chosen, "rejected": rejected}, *HH]
    assert only_drop(read(save(tmp_path / "p.jsonl", rows))) == (reason, {"count": 1, "rows": ["0"]})


def test_a_list_prompt_must_open_both_conversations(tmp_path):
    rows = [{**row, "prompt": [row["chosen"][0]]} for row in conversations(20)]
    rows[7]["prompt"] = [user("another")]
    assert only_drop(read(save(tmp_path / "p.jsonl", rows))) == (
        "prompts differ between sides",
        {"count": 1, "rows": ["7"]},
    )


def test_too_many_dropped_rows_are_refused_with_the_numbers_and_the_way_out(tmp_path):
    path = save(tmp_path / "p.jsonl", three(8) + list(DROPPED.values())[:2])
    message = refused(path)
    assert "2 of 10 rows cannot be used" in message and "empty side: 1 (rows 8 ...)" in message
    assert "identical sides: 1 (rows 9 ...)" in message and "data.max_dropped=0.2." in message
    assert len(pairs_of(read(path, max_dropped=0.2))) == 8
    message = refused(save(tmp_path / "all.jsonl", [DROPPED["empty prompt"]] * 3), max_dropped=1.0)
    assert "empty prompt: 3 (rows 0, 1, 2 ...). Correct the rows." in message
    rest = [*three(1), *[DROPPED["empty prompt"]] * 2]
    assert "2 of 3 rows cannot be used" in refused(save(tmp_path / "most.jsonl", rest), max_dropped=0.6)


# What is refused


def test_a_wrong_type_among_few_rows_names_the_row_the_field_and_what_was_found(tmp_path):
    row = {"prompt": "x", "chosen": 42, "rejected": "b"}
    message = refused(save(tmp_path / "p.jsonl", [*three(2), row, *three(5)[2:]]))
    assert "p.jsonl (train): 1 of 6 rows cannot be used, read as 'preference'. malformed: chosen is int" in message
    assert "1 (rows 2 ...: 42)" in message


def test_text_and_messages_may_stand_in_one_row(tmp_path):
    rows = [*three(2), {"prompt": [user("x")], "chosen": "a", "rejected": [said("b")]}]
    found = pairs_of(read(save(tmp_path / "p.jsonl", rows), eval=0.3))
    assert found[2] == {"prompt": [user("x")], "chosen": [said("a")], "rejected": [said("b")]}


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
    assert (
        "does not exist" in (message := refused(tmp_path / "pair.jsonl")) and "Did you mean 'pairs.jsonl'?" in message
    )
    assert "no such file or folder in" in refused("nowhere/at/all.jsonl")
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


# Duplicates, contradictions, a reader of one's own, a mix


def test_exact_duplicates_are_dropped_and_do_not_count_as_lost(tmp_path):
    rows = three(10) + three(10) + [{"prompt": "q00", "chosen": "bad 0", "rejected": "good 0"}]
    report = read(save(tmp_path / "p.jsonl", rows), max_dropped=0.0).report
    assert report["train"]["dropped"] == {"exact duplicate": {"count": 10, "rows": ["10", "11", "12"]}}
    other = save(tmp_path / "other.jsonl", [{**three(1)[0], "prompt": "z"}])
    assert read(tmp_path / "p.jsonl", eval=other).report["contradictions"] == {"count": 2, "rows": ["0", "20"]}


def test_no_pair_is_left_where_all_prompts_are_in_the_evaluation_pairs(tmp_path):
    path = save(tmp_path / "p.jsonl", three(10))
    assert "no pair is left" in refused(path, eval=path)


def swapped(row):
    if row["prompt"] == "q03":
        return None
    return {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": [said(row["chosen"])]}


def test_a_reader_of_ones_own(tmp_path):
    path = save(tmp_path / "p.jsonl", [{**row, "instruction": "x"} for row in three(30)])
    found = read(path, reader=swapped)
    assert (found.report["format"], found.text) == ("reader", False)
    assert found.report["train"]["dropped"] == {"dropped by the reader": {"count": 1, "rows": ["3"]}}
    want = {"prompt": [user("q05")], "chosen": [said("bad 5")], "rejected": [said("good 5")]}
    assert want in pairs_of(found) and len(pairs_of(found)) == 29
    assert read(path, reader=swapped, num_proc=2).report == found.report


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (lambda row: row["nothing"], "p.jsonl (train), row 0: data.reader raised KeyError: 'nothing'."),
        (lambda row: (1, 2, 3), "row 0: data.reader returned (1, 2, 3), not a dict with prompt, chosen and rejected"),
        (lambda row: {"prompt": "q", "chosen": "a"}, "row 0: data.reader returned {'prompt': 'q', 'chosen': 'a'}, not"),
        (
            lambda row: {"prompt": "q", "chosen": 1, "rejected": "b"},
            "malformed: chosen is int, not str or list or dict",
        ),
    ],
)
def test_a_reader_that_is_wrong_is_one_error(tmp_path, reader, words):
    assert words in refused(save(tmp_path / "p.jsonl", three(3)), reader=reader)


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


def test_the_row_is_no_part_of_the_fingerprint(tmp_path):
    here = read(save(tmp_path / "a.jsonl", three(12)), eval=0.3).report["fingerprint"]
    broken = [{**three(1)[0], "chosen": ""}, *three(12)]
    assert read(save(tmp_path / "b.jsonl", broken), eval=0.3, max_dropped=0.1).report["fingerprint"] == here


# Streams


def test_a_stream_gives_the_same_pairs_and_counts_what_it_drops(tmp_path):
    pairs = make_pairs(12)
    broken = {**pairs[3], "chosen": pairs[3]["rejected"]}
    train = write_jsonl(tmp_path / "train.jsonl", [*pairs[:3], broken, *pairs[4:]])
    test = write_jsonl(tmp_path / "test.jsonl", pairs[:2])
    stored, streamed = (read(str(train), eval=str(test), streaming=on, max_dropped=0.5) for on in (False, True))
    assert isinstance(streamed.train, datasets.IterableDataset) and streamed.report["train"]["dropped"] == {}
    assert [row["row"] for row in streamed.train] == ["2", *map(str, range(4, 12))] == stored.train["row"][:]
    assert [row["chosen"] for row in streamed.train] == stored.train["chosen"][:]
    twice = {LEAKED: {"count": 4, "rows": ["0", "1", "0"]}, "identical sides": {"count": 2, "rows": ["3", "3"]}}
    assert streamed.report["train"]["dropped"] == twice  # it was read twice
    assert streamed.eval["chosen"][:] == stored.eval["chosen"][:]


def test_a_stream_needs_one_path_and_evaluation_pairs_of_their_own(tmp_path, pairs_file):
    assert "name one path, and a split as data.eval" in refused(str(pairs_file), streaming=True, eval=0.1)
    message = refused(str(pairs_file), streaming=True, train="train[:5]", eval=str(pairs_file))
    assert "What is streamed has no slices" in message


def test_a_stream_of_a_file_holds_nothing_out_where_the_split_that_is_named_is_missing(pairs_file):
    assert "is a single file, which has no splits" in refused(str(pairs_file), streaming=True, eval="test")


def test_a_stream_that_breaks_off_names_its_file(tmp_path, pairs_file):
    cut = tmp_path / "cut.jsonl"
    cut.write_text(pairs_file.read_text() * 10 + '{"prompt": "a')
    stream = read(str(cut), eval=str(pairs_file), streaming=True).train
    with pytest.raises(RecipeError, match=r"cut.jsonl is not readable as jsonl: line 241 is not one whole JSON object"):
        list(stream)


# What a careful reader would ask


def test_a_reader_is_asked_again_in_every_run_whatever_it_closes_over(tmp_path):
    path = save(tmp_path / "a.jsonl", three(4))

    def ending(word):
        return lambda row: {**row, "chosen": row["chosen"] + word}

    for word in ("X", "Y"):
        assert all(
            row["chosen"][0]["content"].endswith(word) for row in read(path, reader=ending(word), eval=0.3).train
        )


def test_row_numbers_are_those_of_the_split_whatever_slice_is_read(tmp_path):
    rows = three(30)
    rows[12]["chosen"] = ""
    path = save(tmp_path / "a.jsonl", rows)
    found = read(path, train="train[10:20]", max_dropped=0.5)
    assert found.report["train"]["dropped"] == {"empty side": {"count": 1, "rows": ["12"]}}
    assert {row["row"] for split in (found.train, found.eval) for row in split} == {*map(str, range(10, 20))} - {"12"}
    both = read(path, train="train[:2]+train[12:15]", max_dropped=0.5)
    assert both.report["train"]["dropped"]["empty side"]["rows"] == ["train:12"]


def test_prompts_that_differ_in_case_and_spaces_alone_stay_on_one_side(tmp_path):
    rows = [{**row, "prompt": text(row["prompt"])} for row in three(30) for text in (str, str.upper, "  {}\r\n".format)]
    found = read(save(tmp_path / "a.jsonl", rows), eval=0.2)
    sides = [
        {" ".join(row["prompt"][0]["content"].casefold().split()) for row in side} for side in (found.train, found.eval)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    other = save(tmp_path / "b.jsonl", rows[1:2])
    kept = read(save(tmp_path / "c.jsonl", three(30)), eval=other)
    assert kept.report["train"]["dropped"][LEAKED] == {"count": 1, "rows": ["0"]}


@pytest.mark.parametrize(("rows", "lost"), [(100, 29), (100, 57), (50, 29), (180, 63)])
def test_the_share_that_a_message_names_is_accepted(tmp_path, rows, lost):
    path = save(tmp_path / "a.jsonl", [{**row, "chosen": ""} if n < lost else row for n, row in enumerate(three(rows))])
    (named,) = re.findall(r"data.max_dropped=([0-9.]+)\.$", refused(path))
    assert len(pairs_of(read(path, max_dropped=float(named)))) == rows - lost


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


def test_a_stream_with_too_many_unusable_rows_stops(tmp_path, pairs_file):
    rows = three(200)
    for row in rows[::4]:
        row["chosen"] = ""
    path = save(tmp_path / "a.jsonl", rows)
    stream = read(path, streaming=True, eval=str(pairs_file)).train
    with pytest.raises(
        RecipeError, match="26 of the first 101 rows cannot be used. The last: empty side.* data.max_dropped"
    ):
        list(stream)
    assert len(list(read(path, streaming=True, eval=str(pairs_file), max_dropped=0.3).train)) == 150

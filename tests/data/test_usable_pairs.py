"""The usable pairs of a side: several of one row, weights, what is dropped and counted, and when it is too much."""

from __future__ import annotations

import re

import pytest
from making import said, user
from reading_files import HH, NO_TRANSCRIPT, conversations, only_drop, pairs_of, read, refused, save, three

from dpo_recipes.data import preference_dataset as data
from dpo_recipes.recipe.data import Data

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


@pytest.mark.slow
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
    trained = {row["row"].partition("[")[0] for row in found.train}
    held_out = {row["row"].partition("[")[0] for row in found.eval}
    assert len(found.train) + len(found.eval) == 60 and trained and held_out and not trained & held_out


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
    trained = {row["prompt"][0]["content"] for row in every.train}
    held_out = {row["prompt"][0]["content"] for row in every.eval}
    assert len(every.train) + len(every.eval) == 50 and trained and held_out and not trained & held_out
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
H = "\n\nHuman: q"
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


def test_a_wrong_type_among_few_rows_names_the_row_the_field_and_what_was_found(tmp_path):
    row = {"prompt": "x", "chosen": 42, "rejected": "b"}
    message = refused(save(tmp_path / "p.jsonl", [*three(2), row, *three(5)[2:]]))
    assert "p.jsonl (train): 1 of 6 rows cannot be used, read as 'preference'. malformed: chosen is int" in message
    assert "1 (rows 2 ...: 42)" in message


def test_exact_duplicates_are_dropped_and_do_not_count_as_lost(tmp_path):
    rows = three(10) + three(10) + [{"prompt": "q00", "chosen": "bad 0", "rejected": "good 0"}]
    report = read(save(tmp_path / "p.jsonl", rows), max_dropped=0.0).report
    assert report["train"]["dropped"] == {"exact duplicate": {"count": 10, "rows": ["10", "11", "12"]}}
    other = save(tmp_path / "other.jsonl", [{**three(1)[0], "prompt": "z"}])
    assert read(tmp_path / "p.jsonl", eval=other).report["contradictions"] == {"count": 2, "rows": ["0", "20"]}


def test_no_pair_is_left_where_all_prompts_are_in_the_evaluation_pairs(tmp_path):
    path = save(tmp_path / "p.jsonl", three(10))
    assert "no pair is left" in refused(path, eval=path)


@pytest.mark.parametrize(("rows", "lost"), [(100, 29), (100, 57), (50, 29), (180, 63)])
def test_the_share_that_a_message_names_is_accepted(tmp_path, rows, lost):
    path = save(tmp_path / "a.jsonl", [{**row, "chosen": ""} if n < lost else row for n, row in enumerate(three(rows))])
    (named,) = re.findall(r"data.max_dropped=([0-9.]+)\.$", refused(path))
    assert len(pairs_of(read(path, max_dropped=float(named)))) == rows - lost

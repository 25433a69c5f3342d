"""The pairs of several replies to one prompt: which they are, which are ties, and what has no order."""

from __future__ import annotations

from itertools import combinations

import pytest

from dpo_recipes.formats.messages import Drop
from dpo_recipes.formats.raw_row import Reading, explicit_pairs
from dpo_recipes.formats.several_replies import Pairing


def pairs(row, kind="all", seed=0, form="ranking"):
    """label -> (chosen, rejected), or the reason of a Drop."""
    found = {}
    for label, pair, _ in explicit_pairs(row, form, Reading(pairing=Pairing(kind, seed))):
        if isinstance(pair, Drop):
            found[label] = str(pair)
        else:
            found[label] = (pair["chosen"][0]["content"], pair["rejected"][0]["content"])
    return found


ROW = {"prompt": "Ok?", "responses": ["low", "high", "mid", "mid too"], "scores": [1, 9.5, 4, 4]}


def test_all_ordered_pairs_of_scores_and_their_ties():
    assert pairs(ROW) == {
        "[1>2]": ("high", "mid"),
        "[1>3]": ("high", "mid too"),
        "[1>0]": ("high", "low"),
        "[2=3]": "tie",
        "[2>0]": ("mid", "low"),
        "[3>0]": ("mid too", "low"),
    }
    ranks = {"prompt": "Ok?", "responses": ROW["responses"], "ranks": [3, 1, 2, 2]}
    assert pairs(ranks) == pairs(ROW)
    replies = [{"text": text, "rank": rank} for text, rank in zip(ROW["responses"], [3, 1, 2, 2], strict=True)]
    assert pairs({"prompt": "Ok?", "responses": replies}) == pairs(ROW)


def test_the_best_over_the_worst():
    assert pairs(ROW, "best_worst") == {"[1>0]": ("high", "low")}
    assert pairs({**ROW, "scores": [2, 2, 2, 2]}, "best_worst") == {"[0=3]": "tie"}


def test_the_best_over_a_random_worse_one_is_drawn_by_the_seed():
    def drawn(seed, row=ROW):
        [(label, sides)] = pairs(row, "best_random", seed).items()
        return label, sides

    assert drawn(3) == drawn(3)
    assert {drawn(seed)[0] for seed in range(40)} == {"[1>0]", "[1>2]", "[1>3]"}
    rows = [{**ROW, "prompt": f"q{number}"} for number in range(40)]
    assert {drawn(0, row)[0] for row in rows} == {"[1>0]", "[1>2]", "[1>3]"}  # each row has its own draw
    two_best = {**ROW, "scores": [1, 9, 9, 9]}
    assert drawn(0, two_best) == ("[1>0]", ("high", "low"))  # a tie is never drawn
    assert pairs({**ROW, "scores": [2] * 4}, "best_random") == {"[0=3]": "tie"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scores": [1, 2, 3]}, "malformed: scores are 3 for 4 replies: [1, 2, 3]"),
        ({"scores": [1, 2, 3, None]}, "malformed: scores is not a number: ''"),
        ({"scores": [1, 2, 3, "high"]}, "malformed: scores is not a number: 'high'"),
        ({"ranks": [1, 2, 3, 4]}, "malformed: scores stand beside ranks: which of them is meant?: [1, 9.5, 4, 4]"),
        ({"scores": None}, "malformed: responses have neither scores nor ranks, so that none is said to be"),
        ({"responses": ["low"], "scores": [1]}, "fewer than two replies"),
        ({"responses": [], "scores": []}, "malformed: responses have neither scores nor ranks"),
        ({"responses": [{"text": "a"}, {"model": "b"}], "scores": [1, 2]}, "malformed: responses hold a reply without"),
        (
            {"responses": [{"text": "a", "score": 1, "rank": 1}] * 2, "scores": None},
            "malformed: responses have both score and rank: which of them is meant?",
        ),
    ],
)
def test_what_has_no_order_is_told(changes, reason):
    [told] = pairs({**ROW, **changes}).values()
    if changes.get("responses") == []:
        reason = "fewer than two replies"
    assert told.startswith(reason)


def test_a_reply_that_cannot_be_learned_from_costs_its_own_pairs_alone():
    found = pairs({**ROW, "responses": ["low", "high", " ", "mid too"]})
    assert found["[1>2]"] == found["[2>0]"] == "empty side" and found["[3>0]"] == ("mid too", "low")


def test_several_rejected_replies_are_each_below_the_chosen_one():
    row = {"prompt": "Ok?", "chosen": "yes", "rejected": ["no", "never", "maybe"]}
    want = {"[0]": ("yes", "no"), "[1]": ("yes", "never"), "[2]": ("yes", "maybe")}
    assert pairs(row, form="preference") == want
    turns = {
        "conversations": [{"from": "human", "value": "Ok?"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": [[{"from": "gpt", "value": text}] for text in row["rejected"]],
    }
    assert pairs(turns, form="sharegpt") == want
    assert set(pairs({**row, "chosen": ["yes", "sure"]}, form="preference")) == {
        f"[{first}>{second}]" for first in range(2) for second in range(3)
    }
    drawn = {tuple(pairs(row, "best_random", seed, "preference")) for seed in range(30)}
    assert drawn == {("[0]",), ("[1]",), ("[2]",)}


def test_a_list_without_an_order_has_no_worst_and_several_chosen_no_best():
    row = {"prompt": "Ok?", "chosen": "yes", "rejected": ["no", "never"]}
    [told] = pairs(row, "best_worst", form="preference").values()
    assert told.startswith("malformed: rejected has no order, so that none is the worst for data.pairing='best_worst'")
    [told] = pairs({**row, "chosen": ["yes", "sure"]}, "best_random", form="preference").values()
    assert told.startswith("malformed: chosen has no order, so that none is the best for data.pairing='best_random'")


def test_pairs_are_as_many_as_two_of_the_replies_can_be_picked():
    row = {"prompt": "Ok?", "responses": [f"reply {number}" for number in range(7)], "scores": [*range(7)]}
    found = pairs(row)
    assert len(found) == len([*combinations(range(7), 2)])
    assert all(int(chosen[-1]) > int(rejected[-1]) for chosen, rejected in found.values())

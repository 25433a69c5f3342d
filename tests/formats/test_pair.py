"""The prompt of two sides, and what makes a pair unusable."""

from __future__ import annotations

import pytest
from making import said, system, user

from dpo_recipes.formats.messages import Drop
from dpo_recipes.formats.pair import pair_of_conversations, pair_of_replies, pairs_of_turns, shared_start
from dpo_recipes.formats.raw_row import explicit_pair

CALL = said("", tool_calls=[{"type": "function", "function": {"name": "clock"}}])
RESULT = {"role": "tool", "content": "noon"}


def test_the_prompt_of_two_conversations_is_their_shared_start():
    start = [system("Be brief."), user("Hi"), said("Hello"), user("Ok?")]
    pair = pair_of_conversations([*start, said("Yes.")], [*start, said("No.")])
    assert pair == {"prompt": start, "chosen": [said("Yes.")], "rejected": [said("No.")]}


def test_a_reply_may_be_several_turns_with_tools():
    pair = pair_of_conversations(
        [user("Time?"), CALL, RESULT, said("Noon.")], [user("Time?"), CALL, RESULT, said("No.")]
    )
    assert pair["prompt"] == [user("Time?"), CALL, RESULT]
    pair = pair_of_replies([user("Time?")], [CALL], [said("No.")])
    assert (pair["chosen"], pair["rejected"]) == ([CALL], [said("No.")])


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2], 1), ([1], [1, 2], 0), ([2, 1], [3, 1], 0), ([], [1], 0)],
)
def test_a_shared_start_leaves_something_on_each_side(chosen, rejected, shared):
    assert shared_start(chosen, rejected) == shared


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "reason"),
    [
        ([user("q")], [said("a"), RESULT], [said("b")], "last role is not assistant"),
        ([user("q")], [], [said("b")], "empty side"),
        ([user("q")], [said("a")], [said(" \n")], "empty side"),
        ([user("q")], [said("a")], [said("a")], "identical sides"),
        ([], [said("a")], [said("b")], "empty prompt"),
        ([system("Be brief.")], [said("a")], [said("b")], "empty prompt"),
        ([{"role": "developer", "content": "Be brief."}], [said("a")], [said("b")], "empty prompt"),
        ([user("\u200b")], [said("a")], [said("b")], "empty prompt"),
        ([user("q"), said("x")], [said("a")], [said("b")], "prompt ends with the assistant"),
    ],
)
def test_a_pair_that_teaches_nothing_is_dropped(prompt, chosen, rejected, reason):
    for every_turn in (False, True):
        [drop] = pairs_of_turns(pair_of_replies(prompt, chosen, rejected), every_turn=every_turn)
        assert isinstance(drop, Drop) and (drop.reason, drop.found) == (reason, "")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([user("q"), said("a")], [user("r"), said("b")]),
        ([system("s"), user("q"), said("a")], [user("q"), said("b")]),
        ([user("q"), said("a"), user("r"), said("c")], [user("q"), said("b"), user("s"), said("d")]),
        ([user("q"), said("a"), user("r"), said("c")], [user("q"), said("b")]),
    ],
)
def test_conversations_of_which_others_say_other_things_are_dropped(chosen, rejected):
    for every_turn in (False, True):
        [drop] = pairs_of_turns(pair_of_conversations(chosen, rejected), every_turn=every_turn)
        assert drop.reason == "prompts differ between sides"


def test_of_several_turns_the_last_is_a_pair_or_each_that_differs():
    chosen = [user("q"), said("a"), user("r"), said("same"), user("s"), CALL, RESULT, said("b")]
    rejected = [user("q"), said("c"), user("r"), said("same"), user("s"), said("d")]
    sides = pair_of_conversations(chosen, rejected)
    [last] = pairs_of_turns(sides, every_turn=False)
    assert (last["prompt"], last["chosen"], last["rejected"]) == (chosen[:5], chosen[5:], rejected[5:])
    assert last["differs_earlier"] and last["turns"] == 3

    first, second = pairs_of_turns(sides, every_turn=True)
    assert (first["prompt"], first["chosen"], first["rejected"]) == ([user("q")], [said("a")], [said("c")])
    assert second == {**last, "differs_earlier": False}
    assert not first["differs_earlier"]


def test_replies_beside_a_prompt_may_go_on_with_turns():
    chosen, rejected = [said("a"), user("r"), said("b")], [said("a"), user("r"), said("c")]
    [pair] = pairs_of_turns(pair_of_replies([user("q")], chosen, rejected), every_turn=True)
    assert (pair["prompt"], pair["chosen"]) == ([user("q"), said("a"), user("r")], [said("b")])


def test_turns_of_which_only_earlier_ones_differ_say_how_they_are_read():
    chosen, rejected = [user("q"), said("a"), user("r"), said("c")], [user("q"), said("b"), user("r"), said("c")]
    [drop] = pairs_of_turns(pair_of_conversations(chosen, rejected), every_turn=False)
    assert drop.reason == "only earlier turns differ, which data.turns='all' reads"
    [pair] = pairs_of_turns(pair_of_conversations(chosen, rejected), every_turn=True)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ([user("q")], [said("a")], [said("b")])
    [drop] = pairs_of_turns({"prompt": [user("q")], "chosen": chosen[1:], "rejected": chosen[1:]}, every_turn=True)
    assert drop.reason == "identical sides"


def test_answers_that_repeat_a_long_prompt_are_dropped():
    asked = "What is the capital of France?"
    row = {"prompt": asked, "chosen": f"{asked}\nParis", "rejected": f"{asked}\nRome"}
    assert explicit_pair(row, "preference", strict=True).reason == "both sides repeat the prompt"
    assert isinstance(explicit_pair({**row, "rejected": "Rome"}, "preference", strict=True), dict)
    assert isinstance(
        explicit_pair({"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"}, "preference", strict=True), dict
    )

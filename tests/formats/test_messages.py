"""One column of a row as messages, text, a number or JSON, and the reason to drop what is none."""

from __future__ import annotations

import copy

import pytest

from dpo_recipes.formats.messages import Drop, is_empty, malformed, messages, number, plain_json, text, typed


def dropped(read, *arguments) -> tuple[str, str]:
    with pytest.raises(Drop) as caught:
        read(*arguments)
    return caught.value.reason, caught.value.found


def test_a_drop_says_its_reason_and_what_was_found():
    drop = malformed("labels", "is not 0 or 1", "x" * 99)
    assert drop.reason == "malformed: labels is not 0 or 1" and drop.found == "'" + "x" * 59
    assert str(drop) == f"{drop.reason}: {drop.found}" and str(Drop("tie")) == "tie"
    again = copy.copy(drop)  # as between worker processes
    assert (again.reason, again.found) == (drop.reason, drop.found)


@pytest.mark.parametrize("value", [None, "", " \n\t\0", "\u200b\u200f\u2060\ufeff", [], (), {}, {"from": None}])
def test_what_is_empty(value):
    assert is_empty(value)


@pytest.mark.parametrize("value", ["a", "\u200ba", "\u00e9", [""], [{}], {"from": ""}, 0, False, 1.5])
def test_what_holds_something(value):
    assert not is_empty(value)


# JSON


def test_plain_json_is_the_value_without_none():
    value = {"a": None, "b": [None, 1, 2.5, True, "\u00e9"], "c": {"d": None}, "e": (1,)}
    assert plain_json(value, "tools") == {"b": ["", 1, 2.5, True, "\u00e9"], "c": {}, "e": [1]}
    assert plain_json(None, "tools") == ""


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        (float("nan"), "float", "nan"),
        (float("-inf"), "float", "-inf"),
        (2**63, "int", "9223372036854775808"),
        ("\ud83d", "str", "'\\ud83d'"),
        (b"a", "bytes", "b'a'"),
    ],
)
def test_what_plain_json_cannot_hold_is_dropped(value, kind, found):
    for nested in (value, [value], {"key": value}):
        reason = f"malformed: chosen holds a {kind} that UTF-8 JSON of 64 bits cannot hold"
        assert dropped(plain_json, nested, "chosen") == (reason, found)
    assert plain_json(2**63 - 1, "chosen") == 2**63 - 1


def test_a_list_or_a_dict_may_be_stored_as_its_json():
    assert typed('[{"a": 1}]', "tools", list) == [{"a": 1}]
    assert typed('{"a": null}', "info", dict) == {}
    assert typed("[1]", "chosen", str, list) == "[1]"  # where text is expected, it is text
    assert dropped(typed, "clock()", "tools", list, dict) == ("malformed: tools is str, not list or dict", "'clock()'")
    assert dropped(typed, "3", "tools", list) == ("malformed: tools is int, not list", "3")


# Text and numbers


def test_the_text_of_a_column():
    assert text({"input": " a "}, "input") == " a "
    assert [text({"input": value}, "input") for value in (None, "", " ", [], {})] == [""] * 5
    assert text({}, "input") == ""
    assert dropped(text, {"input": ["a"]}, "input") == ("malformed: input is list, not str", "['a']")


def test_a_number_may_be_text():
    assert [number({"n": value}, "n") for value in (2, -1.5, "3", " 0.5 ")] == [2, -1.5, 3, 0.5]
    assert [number({"n": value}, "n", 0, 1) for value in (0, 1, "1", True)] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("value", "allowed", "reason", "found"),
    [
        ("", (), "is not a number", "''"),
        ("a", (), "is not a number", "'a'"),
        ([1], (), "is not a number", "[1]"),
        ("nan", (), "is not a number", "'nan'"),
        ("inf", (), "is not a number", "'inf'"),
        ("nan", (0, 1), "is not 0 or 1", "'nan'"),
        (2, (0, 1), "is not 0 or 1", "2"),
        (-1, (0, 1), "is not 0 or 1", "-1"),
    ],
)
def test_what_is_no_number_prefers_neither_side(value, allowed, reason, found):
    assert dropped(number, {"choice": value}, "choice", *allowed) == (f"malformed: choice {reason}", found)


# Messages


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("Ok?", [{"role": "user", "content": "Ok?"}]),
        ({"role": "assistant", "content": "Yes."}, [{"role": "assistant", "content": "Yes."}]),
        ({"from": "gpt", "value": "Yes."}, [{"role": "assistant", "content": "Yes."}]),
        (
            [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Ok?"}],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ok?"}],
        ),
        ([{"from": "observation", "value": "noon"}], [{"role": "tool", "content": "noon"}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "O"}, {"type": "text", "text": "k?"}]}],
            [{"role": "user", "content": "Ok?"}],
        ),
        (
            [{"from": "human", "value": [{"type": "text", "value": "O"}, {"type": "text", "text": "k?"}]}],
            [{"role": "user", "content": "Ok?"}],
        ),
        ([{"type": "text", "text": "O"}, {"type": "text", "value": "k?"}], [{"role": "user", "content": "Ok?"}]),
        ({"type": "text", "text": "Ok?"}, [{"role": "user", "content": "Ok?"}]),
        (
            {"from": "function_call", "value": [{"name": "clock"}]},
            [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "clock"}}]}],
        ),
        (
            {"from": "function_call", "value": [{"type": "text", "text": '{"name": "clock"}'}]},
            [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "clock"}}]}],
        ),
        (
            {"role": "assistant", "name": "clerk", "tool_calls": [{"type": "function"}]},
            [{"role": "assistant", "content": "", "name": "clerk", "tool_calls": [{"type": "function"}]}],
        ),
        (
            {"from": "function_call", "value": '[{"name": "clock"}, {"name": "bell"}]'},
            [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "clock"}},
                        {"type": "function", "function": {"name": "bell"}},
                    ],
                }
            ],
        ),
        (None, []),
        ("\u200b ", []),
        ([], []),
        ({}, []),
    ],
)
def test_the_messages_of_a_column(value, want):
    row = {"prompt": value}
    assert messages(row, "prompt", "user") == want
    assert messages(row, "prompt", "user") == want  # the row is as it was


ROLES = "human, gpt, observation, function_call, system, user, assistant, tool, developer"


@pytest.mark.parametrize(
    ("value", "reason", "found"),
    [
        (3, "is int, not str or list or dict", "3"),
        (["a"], "is str, not dict", "'a'"),
        ([{}], "holds a message without 'role'", "{}"),
        ([{"from": "bot", "value": "x"}], f"holds a role that is none of {ROLES}", "'bot'"),
        (
            [{"from": "human", "value": "Ok?", "role": "user", "content": "Ok?"}],
            "mixes role and content with from and value",
            "{'from': 'human', 'value': 'Ok?', 'role': 'user', 'content':",
        ),
        ([{"role": "user"}], "holds a message without 'content'", "{'role': 'user'}"),
        ([{"role": "user", "content": 3}], "content is int, not str", "3"),
        ([{"from": "function_call", "value": "clock()"}], "is str, not list or dict", "'clock()'"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            "holds an image in a block, as url: images are read from a column images",
            "'x'",
        ),
        (
            [{"type": "text", "text": "x"}, {"type": "image_url", "value": "x"}],
            "holds content of type image_url, where text and images are read",
            "[{'type': 'text', 'text': 'x'}, {'type': 'image_url', 'value",
        ),
        (
            [{"role": "assistant", "content": [{"type": "reasoning", "value": "x"}, {"type": "text", "value": "y"}]}],
            "holds content of type reasoning, where text and images are read",
            "[{'type': 'reasoning', 'value': 'x'}, {'type': 'text', 'valu",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "value": "y"}]}],
            "holds a block with both text and value",
            "{'type': 'text', 'text': 'x', 'value': 'y'}",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "content is NoneType, not str", "None"),
    ],
)
def test_what_is_no_message_is_dropped(value, reason, found):
    assert dropped(messages, {"prompt": value}, "prompt") == (f"malformed: prompt {reason}", found)

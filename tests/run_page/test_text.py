"""Text as HTML: whatever a model writes stays text, and what differs in two answers is marked."""

from __future__ import annotations

import html
import re

import pytest

from dpo_recipes.run_page.text import Html, element, escape, joined, marked, table


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<b>&\"'", "&lt;b&gt;&amp;&quot;&#x27;"),
        ("a\x00b\x1b[0m\x7f", "a␀b␛[0m␡"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("half \ud800 a character", "half ? a character"),
        (3, "3"),
        (Html("<b>"), "<b>"),
    ],
)
def test_text_is_escaped_once_and_html_is_not(value, shown):
    assert escape(value) == shown
    assert escape(escape(value)) == shown


def test_what_is_put_together_is_escaped_part_by_part():
    assert joined(["<", Html("<br>")]) == "&lt;<br>"
    assert element("p", "a<b", "soft") == '<p class="soft">a&lt;b</p>'
    assert table([("a", "<1>")], ("", "n")) == (
        "<table><tr><th></th><th>n</th></tr><tr><th>a</th><td>&lt;1&gt;</td></tr></table>"
    )


def marks(text: str) -> list[str]:
    return [html.unescape(mark) for mark in re.findall(r"<mark>(.*?)</mark>", text)]


def plain(text: str) -> str:
    return html.unescape(re.sub("</?mark>", "", text))


@pytest.mark.parametrize(
    ("first", "second", "only_first", "only_second"),
    [
        ("The lamp is red.", "The lamp is blue.", ["red."], ["blue."]),
        ("So. The lamp is red. Bye.", "The lamp is red. Bye.", ["So. "], []),
        ("same  words", "same words", [], []),
        ("", "a <b> answer", [], ["a <b> answer"]),
        ("one two", "three four five", ["one two"], ["three four five"]),
        (" leading", "leading\n", [" "], []),
    ],
)
def test_the_words_that_only_one_answer_has_are_marked_and_nothing_is_lost(first, second, only_first, only_second):
    shown, other = marked(first, second)
    assert (marks(shown), marks(other)) == (only_first, only_second)
    assert (plain(shown), plain(other)) == (first, second)

"""How sentences stand in a terminal: folded between words, paths behind their slashes; in a log as one line."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dpo_recipes.errors import Finding
from dpo_recipes.sentences import Sentence, fold_paths, print_line
from dpo_recipes.terminal import findings_table

PATH = "/home/somebody/projects/preferences/experiments-of-november/data/pairs-of-the-shop/train.jsonl"
SENTENCE = f"Making what [quickstart] needs, once, in {PATH} and nowhere else."


def printed(width: int, terminal: bool, *things) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system=None)
    for thing in things:
        console.print(thing)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_sentence_folds_between_words_and_behind_slashes(width):
    out = io.StringIO()
    print_line(Console(file=out, force_terminal=True, width=width, color_system=None), SENTENCE)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert all(len(line) <= max(width, len("experiments-of-november/")) for line in lines)
    rejoined = "".join(line if line.endswith("/") else f"{line} " for line in lines).strip()
    assert rejoined == SENTENCE or width == 20  # where a segment is longer than a line
    assert (len(lines) == 1) == (width == 200)


def test_a_sentence_is_one_line_in_a_log():
    out = io.StringIO()
    print_line(Console(file=out, width=40), SENTENCE)
    assert out.getvalue() == f"{SENTENCE}\n"


@pytest.mark.parametrize(
    ("text", "width", "folded"),
    [
        ("a short one", 5, "a short one"),
        ("in /one/two/three here", 8, "in /one/\ntwo/\nthree here"),
        ("in /one/two/three/ here", 9, "in /one/two/\nthree/ here"),
        ("two\nlines/of/words", 7, "two\nlines/\nof/\nwords"),
        ("https://a.b/c", 10, "https://\na.b/c"),
    ],
)
def test_where_a_path_is_folded(text, width, folded):
    assert fold_paths(text, width) == folded


def test_a_finding_folds_its_paths_in_its_own_column():
    lines = printed(60, True, findings_table([Finding("fail", "model", f"There is no folder {PATH}.")]))
    assert all(len(line) <= 60 for line in lines)
    assert all(line.startswith("fail") or line.startswith(" " * 13) for line in lines)
    text = [line[13:] for line in lines]
    assert all(line.endswith("/") for line in text[1:-1]) and text[-1].endswith("train.jsonl.")


def test_what_stands_before_a_sentence_has_its_own_style():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system="standard")
    console.print(Sentence(" the data are [gone]", start="error:", style="bold red"))
    assert out.getvalue() == "\x1b[1;31merror:\x1b[0m the data are [gone]\n"

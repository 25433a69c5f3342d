"""The preview: what is decoded, and what a reader sees in a terminal, without colour and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from making import CHATML, make_tokenizer
from rich.console import Console

from dpo_recipes.commands.preview import decode_pairs, draw_pairs

TOKENIZER = make_tokenizer(CHATML)


def tokenised(prompt, chosen, rejected, name="file:0"):
    parts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {"row": name} | {f"{k}_ids": TOKENIZER(v, add_special_tokens=False)["input_ids"] for k, v in parts.items()}


def shown(*pairs, max_length=None, count=3, **console):
    out = io.StringIO()
    decoded = decode_pairs(pairs, TOKENIZER, max_length, count)
    draw_pairs(decoded, TOKENIZER, max_length, Console(file=out, width=200, **console))
    return out.getvalue()


def test_rows_hold_what_is_kept_and_what_is_cut():
    pairs = [tokenised("ab\n", "cdefg<|im_end|>", "xy<|im_end|>"), tokenised("abcdefgh", "i", "j", "file:1")]
    first, second = decode_pairs(pairs, TOKENIZER, 6, 5)
    assert first == {
        "row": "file:0",
        "weight": 1.0,
        "prompt": "ab\n",
        "prompt_tokens": 3,
        "chosen": {"kept": "cde", "cut": "fg<|im_end|>", "tokens": 6, "cut_tokens": 3},
        "rejected": {"kept": "xy<|im_end|>", "cut": "", "tokens": 3, "cut_tokens": 0},
    }
    assert second["chosen"] == {"kept": "", "cut": "i", "tokens": 1, "cut_tokens": 1}
    assert decode_pairs(pairs, TOKENIZER, None, 1)[0]["chosen"]["kept"] == "cdefg<|im_end|>"
    nameless = {name: ids for name, ids in pairs[0].items() if name != "row"}
    assert decode_pairs(iter([nameless]), TOKENIZER, None, 1)[0]["row"] == "0"


def test_a_pipe_shows_border_newlines_special_tokens_and_the_cut_as_signs():
    text = shown(tokenised("<|im_start|>user\nHi<|im_end|>\n", "one two<|im_end|>", "no\n<|im_end|>"), max_length=14)
    header, *lines, legend = text.splitlines()
    assert header.startswith("row file:0: prompt 10, chosen 8, rejected 4 tokens ──")
    assert lines == [
        "<|im_start|>user↵",
        "Hi<|im_end|>↵",
        "chosen   ▶one [cut at max_length=14: 4 tokens]two<|im_end|>",
        "rejected ▶no↵",
        "<|im_end|>",
    ]
    assert "▶" in legend and "↵" in legend
    weighted = shown({**tokenised("ab", "c", "d"), "weight": 0.25})
    assert weighted.startswith("row file:0: prompt 2, chosen 1, rejected 1 tokens, weight 0.25 ──")


@pytest.mark.parametrize("console", [{"force_terminal": True, "no_color": True}, {"force_terminal": False}])
def test_without_colour_it_says_the_same(console):
    pair = tokenised("<|im_start|>q\n", "answer<|im_end|>", "other<|im_end|>")
    coloured = shown(pair, max_length=8, force_terminal=True, color_system="truecolor")
    assert "\x1b[36m" in coloured and "\x1b[32m" in coloured and "\x1b[33m" in coloured and "\x1b[1;36m" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", shown(pair, max_length=8, **console))
    assert bare == re.sub(r"\x1b\[[0-9;]*m", "", coloured) and "3[0-9]m" not in bare


def test_nothing_in_the_data_is_markup_or_moves_the_cursor():
    text = shown(tokenised("[bold]q[/bold] [/]", "\x1b[2J\ra\tb\x9b", ":smile: [link=x]"))
    assert "[bold]q[/bold] [/]\nchosen   ▶␛[2J␍a→\tb".expandtabs() in text.expandtabs()
    assert ":smile: [link=x]" in text and not {"\x1b", "\r", "\x9b"} & set(text)


def test_what_is_huge_is_shortened_in_the_middle_with_a_count():
    text = shown(tokenised("q", "start " + "x" * 5000 + " end", "r"))
    assert "▶start xxx" in text and "\n[... 3,510 more characters ...]\n" in text and "xxx end\n" in text
    assert len(text) < 2500


def test_as_many_pairs_as_asked_are_shown_and_a_long_line_of_a_pipe_stays_one():
    text = shown(*[tokenised("q" * 300, "a", "b", f"file:{n}") for n in range(5)], count=2)
    assert text.count("row file:") == 2 and "q" * 300 in text
    assert "q" * 300 not in shown(tokenised("q" * 300, "a", "b"), force_terminal=True)

"""Sentences in a terminal and in a log, and the console of hours of work."""

from __future__ import annotations

import os
import sys

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text


class LastingConsole(Console):
    """A console for hours of work: where nobody reads any more, as behind `| head`, it is silent and work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("Standard output is closed; the run goes on without it.", file=sys.stderr)


def print_line(console: Console, text: str) -> None:
    """Print a sentence: folded between words in a terminal, one line in a log."""
    if console.is_terminal:
        console.print(Sentence(text))
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


class Sentence:
    """Text that folds between words; a word that is longer than a line, as a path may be, folds behind its slashes."""

    def __init__(self, text: str, start: str = "", style: str = ""):
        """`start` is written before the text, in a style of its own."""
        self.text = start + text
        self.styled = len(start)  # characters
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(fold_paths(self.text, options.max_width), overflow="fold")
        text.stylize(self.style, 0, self.styled)
        yield text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, Text(self.text))


def fold_paths(text: str, width: int) -> str:
    """The text with a line break behind some slash of each word that is wider than a line."""
    lines = []
    for line in text.split("\n"):
        words = [_fold_path(word, width) if len(word) > width else word for word in line.split(" ")]
        lines.append(" ".join(words))
    return "\n".join(lines)


def _fold_path(path: str, width: int) -> str:
    lines = [""]
    for segment in path.split("/"):
        if lines[-1] and len(lines[-1]) + len(segment) + 1 > width:
            lines.append("")
        lines[-1] += f"{segment}/"
    return "\n".join(lines).removesuffix("/")

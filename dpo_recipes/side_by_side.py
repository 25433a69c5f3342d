"""What `chat` shows: prompts that are typed, and two answers to each beside each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .sentences import print_line


def prompts(console: Console, typed: bool) -> Iterator[str]:
    """The prompts on standard input, one a line, until it ends; asked for where someone types them."""
    if not typed:
        lines = sys.stdin or ()
        yield from (line.strip() for line in lines if line.strip())
        return

    print_line(console, "Type a prompt; Ctrl-D ends.")
    while True:
        try:
            line = console.input("[bold]>[/] ").strip()
        except EOFError:  # Ctrl-D
            console.print()
            return
        if line:
            yield line


class SideBySide:
    """Two answers to a prompt, beside each other in a terminal while they grow; elsewhere one below the other."""

    def __init__(self, console: Console):
        self.console = console
        self._answers = {"reference": "", "policy": ""}
        self._live: Live | None = None

    def show(self, side: str, text: str) -> None:
        """`text` is what a side, "reference" or "policy", has written so far."""
        if not self.console.is_terminal:
            return
        self._answers[side] = text
        if self._live is None:
            self._live = Live(console=self.console, transient=True)  # which shows no more than fits the screen
            self._live.start()
        self._live.update(self._columns())

    def finish(self, answer: Mapping[str, str]) -> None:
        """Both answers are there, under "reference" and "policy", as is the "prompt"."""
        self.close()
        if self.console.is_terminal:
            self._answers = {side: answer[side] for side in self._answers}
            self.console.print(self._columns())
            self._answers = {"reference": "", "policy": ""}
            return
        self.console.print(f"prompt: {answer['prompt']}", markup=False, highlight=False, soft_wrap=True)
        for side in ("reference", "policy"):
            self.console.print(f"{side}: {answer[side]}", markup=False, highlight=False, soft_wrap=True)
        self.console.print()

    def close(self) -> None:
        """Take away what is shown of answers that still grow."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _columns(self) -> Table:
        columns = Table.grid(expand=True, padding=(0, 1))
        panels = []
        for side, text in self._answers.items():
            columns.add_column(ratio=1)
            panels.append(Panel(Text(text), title=side, title_align="left"))
        columns.add_row(*panels)
        return columns

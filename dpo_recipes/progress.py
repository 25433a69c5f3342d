"""How far work is, and how long it will still take: a bar in a terminal; in a log a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from .sentences import print_line

# When a log gets a line, in seconds. What is quick says nothing there.
FIRST_LINE_AFTER = 4.0
BETWEEN_LINES = 30.0  # at least
LONGEST_SILENCE = 600.0
TICK = 1.0  # between two looks at the clock

BESIDE_WORDS = 45  # columns for the bar, its count and its time; words that leave less stand above it
CTRL_C = len("^C")  # which a terminal writes behind a bar; in a line of its own it would keep the bar on the screen
BYTES = "B"  # the unit of downloads, shown in megabytes or gigabytes


class Stage:
    """A stretch of work that someone waits for: a bar in a terminal, which goes with the work; elsewhere plain lines.

    A log gets its lines whatever the work waits for, from a thread of their own; `_Spacing` says when.
    """

    def __init__(self, console: Console, words: str, total: int | None = None, unit: str = "pairs"):
        """`words` name the work; `total` is how many of `unit` it is, None where that is not known."""
        self.console = console
        self.words = words
        self.total = total
        self.unit = unit
        self.done = 0.0
        self._spacing = _Spacing()
        self._clock: _Clock | None = None  # of a log
        self._bar: _Bar | None = None  # of a terminal

    def __enter__(self) -> Stage:
        self._spacing = _Spacing()
        if self.console.is_interactive:
            self._bar = _Bar(self.console, self.words, transient=True)
            self._bar.show(self.done, self.total, self._count())
            self._bar.start()
        elif not self.console.quiet:
            self._clock = _Clock(self._print_line_if_due)
            self._clock.start()
        return self

    def __exit__(
        self,
        error: type[BaseException] | None = None,
        value: BaseException | None = None,
        at: TracebackType | None = None,
    ) -> None:
        if self._clock is not None:
            self._clock.stop()
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: float, total: int | None = None) -> None:
        """Tell how far the work is; part of a unit counts too."""
        self.done = done
        self.total = total or self.total
        if self._bar is not None:
            self._bar.show(done, self.total, self._count())

    def advance(self, count: int = 1) -> None:
        """Tell that so much more is done."""
        self.show(self.done + count)

    def _print_line_if_due(self) -> None:
        if self._spacing.is_due(self._share()):
            self._spacing.said(self._share())
            print_line(self.console, self._line())

    def _share(self) -> float:
        return self.done / self.total if self.total else 0.0

    def _line(self) -> str:
        line = self.words
        if self._count():
            line += f": {self._count()}"
        seconds = self._spacing.seconds()
        left = time_left(seconds, self.done, self.total or 0)
        if left:
            return f"{line}, {left}"
        if seconds < BETWEEN_LINES:
            return f"{line} ..."
        return f"{line}, {_duration(seconds)} so far"

    def _count(self) -> str:
        """How far the work is, such as `40 of 600 pairs`; empty where it cannot be counted."""
        if self.unit == BYTES:
            return _megabytes(self.done, self.total)
        if self.total:
            return f"{int(self.done):,} of {self.total:,} {self.unit}"
        return f"{int(self.done):,} {self.unit}" if self.done else ""


class TrainingBar:
    """How far training has come and how it goes: a bar in a terminal; elsewhere a plain line at each tenth.

    A slow run gets lines between its tenths too. `words` says which metrics are shown and what they are called:
    {"rewards/margins": "margin", ...}, in that order.
    """

    def __init__(self, console: Console, words: Mapping[str, str]):
        self.console = console
        self.words = words
        self._step = 0.0
        self._steps = 0
        self._begun_at = 0  # the steps that were taken before, of a run that goes on
        self._numbers = ""  # of the step that was logged last
        self._tenths = 0  # of all steps, that the last line with numbers told of
        self._spacing = _Spacing()
        self._clock: _Clock | None = None
        self._bar: _Bar | None = None

    def begin(self, steps: int, done: int = 0) -> None:
        """`done`: the steps that were taken before, of a run that goes on."""
        self._steps = steps
        self._begun_at = done
        self._spacing = _Spacing()
        if self.console.is_interactive:
            self._bar = _Bar(self.console, "Training", transient=False)
            self._bar.begin_at(done)
            self._bar.show(done, steps, f"step {done}/{steps}")
            self._bar.start()
        elif not self.console.quiet:
            self._clock = _Clock(self._print_line_if_due)
            self._clock.start()

    def part(self, step: float, steps: int) -> None:
        """Show how far a run is within a step."""
        self._step, self._steps = step, steps
        if self._bar is not None:
            self._bar.show(step, steps, f"step {int(step)}/{steps}")

    def show(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        """Show the numbers of one step; metrics without a word are passed over."""
        numbers = "  ".join(f"{word} {metrics[name]:.3g}" for name, word in self.words.items() if name in metrics)
        if not numbers:
            return
        numbers = f"batch: {numbers}"  # and not of the held-out pairs, which the closing table is about
        if "tokens_per_second" in metrics:
            numbers += f"  {metrics['tokens_per_second']:,.0f} tokens/s"
        if "memory_bytes" in metrics:
            numbers += f"  {metrics['memory_bytes'] / 1e9:.2f} GB"
        self._step, self._steps, self._numbers = step, steps, numbers
        if self._bar is not None:
            self._bar.show(step, steps, f"step {step}/{steps}", numbers)
            return

        tenths = step * 10 // max(1, steps)  # a run of no known length has 0 steps
        if tenths > self._tenths:
            self._tenths = tenths
            self._print_line()

    def _print_line_if_due(self) -> None:
        if self._spacing.is_due(self._share()):
            self._print_line()

    def _print_line(self) -> None:
        self._spacing.said(self._share())
        line = f"step {int(self._step)}/{self._steps}"
        if self._numbers:
            line += f"  {self._numbers}"
        left = time_left(self._spacing.seconds(), self._step - self._begun_at, self._steps - self._begun_at)
        if left:
            line += f"  {left}"
        if not self._step:
            line += " ..."
        print_line(self.console, line)

    def _share(self) -> float:
        return self._step / self._steps if self._steps else 0.0

    def close(self) -> None:
        """End the bar, so that what is printed next stands below it. May be called again."""
        if self._clock is not None:
            self._clock.stop()
            self._clock = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


# ------------------------------------------------------------------------------------------------------ lines of a log


class _Spacing:
    """When a piece of work gets its next line in a log.

    The first comes after FIRST_LINE_AFTER seconds; then one at each tenth of the work, BETWEEN_LINES apart or more.
    Where a tenth takes long, a line comes when the time since the beginning has doubled, and at LONGEST_SILENCE.
    """

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._last: float | None = None  # when a line was printed
        self._tenths = 0  # of the work, that it told of

    def seconds(self) -> float:
        """How long the work has taken so far."""
        return time.monotonic() - self.begun

    def is_due(self, share: float) -> bool:
        """Whether a line is due now that this share of the work is done."""
        if self._last is None:
            return self.seconds() >= FIRST_LINE_AFTER
        silence = time.monotonic() - self._last
        if silence < BETWEEN_LINES:
            return False
        seconds_at_last_line = self._last - self.begun
        return _tenths(share) > self._tenths or silence >= min(seconds_at_last_line, LONGEST_SILENCE)

    def said(self, share: float) -> None:
        self._last = time.monotonic()
        self._tenths = _tenths(share)


def _tenths(share: float) -> int:
    return int(share * 10 + 1e-9)


class _Clock(threading.Thread):
    """Asks every second, from a thread of its own, whether a line is due.

    Of work within other work, as an evaluation within training, the inner one alone has lines.
    """

    _running: list[_Clock] = []  # the innermost last

    def __init__(self, print_line_if_due: Callable[[], None]):
        super().__init__(daemon=True, name="progress")
        self._print_line_if_due = print_line_if_due
        self._stopped = threading.Event()

    def start(self) -> None:
        self._running.append(self)
        super().start()

    def run(self) -> None:
        while not self._stopped.wait(TICK):
            self.tick()

    def tick(self) -> None:
        if self._running[-1:] == [self]:
            self._print_line_if_due()

    def stop(self) -> None:
        self._stopped.set()
        self.join()  # no line comes after the work
        self._running.remove(self)


def time_left(seconds: float, done: float, total: float) -> str:
    """How long the rest will take at the pace so far, such as `0:01:10 left`; empty where nothing can be said."""
    if not 0 < done < total:
        return ""
    return f"{_duration(seconds * (total - done) / done)} left"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _megabytes(done: float, total: int | None) -> str:
    """Bytes as `120 of 6,150 MB`."""
    if total:
        return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
    return f"{done / 1e6:,.0f} MB" if done else ""


# --------------------------------------------------------------------------------------------------- bars of a terminal


class _Bar(Progress):
    """One bar over almost the whole width: words, bar, count and time; below it the numbers, which may fold."""

    def __init__(self, console: Console, words: str, transient: bool):
        self._width = console.width - CTRL_C
        self._above = words if len(words) > console.width - BESIDE_WORDS else ""
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            _TimeColumn(),
            console=console,
            refresh_per_second=4,
            transient=transient,
            expand=True,
        )
        beside = "" if self._above else words
        self._task = self.add_task(beside, total=None, count="", numbers="", shown_after=0.0, begun_at=0)

    def begin_at(self, done: float) -> None:
        """The work goes on from here: the time left is told by what is done from now on."""
        self.update(self._task, begun_at=done)

    def show(self, done: float, total: int | None, count: str, numbers: str | None = None) -> None:
        """How far the work is; `numbers` stay as they were where none are given."""
        fields: dict[str, Any] = {"count": count, "shown_after": self.tasks[0].elapsed or 0.0}
        if numbers is not None:
            fields["numbers"] = numbers
        self.update(self._task, completed=done, total=total or None, **fields)

    def get_renderables(self) -> Iterable[RenderableType]:
        if self._above:
            yield Text(self._above)
        yield Constrain(self.make_tasks_table(self.tasks), self._width)
        for task in self.tasks:
            if task.fields["numbers"]:
                yield Text(task.fields["numbers"])


class _TimeColumn(ProgressColumn):
    """The time left, which goes down between two steps too; where it is not known, the time so far."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        done = task.completed - task.fields["begun_at"]
        total = (task.total or 0.0) - task.fields["begun_at"]
        if not 0 < done < total:
            return Text(_duration(elapsed))
        shown_after = task.fields["shown_after"]  # seconds
        seconds_left = shown_after * (total - done) / done - (elapsed - shown_after)
        return Text(f"{_duration(max(0.0, seconds_left))} left")

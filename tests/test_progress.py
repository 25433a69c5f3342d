"""What a person sees while waiting: few lines in a log that say how far it is, a bar in a terminal, never cut."""

from __future__ import annotations

import io
import re
import threading

import pytest
from rich.console import Console

from dpo_recipes import progress
from dpo_recipes.progress import Stage, TrainingBar, time_left


def make_console(out: io.StringIO, terminal: bool = False, width: int = 80) -> Console:
    return Console(file=out, force_terminal=terminal, force_interactive=terminal, width=width, color_system=None)


def last_frame(out: io.StringIO) -> str:
    """What stands in a terminal at the end, without the signs that move the cursor."""
    return without_signs(out.getvalue().split("\x1b[2K")[-1])


def without_signs(text: str) -> str:
    return re.sub(r"\x1b\[[\d?;]*[A-Za-z]", "", text).replace("\r", "\n")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The seconds that time.monotonic() gives: the last of this list. Nothing is printed but when a test ticks."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[-1])
    monkeypatch.setattr(progress._Clock, "run", lambda self: self._stopped.wait())
    return seconds


def tick(work: Stage | TrainingBar, clock: list[float], seconds: int, done_after=None) -> None:
    """Let so many seconds go by, as the thread of a log does; done_after(seconds) is told to the work first."""
    for second in range(1, seconds + 1):
        clock.append(clock[-1] + 1)
        if done_after is not None:
            done_after(second)
        work._clock.tick()


# ------------------------------------------------------------------------------------------- the lines of a log


def log_of(clock, seconds: int, units_a_second: float, total: int | None, words="Held-out pairs") -> list[str]:
    """The lines of a log in which a stage took so many seconds."""
    out = io.StringIO()
    with Stage(make_console(out), words, total) as stage:
        tick(stage, clock, seconds, lambda second: stage.show(second * units_a_second))
    return out.getvalue().splitlines()


def test_what_is_quick_says_nothing_in_a_log(clock):
    assert log_of(clock, 3, 100, 300) == []


def test_longer_work_says_how_far_it_is_and_how_long_it_will_take(clock):
    lines = log_of(clock, 600, 1, 600)
    assert lines[0] == "Held-out pairs: 4 of 600 pairs, 0:09:56 left"
    assert lines[1] == "Held-out pairs: 34 of 600 pairs, 0:09:26 left"
    assert lines[-1] == "Held-out pairs: 600 of 600 pairs, 0:10:00 so far"
    assert len(lines) == 12


@pytest.mark.parametrize("hours", [1, 10, 72])
def test_the_lines_of_a_long_log_are_counted_in_tens_and_never_far_apart(clock, hours):
    spacing = progress._Spacing()
    printed = []
    for second in range(10, hours * 3600, 10):
        clock[-1] = 100.0 + second
        share = second / (hours * 3600)
        if spacing.is_due(share):
            spacing.said(share)
            printed.append(second)
    gaps = [later - earlier for earlier, later in zip(printed, printed[1:], strict=False)]
    assert min(gaps) >= 30 and max(gaps) <= 610
    assert len(printed) <= 12 + 6 * hours


def test_work_of_which_nothing_can_be_counted_says_how_long_it_has_taken(clock):
    assert log_of(clock, 130, 0, None, "Loading the model") == [
        "Loading the model ...",
        "Loading the model, 0:00:34 so far",
        "Loading the model, 0:01:08 so far",
    ]


def test_work_of_unknown_length_counts_what_is_done(clock):
    out = io.StringIO()
    with Stage(make_console(out), "Reading the rows", unit="rows") as stage:
        tick(stage, clock, 40, lambda second: stage.show(1000 * second))
    assert out.getvalue().splitlines() == [
        "Reading the rows: 4,000 rows ...",
        "Reading the rows: 34,000 rows, 0:00:34 so far",
    ]


def test_of_work_within_other_work_the_inner_alone_has_lines(clock):
    out = io.StringIO()
    console = make_console(out)
    with Stage(console, "Preparing the trainer") as outer:
        with Stage(console, "Hashing the weights") as inner:
            for _ in range(5):
                tick(inner, clock, 1)
                outer._clock.tick()
        outer._clock.tick()
    assert out.getvalue().splitlines() == ["Hashing the weights ...", "Preparing the trainer ..."]


def test_the_lines_come_by_themselves_whatever_the_work_waits_for(monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE_AFTER", 0.0)
    monkeypatch.setattr(progress, "TICK", 0.01)
    out = Lines()
    with Stage(make_console(out), "Loading the model"):
        assert out.printed.wait(10)
    assert out.getvalue() == "Loading the model ...\n"


class Lines(io.StringIO):
    """A file that tells another thread when something is written to it."""

    def __init__(self):
        super().__init__()
        self.printed = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.printed.set()
        return written


@pytest.mark.parametrize("terminal", [False, True])
def test_work_that_breaks_leaves_no_thread_and_gives_the_cursor_back(terminal):
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Stage(make_console(out, terminal), "Loading the model"):
        raise KeyboardInterrupt
    assert progress._Clock._running == []
    assert "progress" not in [thread.name for thread in threading.enumerate()]
    if terminal:
        assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_a_quiet_console_gets_neither_line_nor_bar():
    stage = Stage(Console(file=io.StringIO(), quiet=True), "Loading the model")
    with stage:
        stage.show(1, 2)
    assert stage._clock is None and stage._bar is None


@pytest.mark.parametrize(
    ("done", "total", "said"),
    [(0, 10, ""), (10, 10, ""), (1, 0, ""), (1, 10, "0:01:30 left"), (0.5, 10, "0:03:10 left")],
)
def test_time_left(done, total, said):
    assert time_left(10.0, done, total) == said


# ----------------------------------------------------------------------------------------------- a terminal's bars


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "words", ["Held-out pairs before training", "Reading /a/long/folder/of/mine/my_pairs.jsonl (train)"]
)
def test_nothing_of_a_stage_is_cut(clock, words, width):
    out = io.StringIO()
    with Stage(make_console(out, terminal=True, width=width), words, 60000) as stage:
        stage.show(59999)
        stage._bar.refresh()
    frames = without_signs(out.getvalue())
    # A terminal writes ^C behind a bar; in a line of its own it would keep the bar on the screen.
    assert all(len(line) <= width - len("^C") for line in frames.splitlines()) and "…" not in frames
    assert words in " ".join(frames.split()) and "59,999 of 60,000 pairs 0:00:00 left" in " ".join(frames.split())


def test_the_time_left_goes_down_between_two_steps_and_the_end_says_how_long_it_took(monkeypatch):
    seconds = [0.0]
    out = io.StringIO()
    console = make_console(out, terminal=True)
    console.get_time = lambda: seconds[-1]
    with Stage(console, "Held-out pairs", 10) as stage:
        seconds.append(10.0)
        stage.show(1)
        seconds.append(25.0)
        stage._bar.refresh()
        assert "1 of 10 pairs 0:01:15 left" in " ".join(last_frame(out).split())
        seconds.append(200.0)
        stage._bar.refresh()
        assert "0:00:00 left" in last_frame(out)
        stage.show(10)
        stage._bar.refresh()
        assert "10 of 10 pairs 0:03:20" in " ".join(last_frame(out).split())


def test_downloads_are_counted_in_megabytes():
    out = io.StringIO()
    with Stage(make_console(out, terminal=True), "Downloading a.safetensors", unit="B") as stage:
        stage.show(120e6, 6_150_000_000)
        stage._bar.refresh()
    assert "120 of 6,150 MB" in without_signs(out.getvalue())


# ------------------------------------------------------------------------------------------------- the training bar

WORDS = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
METRICS = {"loss": 0.6543, "rewards/accuracies": 0.75, "rewards/margins": 0.01234, "grad_norm": 1.0}
PACE = {"tokens_per_second": 12345.6, "memory_bytes": 1_500_000_000}


def make_bar(out: io.StringIO, terminal: bool = False, width: int = 80) -> TrainingBar:
    return TrainingBar(make_console(out, terminal, width), WORDS)


def show(steps: int, metrics=METRICS, every: int = 1, terminal: bool = False) -> str:
    """All that a run of so many steps, logged `every` so often, writes to its console."""
    out = io.StringIO()
    bar = make_bar(out, terminal)
    bar.begin(steps)
    for step in range(every, steps + 1, every):
        bar.show(step, steps, metrics)
    bar.show(steps, steps, {"train_runtime": 3.0, "train_loss": 0.6})
    bar.close()
    return out.getvalue()


@pytest.mark.parametrize(
    ("steps", "every", "shown"),
    [
        (100, 1, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (95, 1, [10, 19, 29, 38, 48, 57, 67, 76, 86, 95]),
        (3, 1, [1, 2, 3]),
        (1, 1, [1]),
        (1000, 300, [300, 600, 900]),
    ],
)
def test_a_log_file_gets_about_ten_lines(clock, steps, every, shown):
    lines = show(steps, every=every).splitlines()
    numbers = "batch: loss 0.654  accuracy 0.75  margin 0.0123"
    assert lines == [f"step {step}/{steps}  {numbers}{'' if step == steps else '  0:00:00 left'}" for step in shown]


@pytest.mark.parametrize("metrics", [{}, {"eval_loss": 0.5, "eval_rewards/margins": 1.0}, {"grad_norm": 1.0}])
@pytest.mark.parametrize("terminal", [False, True])
def test_metrics_without_a_word_are_passed_over(metrics, terminal):
    if terminal:
        assert "0/10" in show(10, metrics, terminal=True)
    else:
        assert show(10, metrics) == ""


def test_the_metrics_that_there_are_are_shown_in_the_order_of_the_words():
    assert show(1, {"rewards/margins": 0.5}) == "step 1/1  batch: margin 0.5\n"
    assert show(1, {"rewards/margins": float("nan"), "loss": 1e-9}) == "step 1/1  batch: loss 1e-09  margin nan\n"


def test_a_run_of_no_known_length_does_not_divide_by_zero():
    out = io.StringIO()
    make_bar(out).show(1, 0, METRICS)
    assert out.getvalue().startswith("step 1/0  batch: loss")


def test_pace_and_memory_stand_beside_the_numbers():
    line = "step 1/1  batch: loss 0.654  accuracy 0.75  margin 0.0123  12,346 tokens/s  1.50 GB\n"
    assert show(1, METRICS | PACE) == line


def test_a_slow_run_says_where_it_is_between_its_tenths(clock):
    out = io.StringIO()
    bar = make_bar(out)
    bar.begin(1000)
    tick(bar, clock, 34, lambda second: bar.part(second / 40, 1000))  # a step takes 40 seconds
    bar.show(1, 1000, METRICS | PACE)
    tick(bar, clock, 60)
    bar.close()
    numbers = "batch: loss 0.654  accuracy 0.75  margin 0.0123  12,346 tokens/s  1.50 GB"
    assert out.getvalue().splitlines() == [
        "step 0/1000  11:06:36 left",
        "step 0/1000  11:06:06 left",
        f"step 1/1000  {numbers}  18:52:12 left",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_of_a_bar_is_cut(width):
    """Numbers stand below the bar and fold between words."""
    out = io.StringIO()
    bar = make_bar(out, terminal=True, width=width)
    bar.begin(12000)
    bar.show(11999, 12000, METRICS | PACE)
    bar.close()
    frame = last_frame(out)
    assert "…" not in frame and all(len(line) <= width for line in frame.splitlines())
    words = " ".join(frame.split())
    numbers = "batch: loss 0.654 accuracy 0.75 margin 0.0123 12,346 tokens/s 1.50 GB"
    assert re.match(r"Training [━╸╺ ]+ step 11999/12000 0:00:00 left", words) and words.endswith(numbers)


def test_a_terminal_gets_a_bar_and_no_lines_beside_it():
    shown = show(7, terminal=True)
    assert "batch: loss 0.654  accuracy 0.75  margin 0.0123" in shown
    assert re.search(r"Training .*step 7/7", shown)
    assert "\nstep 7/7" not in shown


def test_an_evaluation_within_training_is_a_second_bar_which_goes_with_it():
    out = io.StringIO()
    bar = make_bar(out, terminal=True)
    bar.begin(7)
    bar.show(3, 7, METRICS)
    with Stage(bar.console, "Held-out pairs at step 3", 40) as stage:
        stage.show(20)
        bar._bar.refresh()
        frame = last_frame(out)
        assert "step 3/7" in frame and "20 of 40 pairs" in without_signs(out.getvalue())[-400:]
    bar.show(4, 7, METRICS)
    bar.close()
    assert "step 4/7" in last_frame(out) and "Held-out" not in last_frame(out)


def test_a_bar_is_closed_once_and_closing_without_one_is_nothing():
    bar = make_bar(io.StringIO(), terminal=True)
    bar.close()
    bar.begin(3)
    live = bar._bar.live
    assert live.is_started

    bar.close()
    bar.close()
    assert bar._bar is None and not live.is_started

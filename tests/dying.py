"""The command line as a program that writes down its stages and, where it is told to, kills itself in one of them.

`python tests/dying.py LOG train quickstart` writes LOG, a JSON object a line: each stage as it begins and as it ends,
in seconds since the start. The variable DIES_IN says where it dies by SIGKILL, with all its worker processes: a JSON
list of the words with which a stage begins, which stage of these words, counted from 1, and the seconds after that
stage has begun; at 0 not an instruction of it is done. No words stand for the start of the program. A file that is
written whole or not at all is a stage too, such as `file recipe.json`. The last line of LOG is then where it died.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

BEGUN = time.monotonic()
PACKAGE = "dpo_recipes"
TRAINING = "Training"  # the stage that is told by its bar


class Stages:
    """The stages of this process, written down as they come; in one of them it dies."""

    def __init__(self, log: Path, dies_in: tuple[str, int, float] | None):
        self.log = log
        self.dies_in = dies_in
        self.times_begun = 0  # the stage in which it dies
        self.main_thread = threading.get_ident()
        self.process = os.getpid()
        self.open: list[str] = []
        self.begin("")

    def begin(self, words: str) -> None:
        if os.getpid() != self.process:
            return
        self._write(begins=words)
        self.open.append(words)
        if self.dies_in is None:
            return
        stage, number, seconds = self.dies_in
        if words.startswith(stage) and bool(words) == bool(stage):
            self.times_begun += 1
            if self.times_begun == number and not seconds:
                self._die()
            elif self.times_begun == number:
                timer = threading.Timer(seconds, self._die)
                timer.daemon = True
                timer.start()

    def end(self, words: str) -> None:
        if os.getpid() == self.process and words in self.open:
            self.open.remove(words)
            self._write(ends=words)

    def _die(self) -> None:
        self._write(dies_in=self.open[-1], at=self._place())
        os.killpg(os.getpgid(0), signal.SIGKILL)

    def _place(self) -> str:
        """Where the main thread is: the innermost function of the package, and what it is busy with."""
        frame = sys._current_frames().get(self.main_thread)
        innermost = None
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            name = f"{path.stem}.{frame.f_code.co_name}"
            innermost = innermost or name
            if PACKAGE in path.parts:
                return name if name == innermost else f"{name}: {innermost}"
            frame = frame.f_back
        return innermost or ""

    def _write(self, **values: object) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - BEGUN, 4), **values})
        with self.log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def watch(stages: Stages) -> None:
    """Have the stages of the package told."""
    from dpo_recipes.progress import Stage, TrainingBar
    from dpo_recipes.runs import files

    enter, leave, begin, close = Stage.__enter__, Stage.__exit__, TrainingBar.begin, TrainingBar.close

    def entered(self):
        stages.begin(self.words)
        return enter(self)

    def left(self, *error):
        leave(self, *error)
        stages.end(self.words)

    def begun(self, *given, **named):
        stages.begin(TRAINING)
        begin(self, *given, **named)

    def closed(self):
        close(self)
        stages.end(TRAINING)

    write_bytes = files.write_bytes

    def written(path, data):
        stages.begin(f"file {path.name}")
        write_bytes(path, data)
        stages.end(f"file {path.name}")

    files.write_bytes = written
    Stage.__enter__, Stage.__exit__ = entered, left
    TrainingBar.begin, TrainingBar.close = begun, closed


def command_line(log: str, *words: str) -> None:
    """dpo-recipes with these words, watched."""
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)  # so that it takes its workers with it, and nobody else
    given = json.loads(os.environ.get("DIES_IN", "null"))
    watch(Stages(Path(log), None if given is None else tuple(given)))
    from dpo_recipes.__main__ import main

    sys.argv = ["dpo-recipes", *words]
    main()


if __name__ == "__main__":
    command_line(*sys.argv[1:])

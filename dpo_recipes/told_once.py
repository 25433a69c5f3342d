"""How an error of several processes is told once: by the process that knows why, and in the words of that one.

A launcher that sees one process end stops all others. So whoever may only have felt what another one has done, as a
connection that is gone, or who has found the same as the main process, waits for that before it speaks.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator

from .errors import RecipeError
from .recipe.resolve import process, processes
from .signals import STOP_SIGNALS, Stopped

# Seconds before an error is told. A launcher looks ten times a second, and Python takes a moment to end.
OF_ANOTHER_THAN_THE_MAIN_PROCESS = 10.0
WITHOUT_A_REASON = 20.0  # any error but a RecipeError: the reason may be another process's


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Under a launcher an error leaves here only when no other process has told why; in a process alone, at once."""
    try:
        yield
    except Stopped as stopped:
        if process():  # the main process says what there is of the run
            sys.exit(128 + stopped.signal)
        raise
    except RecipeError:
        if process():
            _wait(OF_ANOTHER_THAN_THE_MAIN_PROCESS)
        raise
    except Exception:
        if processes() > 1:
            _wait(WITHOUT_A_REASON)
        raise


def _wait(seconds: float) -> None:
    """In which the launcher's signal ends this process in silence."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    time.sleep(seconds)

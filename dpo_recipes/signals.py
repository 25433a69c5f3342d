"""Signals that stop a program, as one error that says which it was and what is left."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Ctrl-C, what a scheduler or `kill` sends, and what a terminal sends that is closed. Not every system has them all.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal has stopped the program. A shell expects 128 and its number as the exit code, such as 130."""

    def __init__(self, number: int, notes: list[str], is_told: bool = False):
        """`is_told`: another process that was stopped with this one has said what there is to be said."""
        super().__init__(" ".join(["Stopped.", *notes]))
        self.signal = number
        self.is_told = is_told


@contextlib.contextmanager
def stop_signals_raised() -> Iterator[None]:
    """What a signal breaks off in here comes out as Stopped, with what has been noted on the way.

    Signals are raised as KeyboardInterrupt, so that whatever is open is closed on the way out: a half-written folder is
    taken away, a bar gives the cursor back. What breaks on that way is no error of its own; `datasets`, for one, waits
    for its workers and turns the interrupt into a time-out.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    with _sent_again_where_lost(received), _handled_by(stop):
        try:
            yield
        except BaseException as error:  # whatever a signal has turned into, typer's SystemExit too
            is_of_typer = isinstance(error, SystemExit) and error.code == 128 + signal.SIGINT  # as it says Ctrl-C
            if not received and not is_of_typer:
                raise
            number = received[0] if received else signal.SIGINT
            raise Stopped(number, _notes(error)) from error


@contextlib.contextmanager
def _sent_again_where_lost(received: list[int]) -> Iterator[None]:
    """Python drops what is raised in a destructor: such a signal comes once more."""

    def send_again(lost: Any) -> None:
        if received and isinstance(lost.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, os.kill, [os.getpid(), received[-1]]).start()
        else:
            hook_before(lost)

    hook_before = sys.unraisablehook
    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = hook_before


@contextlib.contextmanager
def _handled_by(stop: Any) -> Iterator[None]:
    """What is ignored stays ignored: a run under nohup lives on when its terminal is closed."""
    before: dict[int, Any] = {}
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, stop)

    def die_at_once_in_a_worker() -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)

    # A terminal sends Ctrl-C to the worker processes too: they end without a traceback of each.
    if hasattr(os, "register_at_fork"):  # where there is no fork, no worker inherits this process's handlers
        os.register_at_fork(after_in_child=die_at_once_in_a_worker)

    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends worker processes without a traceback each, and stays Ctrl-C whatever it breaks in this one."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set what happens at a signal
        return

    main_process = os.getpid()
    interrupted = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal interrupted
        if os.getpid() != main_process:  # a worker, forked while this was set
            os._exit(130)
        interrupted = True
        if callable(before):
            before(number, frame)  # the command line's takes note, and raises
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception:  # such as an error of a pool whose workers have ended
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _notes(error: BaseException | None) -> list[str]:
    """What has been noted of an error, or of one that it came from: what a run has left."""
    notes: list[str] = []
    while error is not None:
        notes += getattr(error, "__notes__", [])
        error = error.__context__
    return notes

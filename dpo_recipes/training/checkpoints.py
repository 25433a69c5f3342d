"""When a checkpoint of a run is written.

Leans on TRL 1.16: its Trainer, which is Transformers', writes a checkpoint where a callback sets `should_save` at the
end of a step, whatever its strategy, after it has logged the step; and ends at `should_training_stop`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

MOST_SECONDS = 600.0  # of training between two checkpoints
MOST_OF_THE_RUN = 0.1
MOST_OF_THE_TIME = 0.05  # for writing them
STOPPING = "Stopping after this step, with a checkpoint. Once more, and it stops at once."
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Checkpoints(TrainerCallback):
    """Has a checkpoint written after a tenth of the steps or ten minutes, whichever comes first, and before a stop.

    Writing them takes at most a twentieth of the time: where one takes a minute, twenty minutes lie between two.
    A signal that asks to stop, the first one, lets the step end and a checkpoint be written, and then training ends;
    so it is in all processes, whichever gets the signal. The second does what it did before.
    """

    def __init__(self, is_paced: bool, say: Callable[[str], None]):
        """`is_paced`: the recipe leaves it to us when there is a checkpoint."""
        self.is_paced = is_paced
        self.say = say
        self.signal: int | None = None  # that asked to stop
        self._last_step = 0
        self._last_time = 0.0
        self._asked_at = 0.0
        self._seconds_to_write = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last_step = state.global_step
        self._last_time = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._asked_at = time.perf_counter()
        is_last = state.global_step >= state.max_steps  # behind which the model itself is written
        save, stop = _in_any_process(args, self._is_due(state) and not is_last, self.signal is not None)
        if save or (stop and not is_last):
            control.should_save = True
        if stop:
            control.should_training_stop = True

    def _is_due(self, state: Any) -> bool:
        if not self.is_paced:
            return False
        seconds = self._asked_at - self._last_time
        steps = state.global_step - self._last_step
        is_cheap = seconds >= self._seconds_to_write / MOST_OF_THE_TIME
        return is_cheap and (seconds >= MOST_SECONDS or steps >= MOST_OF_THE_RUN * state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last_step = state.global_step
        self._last_time = time.perf_counter()
        self._seconds_to_write = self._last_time - self._asked_at

    @contextmanager
    def stopping_after_the_step(self) -> Iterator[None]:
        """While training goes on in here: a signal ends it as said above, and then does what it did before."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set what happens at a signal
            return

        main_process = os.getpid()
        before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        for stop_signal in STOP_SIGNALS:
            handler_before = signal.getsignal(stop_signal)
            if callable(handler_before):  # what is ignored stays ignored
                before[stop_signal] = handler_before

        def note(number: int, frame: FrameType | None) -> None:
            if self.signal is not None or os.getpid() != main_process:
                before[number](number, frame)
                return
            self.signal = number
            # Not here: what is interrupted may itself be printing.
            threading.Thread(target=self.say, args=[STOPPING]).start()

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signal is not None:
            before[self.signal](self.signal, None)


def _in_any_process(args: Any, *flags: bool) -> list[bool]:
    """Each flag, whether it is set in any process: all must save together, and stop after the same step."""
    if args.world_size == 1:
        return list(flags)
    numbers = torch.tensor(flags, dtype=torch.int32, device=args.device)
    torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX)
    return numbers.bool().tolist()

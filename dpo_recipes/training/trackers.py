"""What a run says beside its log, sent to the trackers that the recipe asks for with trl.report_to, and to nobody else.

Leans on TRL 1.16: its Trainer, which is Transformers', makes a callback of each tracker, with the library's handle in
it, and tells it that training has ended before anything has been evaluated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from .trainer import RecipeTrainer

# Whose `on_train_end` closes the tracker's run and does nothing else: it is right for a run that has failed, too.
CLOSED_AT_THE_END = (TensorBoardCallback, TrackioCallback, MLflowCallback)


@dataclass
class _End:
    """How the run of one tracker is ended."""

    callback: Any
    on_train_end: Callable[..., None]
    finish: Callable[[], None] | None  # of a run that W&B's callback has begun, and leaves open until the process ends
    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # what the callback was told when training ended


class Trackers:
    """The trackers of a trainer, none where the recipe asks for none.

    Their run stays open until `close()`: what is evaluated behind the last step belongs to it, and would otherwise be
    the only row of another one. Closed, they are ready for another run of this process, as in a sweep.
    """

    def __init__(self, say: Callable[[str], None]):
        """`say` is told, once a tracker, of what it did not take."""
        self._say = say
        self._trainer: Any = None
        self._callbacks: list[Any] = []
        self._ends: list[_End] = []
        self._failed: set[str] = set()

    def follow(self, trainer: RecipeTrainer, run: Path) -> None:
        """Send what comes to the trackers of this trainer; TensorBoard's files go into the folder of the run.

        Without a place TensorBoard's callback makes one in the working folder where, as here, something is logged
        before training begins. TENSORBOARD_LOGGING_DIR names another.
        """
        self._trainer = trainer
        kinds = tuple(INTEGRATION_TO_CALLBACK.values())
        self._callbacks = [each for each in trainer.callback_handler.callbacks if isinstance(each, kinds)]
        for callback in self._callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(run / "tensorboard")
            finish = None
            if isinstance(callback, WandbCallback) and callback._wandb.run is None:  # else it is the user's own
                finish = callback._wandb.finish
            end = _End(callback, callback.on_train_end, finish)
            self._ends.append(end)
            callback.on_train_end = functools.partial(_keep, end)

    def close(self) -> None:
        """End the trackers' runs, as they would have ended with the training."""
        ends, self._ends = self._ends, []
        for end in ends:
            self._tried(end.callback, "the end of its run", functools.partial(self._end, end))

    def _end(self, end: _End) -> None:
        if end.given is not None:
            arguments, values = end.given
            end.on_train_end(*arguments, **values)
        elif isinstance(end.callback, CLOSED_AT_THE_END):
            end.on_train_end(self._trainer.args, self._trainer.state, self._trainer.control)
        if end.finish is not None:
            end.finish()

    def findings(self, observations: Sequence[tuple[int, str, str, str, str]]) -> None:
        """What the rules of the guard have seen so far: step, rule, level, what was seen, what to do."""
        self._table("guard", ("step", "rule", "level", "seen", "advice"), observations)

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The answers of both models to the same prompts, as samples.jsonl has them."""
        if not rows:
            return
        names = list(rows[0])
        self._table("samples", names, [[_as_text(row[name]) for name in names] for row in rows])

    def held_out(self, rows: Iterable[Sequence[str]], after: Mapping[str, Any]) -> None:
        """The closing table; and those of its numbers that no log has had, such as reward and KL, as `eval_` ones."""
        self._table("held_out", ("number", "before", "after", "95 % interval or s.e."), [list(row) for row in rows])
        if not self._callbacks:
            return
        logged = {name for row in self._trainer.state.log_history for name in row}
        numbers = {f"eval_{name}": value for name, value in after.items() if isinstance(value, float)}
        new = {name: value for name, value in numbers.items() if name not in logged}
        trainer = self._trainer
        for callback in self._callbacks:
            log = functools.partial(callback.on_log, trainer.args, trainer.state, trainer.control)
            self._tried(callback, "the closing numbers", functools.partial(log, logs=dict(new), model=trainer.model))

    def _table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table to each tracker that has tables, or texts."""
        for callback in self._callbacks:
            write = functools.partial(_write_table, callback, self._trainer, name, list(columns), list(rows))
            self._tried(callback, f"the table {name!r}", write)

    def _tried(self, callback: Any, what: str, write: Callable[[], None]) -> None:
        """A tracker that does not take something is no reason to lose a run."""
        tracker = type(callback).__name__.removesuffix("Callback")
        try:
            write()
        except Exception as error:  # a tracker's, which must not cost a run
            if tracker not in self._failed:
                self._failed.add(tracker)
                reason = " ".join(str(error).split()) or type(error).__name__
                self._say(f"Warning: {tracker} did not take {what}: {reason}. The run folder has it.")


def _keep(end: _End, *arguments: Any, **values: Any) -> None:
    """In place of a callback's `on_train_end`."""
    end.given = (arguments, values)


def _write_table(callback: Any, trainer: Any, name: str, columns: list[str], rows: list[Sequence[Any]]) -> None:
    """A table as a tracker has it: a table, or text in Markdown; nothing where it has neither."""
    step = trainer.state.global_step
    if isinstance(callback, TensorBoardCallback):
        if callback.tb_writer is not None:
            callback.tb_writer.add_text(name, _markdown(columns, rows), step)
            callback.tb_writer.flush()
    elif isinstance(callback, WandbCallback):
        table = callback._wandb.Table(columns=columns, data=[list(row) for row in rows])
        callback._wandb.log({name: table, "train/global_step": step})
    elif isinstance(callback, TrackioCallback):
        table = callback._trackio.Table(columns=columns, data=[list(row) for row in rows])
        callback._trackio.log({name: table, "train/global_step": step})
    elif isinstance(callback, MLflowCallback):  # and DagsHub's, which is one
        callback._ml_flow.log_text(_markdown(columns, rows), f"{name}.md")


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [_line(columns), _line(["---"] * len(columns))]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(cells: Iterable[Any]) -> str:
    texts = [str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in cells]
    return f"| {' | '.join(texts)} |"


def _as_text(value: Any) -> Any:
    """A cell of a table: numbers as they are, a prompt of messages as their texts."""
    if isinstance(value, list):
        return "\n".join(f"{message['role']}: {message['content']}" for message in value)
    return value

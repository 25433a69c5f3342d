"""Every number of a run on disk, one line a log, and shown to whoever watches.

Leans on TRL 1.16: when `DPOTrainer` logs, and the names of what it logs, `num_tokens` among them.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..guard.remembering import Remembering
from ..models.device import peak_memory
from ..progress import TrainingBar
from ..runs.files import to_json, write_jsonl


class MetricsLog(Remembering):
    """Appends every log to metrics.jsonl with its step, and shows it in a bar. Only the main process does either.

    A training step's log gets `tokens_per_second`, since the log before, and `memory_bytes`, the most that this process
    has held so far: allocated on a GPU, resident elsewhere. The last log has them of the whole run.

    Appended and not written anew: this file grows while the run goes on, and each line is on disk at once.
    """

    def __init__(self, path: Path, bar: TrainingBar):
        self.path = path
        self.bar = bar
        self.closing_words = ""  # how long training took, at what pace, in how much memory; known at its end
        self._micro_batches = 0  # of the step that goes on
        # In steps alone: what is evaluated or saved between them takes none of it.
        self._seconds = 0.0
        self._counted_until = 0.0
        self._seconds_at_last_log = 0.0
        self._tokens_at_last_log = 0
        self._begun = 0.0
        self._runtime_before = 0.0  # seconds of training up to the checkpoint that a run goes on from
        self._is_kept = False  # whether what comes now stands in the file already

    def go_on(self, rows: list[dict[str, Any]]) -> None:
        """Let the file hold these rows of a run that goes on; what is measured before training is among them."""
        write_jsonl(self.path, rows)
        self._is_kept = bool(rows)

    def remembered(self) -> dict[str, Any]:
        return {
            "seconds": self._seconds,
            "tokens": self._tokens_at_last_log,
            "runtime": self._runtime_before + time.perf_counter() - self._begun,
        }

    def remember(self, values: dict[str, Any]) -> None:
        self._seconds = self._seconds_at_last_log = values["seconds"]
        self._tokens_at_last_log = values["tokens"]
        self._runtime_before = values["runtime"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._is_kept = False
        self._begun = time.perf_counter()
        if state.is_world_process_zero:
            self.bar.begin(state.max_steps, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._counted_until = time.perf_counter()
        self._micro_batches = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._micro_batches += 1
        if state.is_world_process_zero:
            part = self._micro_batches / args.gradient_accumulation_steps
            self.bar.part(state.global_step + part, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count_seconds()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero or self._is_kept:
            return
        numbers = {"step": state.global_step, **logs, **self._pace(args, logs)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(numbers) + "\n")
        self.bar.show(state.global_step, state.max_steps, numbers)
        if "train_runtime" in logs:
            seconds = self._runtime_before + numbers["train_runtime"]
            self.closing_words = _closing_words(state.global_step, seconds, numbers)

    def observed(self, observation: dict[str, Any]) -> None:
        """Append what a rule of the guard has seen, as a line of its own."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(observation) + "\n")

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._counted_until
        self._counted_until = now

    def _pace(self, args: Any, logs: dict[str, Any]) -> dict[str, float]:
        """`tokens_per_second` and `memory_bytes` of a log of training, nothing of others."""
        if "train_runtime" in logs:
            tokens = self._tokens_at_last_log
            seconds = self._seconds
        elif "num_tokens" in logs:
            # A GPU is still at work when a step is said to end; the Trainer waits for it before it logs.
            self._count_seconds()
            tokens = int(logs["num_tokens"]) - self._tokens_at_last_log
            seconds = self._seconds - self._seconds_at_last_log
            self._tokens_at_last_log = int(logs["num_tokens"])
            self._seconds_at_last_log = self._seconds
        else:
            return {}
        if not tokens or not seconds:
            return {}
        return {"tokens_per_second": round(tokens / seconds, 1), "memory_bytes": peak_memory(args.device.type)}


def _closing_words(steps: int, seconds: float, numbers: dict[str, Any]) -> str:
    """One sentence on what training has taken."""
    duration = timedelta(seconds=round(seconds))
    words = f"Trained {steps:,} steps in {duration}"
    if "tokens_per_second" not in numbers:
        return f"{words}."
    memory = numbers["memory_bytes"] / 1e9
    return f"{words}: {numbers['tokens_per_second']:,.0f} tokens a second, {memory:.2f} GB of memory at most."

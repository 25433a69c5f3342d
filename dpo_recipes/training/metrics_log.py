"""Every number of a run on disk, one line a log, and shown to whoever watches.

Leans on TRL 1.16: when `DPOTrainer` logs, and the names of what it logs.
"""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..runs.files import to_json
from ..terminal import TrainingBar


class MetricsLog(TrainerCallback):
    """Appends every log to metrics.jsonl with its step, and shows it in a bar. Only the main process does either.

    Appended and not written anew: this file grows while the run goes on, and each line is on disk at once.
    """

    def __init__(self, path: Path, bar: TrainingBar):
        self.path = path
        self.bar = bar

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar.begin(state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json({"step": state.global_step, **logs}) + "\n")
        self.bar.show(state.global_step, state.max_steps, logs)

"""What a run shows: a bar with loss, accuracy, margin and time left, and every log on disk."""

import json
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console
from transformers import TrainerCallback

SHOWN = (("loss", "loss"), ("rewards/accuracies", "accuracy"), ("rewards/margins", "margin"))


class Bar(TrainerCallback):
    """A rich progress bar in a terminal, elsewhere about ten plain lines; and every log as a line of `metrics`."""

    def __init__(self, console: Console, metrics: Path):
        self.console, self.metrics = console, metrics
        self.bar: bars.Progress | None = None
        self.task, self.line = bars.TaskID(0), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.console.is_terminal and state.is_world_process_zero:
            usual = (*bars.Progress.get_default_columns(), bars.TextColumn("left"), bars.MofNCompleteColumn())
            self.bar = bars.Progress(*usual, bars.TextColumn("{task.fields[numbers]}"), console=self.console)
            self.task = self.bar.add_task("training", total=state.max_steps, numbers="")
            self.bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        if "rewards/margins" not in logs:
            return
        numbers = "  ".join(f"{word} {logs[name]:.3g}" for name, word in SHOWN if name in logs)
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, numbers=numbers)
        elif state.global_step * 10 // max(1, state.max_steps) > self.line:
            self.line = state.global_step * 10 // max(1, state.max_steps)
            self.console.print(f"step {state.global_step}/{state.max_steps}  {numbers}", highlight=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

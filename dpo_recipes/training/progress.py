"""What a run shows: a bar with loss, accuracy, margin and time left while it goes, and a table when it ends."""

import json
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.table import Column, Table
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


LINES = (
    ("loss", "loss", ".4f"), ("rewards/accuracies", "pairs ranked as labelled", ".1%"),
    ("rewards/margins", "reward margin", "+.4f"), ("logps/chosen_change_per_token", "chosen, nats per token", "+.4f"),
    ("logps/rejected_change_per_token", "rejected, nats per token", "+.4f"),
    ("reward", "reward of sampled answers", "+.3f"), ("win_rate", "win rate over reference", ".3f"),
    ("kl", "KL to reference, nats", ".3f"), ("best_reward_at_kl", "best reward at that KL", "+.3f"),
)  # fmt: skip


def table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """The closing table: held-out numbers before and after, with intervals or standard errors."""
    columns = ("", Column("before", justify="right"), Column("after", justify="right"), "95 % interval or s.e.")
    shown = Table(*columns, title=f"Held out: {after['pairs']} pairs", title_justify="left")
    measures = [name for name in after if name.startswith("measures/") and not name.endswith("_stderr")]
    for name, words, form in (*LINES, *((name, name.removeprefix("measures/"), ".3f") for name in measures)):
        if name in after:
            error = after.get(f"{name}_stderr")
            spread = f"+- {error:{form.replace('+', '')}}" if error else ""
            spread = " to ".join(f"{end:{form}}" for end in after.get(f"{name}_interval", ())) or spread
            shown.add_row(words, f"{before[name]:{form}}" if name in before else "", f"{after[name]:{form}}", spread)
    return shown

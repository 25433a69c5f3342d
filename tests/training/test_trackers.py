"""Trackers get what a run says beside its log, in the run that the log went to, and only where they are asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from making import short_recipe, train_in
from transformers import TrainerState
from transformers.integrations import MLflowCallback, TrackioCallback, WandbCallback

from dpo_recipes.training.trackers import Trackers


def told(rows, run) -> str:
    """A rule of a recipe's own."""
    return f"Row {len(rows)} | of the log."


def length(prompt: str, completion: str) -> float:
    return float(len(completion))


@pytest.mark.slow
def test_tensorboard_holds_findings_answers_and_closing_numbers_in_one_run(tiny, pairs_file, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trl = {"gradient_checkpointing": False, "max_steps": 3, "report_to": "tensorboard"}
    recipe = short_recipe(tiny(), pairs_file, rules={"told": told}, reward=length, trl=trl)
    monkeypatch.chdir(tmp_path)
    run = train_in(tmp_path, recipe)
    folder = run.path / "tensorboard"
    [_] = folder.iterdir()  # one file of events: nothing was opened anew behind the training
    assert {path.name for path in tmp_path.iterdir()} == {"runs"} and len(list((tmp_path / "runs").iterdir())) == 1
    events = EventAccumulator(str(folder)).Reload()

    scalars = set(events.Tags()["scalars"])
    after = run.evaluation["after"]
    for name in ("kl", "reward", "win_rate", "forgetting/kl_per_token"):
        [value] = events.Scalars(f"eval/{name}")
        assert value.value == pytest.approx(after[name], rel=1e-5) and value.step == 3
    assert {"train/loss", "eval/rewards/accuracies"} <= scalars and not any("_stderr" in name for name in scalars)

    def text(name: str) -> str:
        return events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()

    [seen] = [row for row in run.observations if row["rule"] == "told"]
    told_of = f"| {seen['step']} | told | warning | {seen['seen']} |  |"
    assert "| of the log" in told_of and told_of.replace("| of", "\\| of") in text("guard")
    assert text("held_out").splitlines()[0] == "| number | before | after | 95 % interval or s.e. |"
    assert f"| {after['reward']:+.3f} |" in text("held_out")
    first = run.samples[0]
    assert first["policy"].replace("|", "\\|").replace("\n", "<br>") in text("samples")
    assert f"user: {first['prompt'][-1]['content']}" in text("samples")


class Library:
    """Stands for a tracker's library: it keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[dict] = []
        self.texts: dict[str, str] = {}
        self.ends: list[str] = []
        self.run: object | None = None

    def Table(self, columns, data):
        return columns, data

    def log(self, values) -> None:
        assert not self.ends
        self.logged.append(values)

    def finish(self) -> None:
        self.ends.append("finished")

    def log_text(self, text, file) -> None:
        assert not self.ends
        self.texts[file] = text


def callback_of(kind, handle: str, library: Library):
    """A tracker's callback without its library, which is not installed."""
    callback = kind.__new__(kind)
    setattr(callback, handle, library)
    callback.on_log = lambda args, state, control, logs, model: library.log(logs)
    callback.on_train_end = lambda *given, **_: library.ends.append("training ended")
    callback._auto_end_run = False
    return callback


def trackers_of(*callbacks) -> tuple[Trackers, list[str]]:
    state = TrainerState(global_step=7, log_history=[{"eval_loss": 0.5}])
    handler = SimpleNamespace(callbacks=list(callbacks))
    trainer = SimpleNamespace(callback_handler=handler, state=state, args=None, control=None, model=None)
    said: list[str] = []
    trackers = Trackers(said.append)
    trackers.follow(trainer, Path("run"))
    return trackers, said


SAMPLES = [{"prompt": [{"role": "user", "content": "Why?"}], "policy": "So.", "kl": 0.5}]


@pytest.mark.parametrize(
    ("kind", "handle", "ends"),
    [
        (WandbCallback, "_wandb", ["training ended", "finished"]),
        (TrackioCallback, "_trackio", ["training ended"]),
    ],
)
def test_one_with_tables_gets_tables_and_ends_when_all_is_there(kind, handle, ends):
    library = Library()
    callback = callback_of(kind, handle, library)
    trackers, said = trackers_of(callback)
    seen = [(2, "told", "note", "One.", ""), (3, "told", "note", "Two.", "")]
    trackers.findings(seen[:1])
    trackers.findings(seen)
    callback.on_train_end("args", "state", "control", model=None)
    assert not library.ends
    trackers.samples(SAMPLES)
    trackers.held_out([("loss", "0.6", "0.5", "")], {"loss": 0.5, "kl": 1.25, "pairs": 6, "kl_stderr": None})
    trackers.close()
    trackers.close()
    assert library.ends == ends and said == []

    columns = ["step", "rule", "level", "seen", "advice"]
    first, second, samples, held_out, numbers = library.logged
    assert first == {"guard": (columns, [[2, "told", "note", "One.", ""]]), "train/global_step": 7}
    assert second["guard"][1][1] == [3, "told", "note", "Two.", ""]
    assert samples["samples"] == (["prompt", "policy", "kl"], [["user: Why?", "So.", 0.5]])
    assert held_out["held_out"][1] == [["loss", "0.6", "0.5", ""]]
    assert numbers == {"eval_kl": 1.25}  # the loss has been logged


@pytest.mark.parametrize(
    ("kind", "handle", "users_own", "ends"),
    [
        (WandbCallback, "_wandb", None, ["finished"]),
        (WandbCallback, "_wandb", "a run", []),
        (TrackioCallback, "_trackio", None, ["training ended"]),
        (MLflowCallback, "_ml_flow", None, ["training ended"]),
    ],
)
def test_a_run_that_fails_leaves_none_open_that_the_next_would_go_on_with(kind, handle, users_own, ends):
    library = Library()
    library.run = users_own
    trackers, _ = trackers_of(callback_of(kind, handle, library))
    trackers.close()
    assert library.ends == ends


def test_mlflow_gets_texts():
    library = Library()
    trackers, _ = trackers_of(callback_of(MLflowCallback, "_ml_flow", library))
    trackers.samples(SAMPLES)
    assert library.texts == {"samples.md": "| prompt | policy | kl |\n| --- | --- | --- |\n| user: Why? | So. | 0.5 |"}


def test_one_that_fails_is_told_of_once_and_the_others_go_on(monkeypatch):
    broken, fine = Library(), Library()
    monkeypatch.setattr(broken, "log", None)
    callbacks = callback_of(WandbCallback, "_wandb", broken), callback_of(TrackioCallback, "_trackio", fine)
    trackers, said = trackers_of(*callbacks)
    trackers.samples(SAMPLES)
    trackers.held_out([], {"kl": 1.0})
    assert said == [
        "Warning: Wandb did not take the table 'samples': 'NoneType' object is not callable. The run folder has it."
    ]
    assert len(fine.logged) == 3


def test_where_none_is_asked_for_there_is_nobody_to_send_to():
    trackers, said = trackers_of()
    trackers.findings([(2, "told", "note", "One.", "")])
    trackers.samples(SAMPLES)
    trackers.held_out([], {"kl": 1.0})
    trackers.close()
    assert said == []

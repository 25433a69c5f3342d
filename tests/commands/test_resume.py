"""A run that is stopped goes on to the very weights, log and numbers of a run that never was."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal

import pytest
from making import make_pairs, write_jsonl
from rich.console import Console
from safetensors.torch import load_file

from dpo_recipes import Data, LoRA, QLoRA, Recipe, RecipeError, Run, apply, load, train
from dpo_recipes.errors import UsageError
from dpo_recipes.runs.checkpoint_folders import damage, whole_checkpoints
from dpo_recipes.training import checkpoints as pace
from dpo_recipes.training.trainer import RecipeTrainer

STEPS = 7
STOPPED_IN = 5  # after so many steps
MODES = {
    "lora": {"adapter": LoRA(r=4)},
    "accumulation": {"adapter": LoRA(r=4), "micro_batch_size": 2},
    "qlora": {"adapter": QLoRA(r=4)},
    "full": {"adapter": None, "learning_rate": 1e-4},
    "moving reference": {"adapter": None, "learning_rate": 1e-4, "trl": {"sync_ref_model": True}},
    "stream": {"adapter": LoRA(r=4), "data": {"streaming": True, "eval": "held_out.jsonl"}},
}
# What says how long something took
OF_TIME = ("tokens_per_second", "memory_bytes", "runtime", "per_second", "preparation_time")


@pytest.fixture
def at_every_step(monkeypatch):
    """A checkpoint after every step, however long it takes to write."""
    monkeypatch.setattr(pace, "MOST_OF_THE_TIME", 1e9)


def recipe_of_mode(tiny, pairs_file, mode="lora") -> Recipe:
    changes = dict(MODES[mode])
    data = {"eval": 0.25, **changes.pop("data", {})}
    if data["eval"] == "held_out.jsonl":
        held_out = make_pairs(40)[24:]  # whose prompts are no training pair's
        data["eval"] = str(write_jsonl(pairs_file.with_name("held_out.jsonl"), held_out))
    trl = {"max_steps": STEPS, "gradient_checkpointing": False, **changes.pop("trl", {})}
    if trl.get("sync_ref_model"):
        trl["ref_model_sync_steps"] = 2
    given = {"learning_rate": 1e-3, "global_batch_size": 4, "max_length": 112, **changes}
    return Recipe(model=str(tiny()), data=Data(str(pairs_file), **data), trl=trl, **given)


def quietly(recipe, runs, **given) -> tuple[Run, str]:
    console = Console(file=io.StringIO(), width=300)
    run = train(recipe, runs=runs, console=console, **given)
    return run, console.file.getvalue()


def stop_in_a_step(monkeypatch, stop=KeyboardInterrupt):
    """Let training break off inside a step, as it does when the machine is gone; from then on nothing breaks."""
    step = RecipeTrainer.training_step

    def stopping(self, *arguments, **options):
        if self.state.global_step == STOPPED_IN:
            monkeypatch.setattr(RecipeTrainer, "training_step", step)
            raise stop
        return step(self, *arguments, **options)

    monkeypatch.setattr(RecipeTrainer, "training_step", stopping)


def stopped_run(recipe, runs, monkeypatch) -> Run:
    stop_in_a_step(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quietly(recipe, runs)
    return Run(max(runs.iterdir()))


def rows_without_time(run) -> list[dict]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith(OF_TIME)} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_run_ends_with_the_weights_log_and_numbers_of_one_that_never_was(
    tiny, pairs_file, tmp_path, monkeypatch, at_every_step, mode
):
    recipe = recipe_of_mode(tiny, pairs_file, mode)
    whole, _ = quietly(recipe, tmp_path / "whole")
    stopped = stopped_run(recipe, tmp_path / "runs", monkeypatch)
    assert not stopped.is_finished and len(whole_checkpoints(stopped.path / "checkpoints")) == 2

    resumed, said = quietly(recipe, tmp_path / "runs", resume="last")
    assert resumed.path == stopped.path and f"goes on after step {STOPPED_IN}." in said
    (weights,) = (whole.path / "model").glob("*.safetensors")
    expected, found = load_file(weights), load_file(resumed.path / "model" / weights.name)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype and tensor.equal(found[name]), name
    assert rows_without_time(resumed) == rows_without_time(whole)
    for when in ("before", "after"):
        assert resumed.evaluation[when] == whole.evaluation[when]
    assert resumed.samples == whole.samples and resumed.pairs == whole.pairs
    assert {path.name for path in resumed.path.iterdir()} == {path.name for path in whole.path.iterdir()}
    assert not (resumed.path / "checkpoints").exists()


@pytest.fixture
def stopped(tiny, tmp_path, monkeypatch, at_every_step):
    """(a recipe of a file, its stopped run)."""
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs())
    file = tmp_path / "mine.py"
    file.write_text(
        "from dpo_recipes import Data, LoRA, Recipe\n\n\n"
        "def own(pairs, *, beta):\n    return -(beta * pairs.h).sigmoid().log()\n\n\n"
        f"recipe = Recipe(model={str(tiny())!r}, data=Data({str(tmp_path / 'pairs.jsonl')!r}, eval=0.25), loss=own,\n"
        "    adapter=LoRA(r=4), learning_rate=1e-3, global_batch_size=4, max_length=112,\n"
        "    trl={'max_steps': 7, 'gradient_checkpointing': False})\n"
    )
    recipe = load(file)
    return recipe, stopped_run(recipe, tmp_path / "runs", monkeypatch)


@pytest.mark.slow
def test_what_is_not_as_it_was_is_refused_by_name_and_may_be_allowed(stopped, tmp_path, monkeypatch):
    recipe, run = stopped
    for change, words in {
        "beta=0.3": r"beta was 0\.1 and is 0\.3 now\. Undo that.* --allow-change beta$",
        "learning_rate=0.01": r"learning_rate was 0\.001 and is 0\.01 now\. Undo that, or begin a new run, .*resume\.$",
        "trl.max_grad_norm=0.5": r"trl\.max_grad_norm was None and is 0\.5 now",
        "data.template_date=2025-01-01": r"data\.template_date was None",
    }.items():
        with pytest.raises(RecipeError, match=f"cannot go on as it began: {words}"):
            quietly(apply(recipe, [change]), tmp_path, resume=run)
    with pytest.raises(RecipeError, match="no value of it but the old one can act in this run"):
        quietly(apply(recipe, ["learning_rate=0.01"]), tmp_path, resume=run, allow_change=["learning_rate"])
    with pytest.raises(UsageError, match="--allow-change bta: nothing of that name has changed"):
        quietly(apply(recipe, ["beta=0.3"]), tmp_path, resume=run, allow_change=["beta", "bta"])

    # Other functions, other versions, other pairs, another reference: each has a name
    recipe.source.write_text(recipe.source.read_text().replace("beta * pairs.h", "2 * beta * pairs.h"))
    with pytest.raises(RecipeError, match="the functions of .*mine.py are not those .*--allow-change functions$"):
        quietly(load(recipe.source), tmp_path, resume=run)
    recipe.source.write_text((run.path / "recipe.py").read_text() + "\n# a comment is no change\n")
    environment = json.loads((run.path / "environment.json").read_text())
    environment["versions"]["trl"] = "1.15.0"
    (run.path / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(RecipeError, match=r"trl was 1\.15\.0 and is \S+ now.*--allow-change trl$"):
        quietly(load(recipe.source), tmp_path, resume=run)

    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows[0]["chosen"], rows[0]["rejected"] = rows[0]["rejected"], rows[0]["chosen"]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    allowed = ["trl"]
    with pytest.raises(RecipeError, match="the train pairs are not those .*--allow-change 'train pairs'$"):
        quietly(load(recipe.source), tmp_path, resume=run, allow_change=allowed)

    allowed += ["train pairs", "beta"]
    run, said = quietly(apply(load(recipe.source), ["beta=0.3"]), tmp_path, resume=run, allow_change=allowed)
    assert "Changed since it began, as allowed: " in said and "beta was 0.1 and is 0.3 now" in said
    assert run.is_finished and run.recipe["beta"]["value"] == 0.3


@pytest.mark.slow
def test_another_reference_is_refused(stopped, tmp_path):
    recipe, run = stopped
    who = json.loads((run.path / "reference.json").read_text())
    (run.path / "reference.json").write_text(json.dumps({**who, "fingerprint": "another"}))
    with pytest.raises(RecipeError, match="the reference's weights are not those that the run began with"):
        quietly(recipe, tmp_path, resume=run)


@pytest.mark.slow
def test_a_checkpoint_that_was_cut_short_is_removed_and_one_that_is_damaged_within_is_named(stopped, tmp_path):
    recipe, run = stopped
    last, before = whole_checkpoints(run.path / "checkpoints")
    with (last / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    moments = (before / "optimizer.pt").read_bytes()
    begin = moments.index(b"data.pkl") + 60
    (before / "optimizer.pt").write_bytes(moments[:begin] + b"\xff" * 64 + moments[begin + 64 :])
    with pytest.raises(RecipeError, match=f"The checkpoint {before} cannot be loaded: .* Move it away"):
        quietly(recipe, tmp_path, resume=run)
    assert not last.exists()  # nobody can go on from it

    (before / "optimizer.pt").write_bytes(moments)
    environment = json.loads((run.path / "environment.json").read_text())
    environment["device"]["processes"] = 2
    (run.path / "environment.json").write_text(json.dumps(environment))
    _, said = quietly(recipe, tmp_path, resume=run)
    assert f"goes on after step {STOPPED_IN - 1}. It was in 2 processes and is in 1 now; a step has the same" in said


@pytest.mark.slow
def test_a_checkpoint_of_zeros_is_passed_over_for_the_one_before(stopped, tmp_path):
    recipe, run = stopped
    last, before = whole_checkpoints(run.path / "checkpoints")
    for name, words in {
        "optimizer.pt": "optimizer.pt is no file of torch",
        "adapter_model.safetensors": "adapter_model.safetensors has no header that can be read",
    }.items():
        (last / name).write_bytes(b"\0" * (last / name).stat().st_size)  # as after a loss of power
        assert damage(last) == words and damage(before) is None
    resumed, said = quietly(recipe, tmp_path, resume=run)
    assert f"{last} is passed over, as it is damaged: adapter_model.safetensors has no header" in said
    assert f"goes on after step {STOPPED_IN - 1}." in said and resumed.is_finished


@pytest.mark.slow
def test_a_run_without_a_whole_checkpoint_begins_anew_in_its_folder(tiny, pairs_file, tmp_path, monkeypatch):
    recipe = recipe_of_mode(tiny, pairs_file)
    monkeypatch.setattr(pace, "MOST_SECONDS", 1e9)
    monkeypatch.setattr(pace, "MOST_OF_THE_RUN", 1.0)
    run = stopped_run(recipe, tmp_path, monkeypatch)
    with (run.path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "los')  # cut short
    resumed, said = quietly(recipe, tmp_path, resume=run.path)
    assert "has no whole checkpoint: it begins anew." in said
    assert [row["step"] for row in resumed.metrics if "loss" in row] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_run_that_was_killed_behind_its_training_trains_the_rest_again_and_replaces_the_model(stopped, monkeypatch):
    recipe, run = stopped

    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr("dpo_recipes.evaluation.beyond_pairs.answers", killed)
        with pytest.raises(KeyboardInterrupt) as error:
            quietly(recipe, run.path.parent, resume=run)
    assert error.value.__notes__[0] == f"The trained model is in {run.path / 'model'}."
    weights = (run.path / "model" / "adapter_model.safetensors").read_bytes()
    (run.path / ".model.77.tmp").mkdir()  # of a process that was killed
    resumed, _ = quietly(recipe, run.path.parent, resume=run)
    assert (resumed.path / "model" / "adapter_model.safetensors").read_bytes() == weights
    assert not list(resumed.path.glob(".*"))


@pytest.mark.slow
def test_a_run_that_goes_on_from_its_last_step_trains_no_more(tiny, pairs_file, tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "save_steps": STEPS, "lr_scheduler_type": "constant"}
    recipe = recipe_of_mode(tiny, pairs_file)
    recipe = recipe.evolve(trl={**recipe.trl, **options})

    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr("dpo_recipes.evaluation.beyond_pairs.answers", killed)
        with pytest.raises(KeyboardInterrupt):
            quietly(recipe, tmp_path)
    (run,) = map(Run, tmp_path.iterdir())
    trained = (run.path / "model" / "adapter_model.safetensors").read_bytes()
    resumed, said = quietly(recipe, tmp_path, resume="last")
    assert f"goes on after step {STEPS}." in said
    assert (resumed.path / "model" / "adapter_model.safetensors").read_bytes() == trained
    assert [row["step"] for row in resumed.metrics if "loss" in row] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_with_a_checkpoint_and_a_second_one_does_not(
    tiny, pairs_file, tmp_path, monkeypatch, number
):
    recipe = recipe_of_mode(tiny, pairs_file)
    step, sent = RecipeTrainer.training_step, []

    def handler(*_given):
        raise KeyboardInterrupt

    def signalled(self, *arguments, **options):
        if self.state.global_step == 2:
            for _ in range(how_many):
                os.kill(os.getpid(), number)
                sent.append(number)
        return step(self, *arguments, **options)

    monkeypatch.setattr(RecipeTrainer, "training_step", signalled)
    before = signal.signal(number, handler)
    try:
        for how_many, steps in ((1, 3), (2, 2)):
            console = Console(file=io.StringIO(), width=300)
            with pytest.raises(KeyboardInterrupt) as error:
                train(recipe, runs=tmp_path / str(how_many), console=console)
            (run,) = map(Run, (tmp_path / str(how_many)).iterdir())
            written = [path.name for path in whole_checkpoints(run.path / "checkpoints")]
            assert written[:1] == (["checkpoint-3"] if how_many == 1 else written[:1])
            assert max(row["step"] for row in run.metrics) == steps
            assert error.value.__notes__[-1] == f"To go on with it: train(recipe, resume={str(run.path)!r})"
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.slow
def test_which_run_goes_on(stopped, tmp_path):
    recipe, run = stopped
    with pytest.raises(UsageError, match=r"No run of mine in .*elsewhere can go on: there is none\."):
        quietly(recipe, tmp_path / "elsewhere", resume="last")
    with pytest.raises(RecipeError, match=f"There is no run folder {run.path}x"):
        quietly(recipe, tmp_path, resume=f"{run.path}x")
    with pytest.raises(UsageError, match="--allow-change belongs to --resume"):
        quietly(recipe, tmp_path, allow_change=["beta"])
    with pytest.raises(RecipeError, match="hold the model alone"):
        quietly(apply(recipe, ["trl.save_only_model=true"]), tmp_path, resume=run)

    folder = os.open(run.path, os.O_RDONLY)
    fcntl = pytest.importorskip("fcntl")
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with pytest.raises(RecipeError, match="Another process is training in"):
            quietly(recipe, tmp_path, resume=run)
    finally:
        os.close(folder)

    finished, _ = quietly(recipe, tmp_path / "runs", resume="last")
    assert finished.path == run.path
    with pytest.raises(UsageError, match="has finished: there is nothing to go on with"):
        quietly(recipe, tmp_path, resume=run)
    with pytest.raises(UsageError, match="all that there are have finished"):
        quietly(recipe, tmp_path / "runs", resume="last")


@pytest.mark.parametrize("named", [True, False], ids=["its folder", "the last one"])
@pytest.mark.parametrize("page", [True, False], ids=["with a page", "without"])
def test_a_run_that_was_killed_behind_its_answers_gets_its_page_and_nothing_is_trained(
    finished, tmp_path, monkeypatch, named, page
):
    done = finished()
    run = Run(shutil.copytree(done.run.path, tmp_path / "runs" / done.run.path.name))
    recipe = apply(load(done.run.path.parents[1] / "mine.py"), ["beta=0.4"])
    with pytest.raises(UsageError, match="has finished: there is nothing to go on with"):
        quietly(recipe, tmp_path / "runs", resume=run)
    numbers = run.evaluation

    (run.path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    if not page:
        (run.path / "report.html").unlink()
    monkeypatch.setattr(RecipeTrainer, "train", None)
    closed, said = quietly(recipe, tmp_path / "runs", resume=run if named else "last")
    assert closed.path == run.path and closed.evaluation == numbers
    assert "was trained and measured already, and was stopped before its end. Its report.html is written now" in said
    assert (run.path / "report.html").exists() and not (run.path / "checkpoints").exists()


@pytest.mark.slow
def test_once_begins_a_run_goes_on_with_it_and_leaves_it_alone_when_it_has_finished(
    tiny, pairs_file, here, monkeypatch, at_every_step
):
    recipe = recipe_of_mode(tiny, pairs_file)
    stop_in_a_step(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quietly(recipe, "job", once=True)
    [stopped] = (here / "job").iterdir()

    run, said = quietly(recipe, "job", once=True)
    assert run.path.resolve() == stopped and run.is_finished
    assert f"{run.path} goes on after step {STOPPED_IN}." in said
    finished_at = (stopped / "report.html").stat().st_mtime_ns

    again, said = quietly(recipe, "job", once=True)
    assert again.path == run.path and f"{run.path} has finished: nothing is left to be done." in said
    assert [path.resolve() for path in (here / "job").iterdir()] == [stopped]
    assert (stopped / "report.html").stat().st_mtime_ns == finished_at


def test_once_refuses_a_run_that_another_process_is_training(tiny, pairs_file, here):
    from dpo_recipes.runs.folder import create, in_use

    recipe = recipe_of_mode(tiny, pairs_file)
    with in_use(create(here / "job", recipe.name)), pytest.raises(RecipeError, match="Another process is training in"):
        quietly(recipe, "job", once=True)

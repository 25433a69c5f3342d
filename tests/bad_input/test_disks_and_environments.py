"""Full disks, folders that are not there, odd environments and Ctrl-C: one message, and what was trained is kept."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import forking
import pytest
from making import short_recipe, write_recipe
from rich.console import Console

from dpo_recipes import Recipe, RecipeError, train
from dpo_recipes.runs import environment, folder
from dpo_recipes.runs.unwritable import places_with_room, unwritable_reason

pytestmark = pytest.mark.usefixtures("short_answers")

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class SafetensorError(Exception):
    """As safetensors names its own: no OSError, and without a number."""


# An error as a library raises it -> a telling part of the reason.
FORMS = {
    "system": (NO_SPACE, "No space left"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
    "limit on file sizes": (OSError(errno.EFBIG, "File too large"), "too large"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), "Read-only"),
    "no permission": (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    "safetensors": (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "no space is left",
    ),
    "safetensors, limit": (SafetensorError("I/O error: File too large (os error 27)"), "too large for the disk"),
    "torch": (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        "could not be written whole",
    ),
    "torch, writer": (RuntimeError("PytorchStreamWriter failed writing file data/0"), "could not be written whole"),
    "C++ stream": (RuntimeError("basic_ios::clear: iostream error"), "could not be written whole"),
    "Arrow": (OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device"), "no space is left"),
    "no temporary folder": (
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
        "TMPDIR names another",
    ),
}


@pytest.mark.parametrize(("error", "words"), FORMS.values(), ids=FORMS)
def test_every_library_is_understood(error, words):
    assert words in str(unwritable_reason(error))


def test_an_error_that_comes_from_a_full_disk_is_one():
    try:
        raise ValueError("saving failed") from NO_SPACE
    except ValueError as error:
        assert "No space left" in str(unwritable_reason(error))


@pytest.mark.parametrize("error", [ValueError("beta"), FileNotFoundError(errno.ENOENT, "x"), KeyError("no space")])
def test_other_errors_are_not_taken_for_a_full_disk(error):
    assert unwritable_reason(error) is None


def test_a_place_without_room_is_none(tmp_path, monkeypatch):
    assert places_with_room(1, tmp_path)[0] == tmp_path
    assert places_with_room(10**18, tmp_path) == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5})())
    assert len(places_with_room(4, tmp_path)) == 3


# --- a disk that fills up at each place of a run


@pytest.fixture
def recipe(tiny, pairs_file) -> Recipe:
    """Three steps, with a checkpoint at the second."""
    trl = {"gradient_checkpointing": False, "max_steps": 3, "save_steps": 2}
    return short_recipe(tiny(), pairs_file, trl=trl)


def refused(recipe: Recipe, runs: Path) -> str:
    """What a run says that is refused."""
    with pytest.raises(RecipeError) as error:
        train(recipe, runs=runs, console=Console(file=io.StringIO(), width=80))
    return str(error.value)


def model_named_in(message: str) -> Path:
    """The folder in which the message says that the model is."""
    place = Path(message.split("The model as it was then is in ")[1].split(" ")[0].rstrip("."))
    assert (place / "adapter_model.safetensors").is_file() and (place / "tokenizer.json").is_file()
    return place


def fails_at(monkeypatch, target: str, error: Exception, when) -> None:
    """`target` raises the error for the calls of which `when(arguments)` is true."""
    module, name = target.rsplit(".", 1)
    holder = __import__(module, fromlist=[name])
    real = getattr(holder, name)

    def failing(*args, **kwargs):
        if when(args):
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(holder, name, failing)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["system", "safetensors", "torch"])
def test_a_full_disk_at_a_checkpoint_keeps_the_trained_model(recipe, tmp_path, monkeypatch, form):
    from dpo_recipes.training.trainer import RecipeTrainer

    error, words = FORMS[form]

    def half_a_checkpoint(trainer, *args, **kwargs):
        half = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        half.mkdir(parents=True)
        (half / "adapter_model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(RecipeTrainer, "_save_checkpoint", half_a_checkpoint)
    message = refused(recipe, tmp_path / "runs")
    assert words in message and "Training had come to step 2 of 3." in message
    place = model_named_in(message)
    assert place.is_relative_to(tmp_path / "runs")  # where the half checkpoint was, there is room again
    assert not list(tmp_path.rglob("checkpoint-*")) and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_full_disk_of_the_runs_puts_the_final_model_elsewhere(recipe, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    error = FORMS["safetensors"][0]
    fails_at(monkeypatch, "dpo_recipes.runs.files.write_folder", error, lambda args: args[0].is_relative_to(runs))
    message = refused(recipe, runs)
    assert "Training had come to step 3 of 3." in message
    assert not model_named_in(message).is_relative_to(runs)
    assert list(runs.glob("*/metrics.jsonl")) and not list(runs.glob("*/model"))


@pytest.mark.slow
def test_without_any_room_the_message_says_what_is_lost_and_which_checkpoint_is_whole(recipe, tmp_path, monkeypatch):
    fails_at(monkeypatch, "dpo_recipes.runs.files.write_folder", NO_SPACE, lambda args: True)
    message = refused(recipe, tmp_path / "runs")
    assert "No other place has room for the model, which is lost. Whole checkpoints: " in message
    assert "checkpoint-2" in message


@pytest.mark.slow
def test_a_log_that_cannot_be_written_stops_the_run_and_keeps_the_model(recipe, tmp_path, monkeypatch):
    is_log_of_step_2 = iter([False, True])
    fails_at(monkeypatch, "json.dumps", NO_SPACE, lambda args: "grad_norm" in args[0] and next(is_log_of_step_2, False))
    message = refused(recipe, tmp_path / "runs")
    assert "No space left" in message
    model_named_in(message)


@pytest.mark.slow
def test_a_run_folder_that_is_removed_while_training_keeps_the_model(recipe, tmp_path, monkeypatch):
    import shutil

    from dpo_recipes.training.metrics_log import MetricsLog

    real = MetricsLog.on_log

    def remove_first(log, args, state, control, **kwargs):
        if state.global_step == 2:
            shutil.rmtree(log.path.parent)
        real(log, args, state, control, **kwargs)

    monkeypatch.setattr(MetricsLog, "on_log", remove_first)
    message = refused(recipe, tmp_path / "runs")
    assert "the folder has been removed" in message
    model_named_in(message)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation.json", "samples.jsonl"])
def test_numbers_that_cannot_be_written_leave_the_model(recipe, tmp_path, monkeypatch, name):
    fails_at(monkeypatch, "dpo_recipes.runs.files.write_bytes", NO_SPACE, lambda args: args[0].name == name)
    message = refused(recipe, tmp_path / "runs")
    (run,) = (tmp_path / "runs").iterdir()
    assert f"The trained model is in {run / 'model'}." in message
    assert (run / "model" / "adapter_model.safetensors").is_file() and not list(run.rglob("*.tmp"))


def test_what_is_known_before_training_cannot_be_written_and_no_folder_stays(recipe, tmp_path, monkeypatch):
    fails_at(monkeypatch, "dpo_recipes.runs.files.write_bytes", NO_SPACE, lambda args: args[0].name == "trl.json")
    assert "No space left on device" in refused(recipe, tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("error", [NO_SPACE, FORMS["safetensors"][0]], ids=["system", "safetensors"])
def test_what_a_recipe_prepares_is_made_whole_or_not_at_all(recipe, tmp_path, monkeypatch, error):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def prepare(folder: Path, seed: int) -> None:
        (folder / "half").write_text("half")
        raise error

    unprepared = recipe.evolve(model="{prepared}/model", prepare=prepare)
    message = refused(unprepared, tmp_path / "runs")
    assert "cannot be made" in message and "XDG_CACHE_HOME names another place." in message
    assert not list(tmp_path.rglob("half")) and not list(tmp_path.glob("runs/*"))


# --- places that are none


def test_runs_that_is_a_file(recipe, tmp_path):
    (tmp_path / "runs").write_text("")
    assert "cannot be made: Not a directory. Choose another place with --runs" in refused(recipe, tmp_path / "runs")


def test_runs_that_is_a_link_to_nowhere(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    with pytest.raises(RecipeError, match="is a link that leads nowhere"):
        folder.create(tmp_path / "runs", "mine")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(RecipeError, match="File name too long"):
        folder.create(tmp_path, "long" * 100)


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path):
    paths = {folder.create(tmp_path, "mine").path for _ in range(3)}
    assert len(paths) == 3


def test_no_home_folder(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(RecipeError, match="set HOME or XDG_CACHE_HOME"):
        environment.cache()


# --- the command line


def command(*args: str, **changes: str) -> subprocess.CompletedProcess:
    """dpo-recipes in a process of its own, with changes of the environment; "" takes a variable away."""
    variables = {name: value for name, value in (os.environ | changes).items() if value}
    return subprocess.run(
        [sys.executable, "-m", "dpo_recipes", *args], env=variables, capture_output=True, text=True, timeout=1200
    )


ENVIRONMENTS = {
    "locale C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "20 columns": {"COLUMNS": "20"},
    "no HOME": {"HOME": "", "XDG_CACHE_HOME": ""},
    "a cache that is a file": {"XDG_CACHE_HOME": __file__},
    "no TERM": {"TERM": ""},
}


@pytest.mark.parametrize("changes", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_looking_at_recipes_works_in_any_environment(changes):
    done = command("show", "quickstart", **changes)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "beta" in done.stdout


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_one_message():
    done = command("train", "quickstart", XDG_CACHE_HOME=__file__)
    assert done.returncode == 1 and "XDG_CACHE_HOME names another place." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["list", "show quickstart"])
def test_output_that_nobody_reads_is_no_traceback(verb):
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "dpo_recipes", *verb.split()]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=1200)
    os.close(writing)
    assert "Traceback" not in done.stderr


def test_a_console_that_nobody_reads_lets_the_work_go_on(monkeypatch, capfd):
    from dpo_recipes.sentences import LastingConsole

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("os.dup2", lambda old, new: new)
    console = LastingConsole(file=Closed())
    console.print("one")
    console.print("two")
    assert "the run goes on without it" in capfd.readouterr().err


def test_ctrl_c_while_a_recipe_file_runs_is_one_line(tmp_path):
    endless = 'import sys, time\nprint("looping", file=sys.stderr, flush=True)\nwhile True:\n    time.sleep(0.1)\n'
    file = write_recipe(tmp_path / "endless.py", endless)
    words = [sys.executable, "-m", "dpo_recipes", "show", str(file)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None and process.stderr.readline() == "looping\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert (process.returncode, said.strip()) == (130, "Stopped.")


INTERRUPTED = {
    "reading": "dpo_recipes.data.preference_dataset.read",
    "tokenising": "dpo_recipes.data.tokenize.prepare",
    "loading": "dpo_recipes.models.weights.load_weights",
    "training": "dpo_recipes.training.trainer.RecipeTrainer.training_step",
    "saving": "dpo_recipes.training.saved_model.save_model",
    "evaluation": "dpo_recipes.training.trainer.RecipeTrainer.held_out",
}


@pytest.mark.parametrize("target", INTERRUPTED.values(), ids=INTERRUPTED)
def test_ctrl_c_leaves_nothing_half_written(recipe, tmp_path, monkeypatch, target):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(recipe, runs=tmp_path / "runs", console=Console(file=io.StringIO(), width=80))
    left = [str(run) for run in (tmp_path / "runs").iterdir()]
    words = []
    for run in left:
        words += [f"What there is of the run stays in {run}.", f"To go on with it: train(recipe, resume={run!r})"]
    assert getattr(stopped.value, "__notes__", []) == words
    assert not list(tmp_path.rglob("*.tmp"))
    for run in (tmp_path / "runs").iterdir():  # only one that has trained stays
        assert (run / "metrics.jsonl").is_file() and not (run / "model").exists()
        checkpoints = run / "checkpoints"
        assert not checkpoints.exists() or any(checkpoints.iterdir())


@pytest.mark.slow
def test_a_real_limit_on_file_sizes_is_one_message(recipe, tmp_path, pairs_file):
    """The limit is met where the checkpoint is written: by safetensors, not by Python."""
    code = (
        "import resource, sys\n"
        "from dpo_recipes import Data, LoRA, Recipe, RecipeError, train\n"
        "from dpo_recipes.training.trainer import RecipeTrainer\n"
        "real = RecipeTrainer._save_checkpoint\n"
        "def limited(*args, **kwargs):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "    return real(*args, **kwargs)\n"
        "RecipeTrainer._save_checkpoint = limited\n"
        f"recipe = Recipe(model={recipe.model!r}, data=Data({str(pairs_file)!r}, eval=0.25), adapter=LoRA(r=4),\n"
        "    global_batch_size=6, max_length=112, learning_rate=1e-3,\n"
        "    trl={'gradient_checkpointing': False, 'max_steps': 3, 'save_steps': 2})\n"
        "try:\n"
        f"    train(recipe, runs={str(tmp_path / 'runs')!r})\n"
        "except RecipeError as error:\n"
        "    sys.stderr.write(f'MESSAGE {error}')\n"
    )
    done = forking.run(forking.python, code, cwd=tmp_path, environment=dict(os.environ), timeout=1200)
    assert "MESSAGE" in done.stderr and "Training had come to step 2 of 3." in done.stderr
    assert "No other place has room for the model, which is lost." in done.stderr
    assert not list(tmp_path.rglob("checkpoint-*")) and not list(tmp_path.rglob("*.tmp"))

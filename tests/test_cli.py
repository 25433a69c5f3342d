"""The verbs at the command line: what they print, how they exit, and that nothing typed wrong is a traceback."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from dpo_recipes import cli
from dpo_recipes.errors import Finding, RecipeError
from dpo_recipes.recipe.catalogue import recipe_files

RECIPE = "smollm3_ultrafeedback"
SHIPPED = list(recipe_files())


@pytest.fixture(autouse=True)
def _plain(here, monkeypatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def dpo(monkeypatch, capsys):
    """dpo("show", "x", columns=80) -> (exit code, standard output, standard error)."""

    def call(*args: str, columns: int = 160) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        # `Dataset.map` with several processes puts a copy in the place of os.environ; rich keeps the old one.
        monkeypatch.setattr(Console, "_environ", os.environ)
        monkeypatch.setattr(sys, "argv", ["dpo-recipes", *args])
        capsys.readouterr()  # what the test's own models have printed while they were made
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capsys.readouterr()
        return int(exited.value.code or 0), out, err

    return call


# What a newcomer types wrong, and what comes back on standard error.
TYPOS: list[tuple[list[str], str]] = [
    (["trian", RECIPE], "No such command 'trian'. Did you mean 'train'?"),
    (["quickstart"], "quickstart is a recipe, not a command. To train it: dpo-recipes train quickstart"),
    (["recipes/mine.py"], "recipes/mine.py is a recipe, not a command. To train it: dpo-recipes train recipes/mine.py"),
    (
        ["help"],
        "error: No such command 'help'. The commands: list, show, new, preview, check, doctor, train, pairs, sweep, "
        "compare, chat, reference, evaluate, export, bench, report. What each does: dpo-recipes --help",
    ),
    (["evaluate"], "error: Name a run folder, as in `dpo-recipes evaluate runs/NAME`, or two models and pairs:"),
    (["evaluate", "beta=0.1"], "error: Name a run folder, as in"),
    (["chaat", RECIPE], "No such command 'chaat'. Did you mean 'chat'?"),
    (["chat"], "Missing argument 'RUN'."),
    (["pairs", "quickstart", "--prompts", "x", "--endpoint", "http://h/v1"], "name its model with --endpoint-model."),
    (["pairs", "quickstart", "--prompts", "x", "--api-key-env", "K"], "belong to --endpoint URL, which is not given."),
    (
        ["pairs", "quickstart", "--prompts", "x", "--endpoint", "h:80", "--endpoint-model", "m"],
        "Endpoint.url='h:80' must be the address of an OpenAI-compatible endpoint, such as https://host/v1",
    ),
    (["exprot"], "No such command 'exprot'. Did you mean 'export'?"),
    (["export", "x"], "error: Say what is to be exported: --merged is one plain model"),
    (["export", "x", "--merged"], "error: Name the new folder that is to be written: --out FOLDER."),
    (["export", RECIPE, "--trl", "--nodes", "2"], "error: --nodes belongs to --to KIND, which is not given."),
    (["export", RECIPE, "--to", "slurm"], "error: --to slurm is not one of sbatch, sky, hf-jobs."),
    (["export", RECIPE, "--to", "sbatch", "--trl"], "error: --trl and --to: one of them"),
    (["export", RECIPE, "--to", "sbatch", "--push", "a/b"], "error: --push sends a model, and --to writes a file"),
    (["train", RECIPE, "--once", "--resume"], "error: --once goes on with a run by itself: leave --resume out."),
    (["export", "x", "--out", "y"], "error: Say what is to be exported: --merged is one plain model"),
    (["export", "x", "--out", "y", "--dial", "0"], "error: --dial 0: a number above 0."),
    (["export", "x", "--out", "y", "--dial", "half"], "'--dial': Input should be a valid number"),
    (["show"], "Missing argument 'RECIPE'."),
    (["list", "extra"], "unexpected extra argument"),
    (["list", "--jsn"], "No such option: --jsn"),
    (["--versio"], "No such option: --versio"),
    (["new"], "Missing argument 'NAME'."),
    (
        ["new", "foo-bar", "--from", RECIPE],
        "error: 'foo-bar' cannot be a recipe's name: letters, digits and _, such as foo_bar.",
    ),
    (["new", "x", "--from", "smollm3_ultrafeedbak"], "Did you mean 'smollm3_ultrafeedback'?"),
    (["train", RECIPE, "--runs"], "Option '--runs' requires an argument."),
    (["train", RECIPE, "--run", "x"], "error: '--run' is neither an option (see --help) nor KEY=VALUE"),
    (["show", RECIPE, "--jsno"], "error: '--jsno' is neither an option (see --help) nor KEY=VALUE"),
    (
        ["train", "smollm3_ultrafeedbak"],
        "error: There is no recipe 'smollm3_ultrafeedbak'. Did you mean 'smollm3_ultrafeedback'?",
    ),
    (["train", "./nope.py"], "error: There is no recipe './nope.py'. dpo-recipes list names all of them; "),
    (["train", "."], "error: . is a folder, and a recipe is a Python file. Files in it: none."),
    (
        ["train", RECIPE, "--beta", "0.05"],
        "error: '--beta' is neither an option (see --help) nor KEY=VALUE, such as beta=0.05. Write beta=VALUE.",
    ),
    (["train", RECIPE, "--betta"], "such as beta=0.05. Did you mean 'beta'?"),
    (
        ["train", RECIPE, "beta", "0.05"],
        "error: 'beta' is neither an option (see --help) nor KEY=VALUE, such as beta=0.05. Write beta=VALUE.",
    ),
    (["train", RECIPE, "beta=abc"], "error: beta='abc' must be a number such as 0.1 or 5e-7."),
    (["train", RECIPE, "betta=0.05"], "error: betta is not a field of the recipe. Did you mean 'beta'?"),
    (["train", RECIPE, "beta=0.1", "beta=0.2"], "error: beta is set twice, to '0.1' and to '0.2': keep one"),
    (["train", RECIPE, "max_prompt_length=512"], "max_prompt_length is gone since TRL 0.29: set max_length"),
    (["train", RECIPE, "trl.lr_scheduler_type=cosin"], "Did you mean 'cosine'?"),
    (
        ["train", RECIPE, "trl.eval_steps=10"],
        "error: trl.eval_steps=10 would do nothing here: read with eval_strategy='steps' only.",
    ),
    (
        ["train", RECIPE, "loss=sigmod"],
        "error: Recipe.loss='sigmod' is neither TRL's nor ours. Did you mean 'sigmoid'?",
    ),
    (["train", RECIPE, "adapter=lorra"], "error: adapter='lorra' must be none, lora or qlora. Did you mean 'lora'?"),
    (["train", RECIPE, "global_batch_size=7"], "micro_batch_size=4 does not divide the 7 pairs per device and step"),
    (["chek", RECIPE], "No such command 'chek'. Did you mean 'check'?"),
    (["docter"], "No such command 'docter'. Did you mean 'doctor'?"),
    (["doctor", RECIPE], "unexpected extra argument"),
    (["check"], "Missing argument 'RECIPE'."),
    (["preview"], "Missing argument 'RECIPE'."),
    (["check", "smollm3_ultrafeedbak"], "Did you mean 'smollm3_ultrafeedback'?"),
    (["preview", RECIPE, "betta=0.1"], "error: betta is not a field of the recipe. Did you mean 'beta'?"),
    (["check", RECIPE, "--rnu"], "error: '--rnu' is neither an option (see --help) nor KEY=VALUE"),
    (["check", RECIPE, "--gpu"], "Option '--gpu' requires an argument."),
    (["check", RECIPE, "--gpu", "24 gigs"], "'24 gigs' is no amount of memory. Examples: 24GB, 80GiB, 512MB."),
    (["check", RECIPE, "--engine", "zero3"], "say how many, as in --num-processes 4 --engine zero3."),
    (["check", RECIPE, "--engine", "zero4", "--num-processes", "2"], "is not one of ddp, fsdp2, zero2, zero3."),
    (["check", RECIPE, "--gpu", "much", "--json"], "'much' is no amount of memory."),
    (["check", RECIPE, "loss=sigmod", "--json"], "Did you mean 'sigmoid'?"),
    (["preview", RECIPE, "-n", "0"], "'-n': Input should be greater than or equal to 1"),
    (["preview", RECIPE, "-n", "some"], "'-n': Input should be a valid integer"),
]


@pytest.mark.parametrize(("message", "between"), [("It cannot work.", " "), ("One line,\nand another.", "\n")])
def test_what_a_stopped_run_has_left_is_said_behind_why_it_stopped(dpo, monkeypatch, message, between):
    def fail(name: str) -> None:
        error = RecipeError(message)
        error.add_note("What there is of the run stays in runs/x.")
        raise error

    monkeypatch.setattr(cli.catalogue, "load", fail)
    expected = f"error: {message}{between}What there is of the run stays in runs/x.\n"
    assert dpo("show", RECIPE) == (1, "", expected)


def test_report_prints_where_the_page_is_and_nothing_else(dpo, tmp_path):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{}", encoding="utf-8")
    assert dpo("report", str(folder), columns=20) == (0, f"{folder / 'report.html'}\n", "")
    assert dpo("report", "runs/on")[::2] == (
        1,
        "error: There is no run folder runs/on. Did you mean 'one'?\n",
    )
    assert dpo("report", "--help")[0] == 0


@pytest.mark.parametrize(("args", "message"), TYPOS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_typo_is_a_message_and_exit_code_2(dpo, args, message):
    code, out, err = dpo(*args)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err
    if err.startswith("error: "):
        assert err.count("\n") == 1


def test_a_broken_recipe_file_is_exit_code_1_with_its_line(dpo, here):
    (here / "bad.py").write_text("from dpo_recipes import Recipe\nrecipe = Recipe(model='[red]m', warmup_ratio=0.1)\n")
    code, out, err = dpo("show", "bad.py")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {here / 'bad.py'}, line 2: Recipe has no field 'warmup_ratio'. warmup_ratio is gone")


def test_nothing_typed_is_the_help(dpo):
    code, out, err = dpo()
    assert code == 2 and "Usage: " in out + err and "train" in out + err


def test_help_is_short_and_grouped(dpo):
    code, out, _ = dpo("--help", columns=80)
    assert code == 0 and len(out.splitlines()) < 56 and max(map(len, out.splitlines())) <= 80
    assert [out.index(panel) for panel in ("Look", "Make your own", "Run")] == sorted(
        out.index(panel) for panel in ("Look", "Make your own", "Run")
    )
    assert "Start with: dpo-recipes train quickstart" in out and "--install-completion" in out
    for verb in ("list", "show", "new", "train", "preview", "check", "doctor"):
        code, out, _ = dpo(verb, "--help", columns=80)
        assert code == 0 and f" {verb} [OPTIONS]" in out and len(out.splitlines()) < 25
        assert max(map(len, out.splitlines())) <= 80 and ("--json" in out) == (verb not in ("new", "train"))
    assert dpo("-h")[0] == 0


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_list_fits_the_terminal_and_cuts_no_name(dpo, columns):
    code, out, _ = dpo("list", columns=columns)
    lines = out.splitlines()
    rows = {row["name"]: row for row in json.loads(dpo("list", "--json")[1])}
    assert code == 0 and max(map(len, lines)) <= columns
    for name in SHIPPED:
        [line] = [line for line in lines if line.startswith(name + " ")]
        assert rows[name]["loss"] in lines[lines.index(line) + 1]
    words = " ".join(out.split())
    assert "LoRA r=32" in words and (columns == 60 or "HuggingFaceTB/SmolLM3-3B" in words)


def test_list_shows_a_broken_file_as_broken(dpo, here):
    (here / "recipes").mkdir()
    (here / "recipes/a_broken.py").write_text("import no_such_module\n")
    for columns in (80, 200):
        code, out, _ = dpo("list", columns=columns)
        assert code == 0 and "a_broken" in out and "broken: line 1: ModuleNotFoundError" in " ".join(out.split())


def test_list_as_json(dpo):
    code, out, err = dpo("list", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "") and sorted(row["name"] for row in rows) == SHIPPED
    assert all(list(row) == keys_in_readme("list") for row in rows)


@pytest.mark.slow
def test_list_filters_by_model_and_adapter(dpo):
    rows = json.loads(dpo("list", "--json", "--model", "QWEN")[1])
    assert len(rows) >= 3 and all(row["model"].startswith("Qwen/") for row in rows)
    for adapter, words in (("none", "full"), ("lora", "LoRA r="), ("qlora", "QLoRA r=")):
        rows = json.loads(dpo("list", "--json", "--adapter", adapter)[1])
        assert rows and all(row["adapter"].startswith(words) for row in rows)
    code, out, _ = dpo("list", "--model", "qwen", "--adapter", "qlora")
    assert code == 0 and "qwen3_8b_qlora" in out and "zephyr" not in out
    assert dpo("list", "--model", "no such model")[1] == "No recipe is like that. All of them: dpo-recipes list\n"
    assert json.loads(dpo("list", "--model", "no such model", "--json")[1]) == []


@pytest.mark.slow
def test_list_leaves_out_what_cannot_fit_and_says_what_is_not_known(dpo):
    rows = {row["name"]: row for row in json.loads(dpo("list", "--json", "--gpu", "24GB")[1])}
    assert rows["qwen3_8b_qlora"]["fits"] is True and rows["starter"]["fits"] is None
    assert rows["qwen3_8b_qlora"]["least_memory"] < 12e9 < rows["zephyr_7b_mpo"]["most_memory"]
    assert rows["starter"]["least_memory"] is None and "zephyr_7b_full" not in rows
    rows = {row["name"]: row for row in json.loads(dpo("list", "--json")[1])}
    assert rows["zephyr_7b_full"]["least_memory"] is None and rows["zephyr_7b_full"]["fits"] is None

    code, out, _ = dpo("list", "--gpu", "12GB", "--model", "qwen", columns=80)
    words = " ".join(out.split())
    assert code == 0 and "fits: 7.12 to 11.2 GB" in words and "dpo-recipes check NAME --gpu 12GB" in words
    assert "may fit: 9.54 to 15 GB" in words
    code, _, err = dpo("list", "--gpu", "24")
    assert code == 2 and "--gpu '24' is no amount of memory" in err


def test_show_prints_values_origins_and_differences(dpo):
    code, out, err = dpo("show", RECIPE, "beta=0.3", "trl.max_grad_norm=0.5", columns=80)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 80
    assert lines[0] == "smollm3_ultrafeedback on cpu: 16 pairs a step = 4 pairs x 4 accumulation"
    for line in (
        "field value origin",
        "beta 0.3 command line",
        "adapter.r 32 recipe file",
        "adapter.alpha 64 mode default",
        "seed 42 default",
        "data.path HuggingFaceH4/ultrafeedback_binarized recipe file",
        "trl.max_grad_norm 0.5 command line",
        "Different from TRL's defaults:",
        "DPOConfig this recipe TRL's default",
        "max_grad_norm 0.5 1.0",
        "beta 0.3 0.1",
        "gradient_accumulation_steps 4 1",
        "lr_scheduler_type cosine linear",
    ):
        assert line in lines, line


def test_show_changed_is_what_was_set_in_the_file_or_on_the_command_line(dpo):
    code, out, err = dpo("show", RECIPE, "beta=0.3", "--changed", columns=80)
    assert (code, err) == (0, "") and "TRL's default" not in out
    table = [line.split() for line in out.splitlines()[3:]]
    assert ["beta", "0.3", "command", "line"] in table and {row[-1] for row in table} == {"file", "line"}
    code, out, _ = dpo("show", RECIPE, "beta=0.3", "--changed", "--json")
    origins = {entry["origin"] for entry in json.loads(out)["recipe"].values()}
    assert code == 0 and origins == {"recipe file", "command line"}


def test_show_prints_values_as_they_are(dpo):
    assert "data.eval [bold]test " in " ".join(dpo("show", RECIPE, "data.eval=[bold]test")[1].split())
    long = "x" * 300
    assert long in "".join(
        dpo("show", RECIPE, f"model={long}", columns=80)[1].replace("recipe file", "").split()
    ).replace("commandline", "")


@pytest.mark.parametrize("name", SHIPPED)
def test_show_as_json_is_one_value_and_nothing_else(dpo, name):
    code, out, err = dpo("show", name, "--json", "beta=0.3")
    shown = json.loads(out)
    assert (code, err) == (0, "") and shown["name"] == name
    assert shown["recipe"]["beta"] == {"value": 0.3, "origin": "command line"}
    assert shown["trl"]["beta"] == {"value": 0.3, "default": 0.1} and "step" in shown


def test_new_forks_and_says_what_next_and_never_overwrites(dpo, here):
    code, out, _ = dpo("new", "mine", "--from", RECIPE)
    expected = f"recipes/mine.py is yours, a copy of {RECIPE}. Edit it, then: dpo-recipes check mine\n"
    assert (code, out) == (0, expected)
    assert "dpo-recipes train mine" in (here / "recipes/mine.py").read_text()
    assert dpo("show", "mine")[0] == 0
    code, out, err = dpo("new", "mine", "--from", RECIPE)
    assert (code, out) == (2, "") and "recipes/mine.py exists already and stays as it is" in err


def test_new_starts_from_the_template_and_says_where_the_others_are(dpo):
    code, out, _ = dpo("new", "mine")
    first, second = out.splitlines()
    assert (code, first) == (0, "recipes/mine.py is yours. Set its model and data, then: dpo-recipes check mine")
    assert json.loads(dpo("show", "mine", "--json")[1])["recipe"]["model"]["value"] == "./my_model"
    help_text = " ".join(dpo("new", "--help")[1].split())
    assert "dpo-recipes list" in help_text and "dpo-recipes list" in second


def test_a_model_or_pairs_of_ones_own_in_the_quickstart_are_refused_at_once(dpo, trained):
    for change in ("data.path=my.jsonl", "model=./my_model"):
        code, out, err = dpo("train", "quickstart", change)
        assert (code, out) == (2, "") and "does not go with quickstart" in err and err.count("\n") == 1
    assert trained == []


def test_version(dpo, monkeypatch):
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 1.2.3")
    assert dpo("--version")[:2] == (0, "dpo-recipes 1.2.3\n")


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training: a list of (recipe, runs), or what `trained.fails` says."""

    class Calls(list):
        fails: BaseException | None = None
        resumed: tuple | None = None

    calls = Calls()

    def fake(recipe, *, runs, resume=None, once=False, allow_change=(), console=None):
        calls.append((recipe, runs))
        calls.resumed = (resume, list(allow_change))
        if calls.fails:
            raise calls.fails

    monkeypatch.setattr(importlib.import_module("dpo_recipes.commands.train"), "train", fake)
    return calls


@pytest.mark.parametrize(
    ("words", "resumed"),
    [
        ([], (None, [])),
        (["--resume"], ("last", [])),
        (["--resume", "runs/one"], ("runs/one", [])),
        (["--resume", "beta=0.05"], ("last", [])),
        (["--resume=a=b"], ("a=b", [])),
        (["--resume", "--allow-change", "beta", "--allow-change", "trl"], ("last", ["beta", "trl"])),
        (["beta=0.05", "--resume", "--runs", "elsewhere"], ("last", [])),
    ],
)
def test_resume_stands_for_the_last_run_where_none_is_named(dpo, trained, words, resumed):
    assert dpo("train", RECIPE, *words) == (0, "", "") and trained.resumed == resumed
    [(recipe, _)] = trained
    assert recipe.beta == (0.05 if "beta=0.05" in words else 0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", RECIPE, "--resme"], "Did you mean '--resume'?"),
        (["train", RECIPE, "--allow-chnage=beta"], "Did you mean '--allow-change'?"),
        (["check", RECIPE, "--jsn"], "Did you mean '--json'?"),
        (["train", RECIPE, "--hlep"], "Did you mean '--help'?"),
        (["sweep", RECIPE, "--seed"], "'--seed' is no KEY=VALUE"),  # a name of the recipe's
        (["train", RECIPE, "--rnk=8"], "'--rnk=8' is neither an option"),
    ],
)
def test_what_is_nearly_an_option_is_told_which(dpo, trained, words, said):
    code, out, err = dpo(*words)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1 and not trained


def test_train_gets_the_recipe_with_its_changes(dpo, trained):
    args = ("beta=0.05", "adapter.r=64", "data.train=train", "trl.max_grad_norm=0.5", "--runs", "elsewhere")
    assert dpo("train", RECIPE, *args)[0] == 0
    [(recipe, runs)] = trained
    assert (recipe.beta, recipe.adapter.r, recipe.data.train, recipe.trl["max_grad_norm"]) == (0.05, 64, "train", 0.5)
    assert runs == Path("elsewhere") and recipe.name == RECIPE
    dpo("train", RECIPE, "adapter=none")
    assert trained[1][0].adapter is None and trained[1][1] == Path("runs")


def test_exit_codes_of_a_run(dpo, trained):
    trained.fails = RecipeError("the data are [gone]")
    assert dpo("train", RECIPE) == (1, "", "error: the data are [gone]\n")
    trained.fails = KeyboardInterrupt()
    trained.fails.add_note("The trained model is in runs/x/model.")
    assert dpo("train", RECIPE) == (130, "", "Stopped. The trained model is in runs/x/model.\n")


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "expected"), SIGNALS)
def test_what_breaks_on_the_way_out_of_a_signal_is_no_error_of_its_own(dpo, monkeypatch, number, expected):
    def stopped(*_args, **_options):
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except KeyboardInterrupt:
            raise TimeoutError from None  # as `datasets` does, which waits for its workers

    monkeypatch.setattr(importlib.import_module("dpo_recipes.commands.train"), "train", stopped)
    before = signal.getsignal(number)
    assert dpo("train", RECIPE) == (expected, "", "Stopped.\n")
    assert signal.getsignal(number) is before


def test_a_signal_that_python_loses_in_a_destructor_is_sent_again(dpo, monkeypatch):
    class Stopped:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    def runs_on(*_args, **_options):
        Stopped()
        time.sleep(20)
        raise AssertionError("the signal was lost")

    monkeypatch.setattr(importlib.import_module("dpo_recipes.commands.train"), "train", runs_on)
    assert dpo("train", RECIPE) == (130, "", "Stopped.\n")


def test_a_run_under_nohup_lives_on_when_its_terminal_is_closed(dpo, monkeypatch):
    def closed(*_args, **_options):
        os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(importlib.import_module("dpo_recipes.commands.train"), "train", closed)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert dpo("train", RECIPE)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, path=None, target=None):
            if name == "dpo_recipes.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "dpo_recipes.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    from dpo_recipes.__main__ import main

    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 130 and capsys.readouterr().err == "Stopped.\n"


def test_a_worker_process_ends_at_ctrl_c_without_a_word(dpo, trained):
    dpo("train", RECIPE)
    if not (child := os.fork()):
        os._exit(signal.getsignal(signal.SIGINT) is signal.SIG_DFL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL


def test_a_bug_of_ours_is_a_traceback(monkeypatch, trained):
    trained.fails = ZeroDivisionError("ours")
    monkeypatch.setattr(sys, "argv", ["dpo-recipes", "train", RECIPE])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.slow
def test_a_terminal_that_is_not_utf_8_is_no_traceback(here):
    import subprocess

    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    (here / "recipes").mkdir()
    (here / "recipes/a.py").write_text(
        '"""Über."""\nfrom dpo_recipes import *\nrecipe = Recipe(model="m", data=Data("d"))\n', "utf-8"
    )
    done = subprocess.run([sys.executable, "-m", "dpo_recipes", "list"], env=env, capture_output=True, cwd=here)
    assert done.returncode == 0 and b"?ber." in done.stdout and done.stderr == b""


# ------------------------------------------------------------------------------------------ preview, check and doctor


@pytest.fixture
def mine(here, tiny, pairs_file) -> Path:
    """A recipe file on the tiny model."""
    text = f"Recipe(model={str(tiny())!r}, data=Data({str(pairs_file)!r}), adapter=LoRA(r=4), global_batch_size=4, "
    (here / "mine.py").write_text(f"from dpo_recipes import *\n\nrecipe = {text}max_length=128)\n")
    return here / "mine.py"


@pytest.mark.slow
def test_preview_draws_pairs_and_as_json_is_one_value(dpo, mine):
    code, out, err = dpo("preview", "mine.py", "-n", "2")
    assert code == 0 and "Traceback" not in err
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("row ")] == ["row 0", "row 1"]
    assert out.count("chosen   ▶") == out.count("rejected ▶") == 2 and "<|im_start|>user↵" in out
    code, out, _ = dpo("preview", "mine.py", "-n", "2", "--json")
    rows = json.loads(out)["pairs"]
    assert code == 0 and [row["row"] for row in rows] == ["0", "1"]
    assert all(row["chosen"]["kept"].endswith("<|im_end|>") and row["chosen"]["cut"] == "" for row in rows)
    assert all(row["chosen"]["tokens"] == len(row["chosen"]["kept"]) - 9 for row in rows)  # bytes, and one end token
    assert len(json.loads(dpo("preview", "mine.py", "--json")[1])["pairs"]) == 3
    found = json.loads(dpo("preview", "mine.py", "-n", "1000", "--json")[1])
    assert len(found["pairs"]) == 23  # one of 24 is held out
    assert [finding["name"] for finding in found["findings"]] == ["template", "rendering"]


@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_preview_of_a_file_that_is_not_there(dpo, mine, json_too):
    code, out, err = dpo("preview", "mine.py", "data.path=./nowhere.jsonl", *json_too)
    assert (code, out) == (1, "") and err.startswith("error: ") and "nowhere.jsonl" in err and err.count("\n") == 1


@pytest.mark.usefixtures("made_up_plan")
def test_check_exits_0_and_1_and_shows_every_finding(dpo, mine):
    code, out, err = dpo("check", "mine.py")
    assert code == 0 and "Traceback" not in err
    below_the_count = re.split(r"^\d+ warn, \d+ info, \d+ pass *\n", out, flags=re.M)[1]
    levels = [line.split()[0] for line in below_the_count.splitlines() if not line.startswith(" ")]
    assert levels == sorted(levels, key=["warn", "info", "pass"].index) and levels.count("pass") == 1
    assert "checks  versions, recipe, model, template" in " ".join(below_the_count.split()).replace("checks", "checks ")
    assert "(0.0%)" not in below_the_count
    code, out, err = dpo("check", "mine.py", "model=./nowhere")
    assert code == 1 and "Traceback" not in err
    levels = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert levels == ["1", "fail", "skipped", "skipped", "pass"]
    assert out.splitlines()[0].strip() == "1 fail, 2 skipped, 2 pass"
    assert "model='./nowhere': there is no such folder." in out


@pytest.mark.slow
def test_check_plans_for_one_of_several_devices(dpo, mine):
    launch = ["--gpu", "24GB", "--num-processes", "2", "--engine", "zero3"]
    code, out, _ = dpo("check", "mine.py", *launch, "--json")
    found = json.loads(out)
    assert code == 0 and (found["plan"]["num_processes"], found["plan"]["engine"]) == (2, "zero3")
    [memory] = [finding for finding in found["findings"] if finding["name"] == "memory"]
    assert "on each of 2 devices under zero3" in memory["text"]


@pytest.mark.usefixtures("made_up_plan")
def test_findings_fit_the_terminal_and_need_no_colour(dpo, mine, monkeypatch):
    module = importlib.import_module("dpo_recipes.commands.check")
    found = module.check(cli.catalogue.load("mine.py"))
    ways_out = "It does not fit. Ways out, the best first: " + "; ".join(f"a_field={n} saves {n} GB" for n in range(9))
    found["findings"].append(Finding("fail", "memory", ways_out))
    monkeypatch.setattr(module, "check", lambda *args, **kwargs: found)
    for columns in (60, 80, 120):
        plain = dpo("check", "mine.py", columns=columns)[1]
        assert max(map(len, plain.splitlines())) <= columns and "\x1b" not in plain
        words = "".join(plain.split())
        assert all("".join(finding.text.split()) in words for finding in found["findings"] if len(finding.text) < 40)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;31mfail\x1b[0m" in dpo("check", "mine.py")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31mfail" not in dpo("check", "mine.py")[1]


def test_what_a_finding_quotes_is_no_markup(dpo, mine):
    assert "model='./[bold]nowhere'" in dpo("check", "mine.py", "model=./[bold]nowhere")[1]


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.parametrize("changes", [(), ("model=./nowhere",), ("max_length=16",)], ids=["pass", "missing", "cut"])
def test_check_as_json_is_one_value_and_nothing_else(dpo, mine, changes):
    import datasets

    datasets.enable_progress_bars()
    code, out, _ = dpo("check", "mine.py", *changes, "--json", columns=40)
    found = json.loads(out)
    assert list(found) == ["findings", "data", "plan", "evaluation", "run", "pairs"] and found["run"] is None
    assert all(list(finding) == ["level", "name", "text"] for finding in found["findings"])
    failed = any(finding["level"] == "fail" for finding in found["findings"])
    assert code == failed == bool(changes)


def test_a_file_of_data_in_the_place_of_a_recipe_is_told_apart(dpo, here):
    (here / "my_pairs.jsonl").write_text("{}")
    code, out, err = dpo("train", "my_pairs.jsonl")
    assert (code, out) == (2, "") and "As the data of one: dpo-recipes check starter data.path=my_pairs.jsonl" in err


def json_row_in_readme(verb: str) -> str:
    """What the README says that a verb prints as JSON."""
    readme = (Path(cli.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = readme.split("| `--json` of |")[1].split("\n\n")[0]
    [row] = [line for line in table.splitlines() if line.startswith(f"| `{verb}` |")]
    return row


def keys_in_readme(verb: str) -> list[str]:
    """The keys of the first {...} that the README writes for a verb."""
    return re.findall(r'"(\w+)"', json_row_in_readme(verb).split("{")[1].split("}")[0])


TALKING = """
from dpo_recipes import *

print("imported")


def talking_loss(pairs, *, beta):
    print("loss", pairs.h.shape)
    return (1 - beta * pairs.h).clamp(min=0)


def talking_reward(prompt, completion):
    print("reward")
    return float(len(completion))


def talking_reader(row):
    print("reader")
    return row


recipe = Recipe(model={model!r}, data=Data({data!r}, reader=talking_reader), adapter=LoRA(r=4), loss=talking_loss,
    global_batch_size=4, max_length=128, reward=talking_reward, measures={{"talk": talking_reward}})
"""


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["list", "show talking.py", "preview talking.py", "check talking.py --run"])
def test_what_functions_of_a_recipe_print_does_not_mix_with_json(dpo, here, tiny, pairs_file, verb):
    text = TALKING.format(model=str(tiny()), data=str(pairs_file))
    for name in ("talking.py", "recipes/talking.py"):  # the second is for `list`
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    code, out, err = dpo(*verb.split(), "--json")
    printed = json.loads(out)
    assert code == 0 and "imported" in err
    assert list(printed[0] if verb == "list" else printed) == keys_in_readme(verb.split()[0])
    if verb.startswith("preview"):
        assert all(f'"{key}"' in json_row_in_readme("preview") for key in printed["pairs"][0]["chosen"])
    assert ("reader" in err) == verb.startswith(("preview", "check"))
    assert ("loss" in err) == verb.startswith("check")


@pytest.mark.slow
def test_what_a_program_started_by_a_recipe_prints_does_not_mix_with_json(here):
    import subprocess

    text = (
        'import os\nos.system("echo started")\nfrom dpo_recipes import *\nrecipe = Recipe(model="m", data=Data("d"))\n'
    )
    (here / "starting.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", "dpo_recipes", "show", "./starting.py", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=here)
    assert json.loads(done.stdout)["name"] == "starting" and done.stderr == "started\n"


def test_verbs_bring_no_library_that_talks_before_it_can_be_silenced_and_none_that_takes_seconds():
    """bitsandbytes announces at import what is not installed: the session silences it before it is imported."""
    import subprocess

    code = (
        "import sys\n"
        "from dpo_recipes.commands import check, preview, train\n"
        "assert not {'bitsandbytes', 'transformers', 'torch', 'datasets', 'pyarrow'} & sys.modules.keys()"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", ["check", "preview"])
def test_a_broken_recipe_file_is_one_line_for_each_verb(dpo, here, verb):
    (here / "bad.py").write_text("from dpo_recipes import Recipe\n\nrecipe = Recipe(\n")
    code, out, err = dpo(verb, "bad.py", "--json")
    assert (code, out) == (1, "") and err.startswith(f"error: {here / 'bad.py'}, line 3: ") and err.count("\n") == 1


@pytest.mark.parametrize("verb", ["check", "preview", "doctor"])
def test_ctrl_c_is_exit_code_130_without_a_traceback(dpo, mine, monkeypatch, verb):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"dpo_recipes.commands.{verb}"), verb, stopped)
    recipe = [] if verb == "doctor" else ["mine.py"]
    code, out, err = dpo(verb, *recipe)
    assert (code, out) == (130, "") and "Traceback" not in err


def test_doctor_exits_1_where_training_cannot_work(dpo, monkeypatch):
    found = [Finding("pass", "machine", "one [bold]core"), Finding("fail", "GPU", "The driver: update it.")]
    monkeypatch.setattr(importlib.import_module("dpo_recipes.commands.doctor"), "doctor", lambda: iter(found))
    code, out, err = dpo("doctor")
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (1, "") and lines == [
        ["pass", "machine", "one", "[bold]core"],
        ["fail", "GPU", "The", "driver:", "update", "it."],
        ["1", "fail,", "1", "pass"],
    ]
    code, out, err = dpo("doctor", "--json")
    assert (code, err) == (1, "") and json.loads(out) == {"findings": [finding._asdict() for finding in found]}
    assert list(json.loads(out)) == keys_in_readme("doctor")
    found.pop()
    assert dpo("doctor")[0] == 0

"""Nothing printed in the README can rot: its commands and code run, its recipe and file names are the real ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forking
import pytest
from making import make_model, make_pairs, write_jsonl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# "$ command" lines of the console blocks, each with the output printed under it.
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.S)
NO_HUB = "http://127.0.0.1:9"  # where nothing listens: no test may reach a hub
PATIENCE = 1800  # seconds: the longest takes a minute and a half on an idle machine, and on a busy one many times that
COMMANDS = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of the project whose .venv is this interpreter's, so that make installs nothing."""
    folder = tmp_path_factory.mktemp("checkout") / "dpo-recipes"
    anywhere = shutil.ignore_patterns(".venv", ".git", ".*cache*", "__pycache__")

    def left_behind(place: str, names: list[str]) -> set[str]:
        runs = {"runs"} if Path(place) == ROOT else set()  # not dpo_recipes/runs, which is code
        return anywhere(place, names) | runs

    shutil.copytree(ROOT, folder, ignore=left_behind)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / ".installed").touch()
    make_model(folder / "my_model")
    write_jsonl(folder / "my_pairs.jsonl", make_pairs(40))
    return folder


def test_the_first_screen_holds_the_two_commands():
    words = [command.split(" #")[0].strip() for command in COMMANDS]
    assert words[:2] == ["make train", "make test"]


@pytest.mark.slow
def test_everything_that_is_run_does_what_it_says(checkout):
    """One test, as each command works on what those before it have left, and tests go to different processes."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": NO_HUB}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    with pytest.MonkeyPatch.context() as patch:  # of which the libraries read some while they are imported
        for name, value in environment.items():
            patch.setenv(name, value)
        results = run_commands(checkout, environment)
        assert_python_blocks_run(checkout, environment)
    for command, result in results.items():
        fails = README.split(f"$ {command}\n", 1)[1].startswith("error:")
        assert (result.returncode != 0) == fails, f"{command}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stdout + result.stderr
    for block in BLOCKS:
        assert_printed_as_shown(block, results)
    assert_quickstart_as_claimed(checkout)


def run_commands(checkout: Path, environment: dict[str, str]) -> dict[str, subprocess.CompletedProcess]:
    """Every command, run in order in one checkout; test and lint are what CI runs, and demo needs PyPI: only named."""
    settings = {"cwd": checkout, "timeout": PATIENCE}
    results = {}
    for command in COMMANDS:
        words = command.split(" #")[0]
        if re.match(r"make (demo|test|lint)", words):
            words = words.replace("make", "make --dry-run")
        if words.startswith(("git clone", "cd ", "pip install")):
            continue
        if words.startswith("dpo-recipes "):  # let the shell expand it, and go on from there
            arguments = in_shell(f"printf '%s\\0' {words}", env=environment, **settings).stdout.split("\0")[:-1]
            results[command] = forking.run(forking.command_line, *arguments, environment=environment, **settings)
        else:
            results[command] = in_shell(words, env=environment, **settings)
    return results


def in_shell(words: str, **settings) -> subprocess.CompletedProcess:
    """The README's own text, not a user's."""
    return subprocess.run(["bash", "-c", words], capture_output=True, text=True, **settings)


def numbers_out(text: str) -> str:
    """The words of an output without what differs from run to run: numbers, times, paths, bars."""
    return re.sub(r"[\d.,:%+\-−–/~]+|\S*(?:runs|cache)\S*|[━╇┃│┏┓┗┛┡┩─]+|\s+", " ", text).strip()


def assert_printed_as_shown(block: str, results: dict[str, subprocess.CompletedProcess]) -> None:
    command = ""
    for line in block.splitlines():
        if line.startswith("$ "):
            command = line[2:]
            continue
        if command in results and line.strip() not in ("", "...") and not re.match(r"make (demo|test|lint)", command):
            printed = numbers_out(results[command].stdout + results[command].stderr)
            line = line.replace("https://huggingface.co", NO_HUB)
            assert numbers_out(line) in printed, f"{command} does not print: {line}\n{printed}"


def assert_quickstart_as_claimed(checkout: Path) -> None:
    from dpo_recipes import Run

    run = Run(sorted((checkout / "runs").glob("quickstart-*"))[0])
    before, after = run.evaluation["before"], run.evaluation["after"]
    assert after["win_rate"] >= 0.68
    assert after["reward"] - before["reward"] >= 0.5
    assert 0 < after["kl"] < 2 and before["reward"] < after["reward"] < after["best_reward_at_kl"]
    assert after["rewards/accuracies_interval"][0] > 0.7


def assert_python_blocks_run(checkout: Path, environment: dict[str, str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    runnable = [block for block in blocks if "# recipes/" not in block.splitlines()[0]]
    for block in runnable:
        result = forking.run(forking.python, block, cwd=checkout, environment=environment, timeout=PATIENCE)
        assert result.returncode == 0, f"{block}\n{result.stderr}"


def test_the_pairs_shown_are_pairs_as_they_are_read():
    from dpo_recipes.formats.recognise import choose_format

    lines = re.search(r"```json\n(.*?)```", README, re.S)[1].splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 and choose_format(rows, "README.md", named=None, max_dropped=0) == "preference"


def test_the_values_to_change_are_those_of_the_template():
    marked = [line for line in (ROOT / "recipes/starter.py").read_text().splitlines() if "<- yours" in line]
    assert len(marked) == 2
    for line in marked:
        assert f"`{line.partition(',  #')[0].strip()}`" in README


def test_the_recipe_shown_whole_is_the_file():
    shown = re.search(r"```python\n# recipes/(\w+\.py)\n(.*?)```", README, re.S)
    assert shown and shown[2].strip() == (ROOT / "recipes" / shown[1]).read_text(encoding="utf-8").strip()


def test_every_file_of_the_package_is_in_the_tree_with_a_phrase():
    listed = README.partition("## The files")[2].partition("```\n")[2].partition("```")[0]
    phrases: dict[str, str] = {}
    folder = ""
    for line in listed.splitlines():
        name, _, phrase = line.strip().partition(" ")
        inside = line.startswith("    ")
        if name.endswith("/"):
            folder = name
        elif line.startswith("  "):
            phrases[folder + name if inside else name] = phrase.strip()
    package = ROOT / "dpo_recipes"
    files = {str(p.relative_to(package)) for p in package.rglob("*.py")}
    real = {name for name in files if not name.endswith(("__init__.py", "__main__.py")) or name == "__init__.py"}
    assert len(real) > 30 and set(phrases) == real
    assert all(phrases.values())


def test_recipes_and_losses_and_verbs_are_all_named():
    from dpo_recipes.cli import app
    from dpo_recipes.losses.plugins import PLUGIN_LOSSES
    from dpo_recipes.recipe.catalogue import SHIPPED

    for name in [*(p.stem for p in SHIPPED.glob("*.py")), *PLUGIN_LOSSES]:
        assert f"`{name}`" in README, f"the README does not name {name}: add its row"
    for command in app.registered_commands:
        name = (command.name or command.callback.__name__).rstrip("_")
        assert f"`{name}`" in README, f"the README does not name {name}: add its row"

"""The package away from its checkout: as a wheel lays it out, and where processes are spawned instead of forked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from making import make_pairs, short_recipe, trainer_of, write_jsonl, write_recipe

from dpo_recipes.recipe.catalogue import SHIPPED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The files that pyproject.toml puts into a wheel, as they lie where they are installed; nothing else of ours."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    site = tmp_path_factory.mktemp("site")
    sources = {name: name for name in wheel["packages"]} | wheel["force-include"]
    for source, target in sources.items():
        place = site / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)
    return site


def python(code: str, site: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Code in a process of its own that has these files alone of ours, in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )


EVERY_HELP = """
import contextlib, io, json, sys
import dpo_recipes
from dpo_recipes import cli
from dpo_recipes.recipe.catalogue import load, recipe_files
from typer.testing import CliRunner

helps = {}
for command in cli.app.registered_commands:
    name = command.name or command.callback.__name__
    result = CliRunner().invoke(cli.app, [name, "--help"])
    helps[name] = [result.exit_code, result.output]
recipes = {name: str(path) for name, path in recipe_files().items() if load(path)}
print(json.dumps({"package": dpo_recipes.__file__, "helps": helps, "recipes": recipes}))
"""


@pytest.mark.slow
def test_a_wheel_carries_every_recipe_and_every_verb_answers_in_an_empty_folder(installed, tmp_path):
    done = python(EVERY_HELP, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["package"]).is_relative_to(installed)
    assert sorted(found["recipes"]) == sorted(file.stem for file in SHIPPED.glob("*.py"))
    assert all(Path(path).is_relative_to(installed) for path in found["recipes"].values())
    assert len(found["helps"]) >= 16
    for verb, (code, text) in found["helps"].items():
        assert code == 0 and "Usage" in text, verb
    assert list(tmp_path.iterdir()) == []


def test_a_copied_recipe_is_whole_without_the_file_it_is_a_copy_of(installed, tmp_path):
    code = "from dpo_recipes import load, new; new('mine', 'gpt2_large_imdb'); print(load('mine').reward.__name__)"
    done = python(code, installed, tmp_path)
    assert (done.returncode, done.stdout) == (0, "positive\n"), done.stderr


ENTRY = """
import sys
from dpo_recipes.__main__ import main

sys.exit(main())
"""


@pytest.mark.slow
def test_a_shell_completes_verbs_options_and_recipes(installed, tmp_path):
    entry = tmp_path / "dpo-recipes"  # the command's name, of which completion is told
    entry.write_text(ENTRY)
    for typed, completed in {
        "dpo-recipes tr": "train",
        "dpo-recipes train quick": "quickstart",
        "dpo-recipes new mine --from start": "starter",
        "dpo-recipes train quickstart --res": "--resume",
    }.items():
        environment = {
            **os.environ,
            "PYTHONPATH": str(installed),
            "_DPO_RECIPES_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        }
        done = subprocess.run([sys.executable, entry], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert (done.stdout.split(), done.stderr) == ([completed], ""), typed


def test_what_a_spawned_loader_of_batches_is_sent_can_be_sent(tiny, tmp_path):
    """With trl.dataloader_num_workers and without fork, data set and collator are pickled."""
    recipe = short_recipe(tiny(), tmp_path / "unread")
    trainer = trainer_of(recipe, make_pairs(8), make_pairs(4), tmp_path)
    for sent in (trainer.train_dataset, trainer.data_collator):
        assert len(ForkingPickler.dumps(sent)) > 0


SPAWNING = """
import sys
from dpo_recipes.__main__ import main

if __name__ == "__main__":
    import multiprocessing
    import multiprocess

    multiprocessing.set_start_method("spawn")
    multiprocess.set_start_method("spawn")
    main()
"""


@pytest.mark.slow
def test_a_run_goes_through_where_processes_are_spawned(tiny, tmp_path):
    """As on macOS and Windows: pairs are tokenised by two processes that begin anew, with a reader of one's own."""
    pairs = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(16))
    write_recipe(
        tmp_path / "mine.py",
        "def reader(row):\n    return row\n\n\n"
        f"recipe = Recipe(model={str(tiny())!r}, data=Data({str(pairs)!r}, reader=reader, eval=0.25), "
        "adapter=LoRA(r=4), global_batch_size=4, max_length=112, "
        "trl={'max_steps': 1, 'dataset_num_proc': 2, 'gradient_checkpointing': False})\n",
    )
    (tmp_path / "spawning.py").write_text(SPAWNING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = [sys.executable, "spawning.py", "train", "mine.py"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12 pairs to train on, 4 held out" in done.stdout and "Traceback" not in done.stderr
    [run] = (tmp_path / "runs").iterdir()
    assert (run / "model" / "adapter_model.safetensors").exists()

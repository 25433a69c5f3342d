"""The house rules, read from the syntax tree: what imports what, how large files are, what may not appear."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dpo_recipes

PACKAGE = Path(dpo_recipes.__file__).parent
FILES = {f.stem: f for f in PACKAGE.glob("*.py")}
TREES = {name: ast.parse(f.read_text(encoding="utf-8")) for name, f in FILES.items()}

LIGHT = {"errors", "losses", "dpoconfig", "recipe", "overrides", "catalogue", "settings"}
PARTS = {
    "data", "rows", "sources", "tokens", "sampling", "guard", "rundir", "progress", "shared_prefix",
    "reference_cache", "plan",
}  # fmt: skip
VERBS = {
    "preview", "check", "doctor", "train", "evaluate", "pairs", "sweep", "report", "export", "bench", "launch",
}  # fmt: skip
BELOW = {"model", "trainer", "start"}  # between the parts and the verbs
VERB_MAY = {"train": {"evaluate"}, "sweep": {"train", "evaluate"}, "bench": {"train", "evaluate"}}
# Part -> parts it may import; rundir's load_model is lazy, so that reading a run's numbers needs no model code.
PART_MAY = {"data": {"rows", "sources"}}
ONLY = {  # library -> the modules that may import it, also inside a function
    "typer": {"cli"},
    "peft": {"model"},
    "bitsandbytes": {"model"},
    "trl": {"trainer", "bench", "export"},
    "matplotlib": {"report", "sweep"},
}


def imports(name: str, *, top: bool = False, types: bool = False) -> set[str]:
    """What a module imports: `.x` for siblings, the first part of the name for others; `top` leaves functions out."""

    def walk(node: ast.AST):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not types:
                continue
            if top and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            yield child
            yield from walk(child)

    found = set()
    for node in walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {f".{node.module}"} if node.module else {f".{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def siblings(name: str, **how: bool) -> set[str]:
    return {found[1:] for found in imports(name, **how) if found.startswith(".")}


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_the_light_modules_import_the_standard_library_and_each_other(name):
    for found in imports(name, top=True):
        assert found[1:] in LIGHT if found.startswith(".") else found in sys.stdlib_module_names, found


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_imported_by_its_module_only(library):
    assert {name for name in FILES if library in imports(name)} <= ONLY[library]


def test_nothing_imports_the_command_line():
    assert {name for name in FILES if "cli" in siblings(name, types=True)} == {"__main__"}


@pytest.mark.parametrize("name", sorted(PARTS & FILES.keys()))
def test_parts_do_not_import_each_other_nor_what_stands_above(name):
    above = {*BELOW, "cli", *VERBS} - ({"model"} if name == "rundir" else set())
    assert siblings(name) & (PARTS | above) <= PART_MAY.get(name, set())
    assert not siblings(name, top=True) & above


def test_the_one_lazy_import_of_the_model_is_in_load_model():
    [function] = [n for n in ast.walk(TREES["rundir"]) if isinstance(n, ast.FunctionDef) and n.name == "load_model"]
    assert [n.module for n in ast.walk(function) if isinstance(n, ast.ImportFrom)] == ["model"]


@pytest.mark.parametrize("name", sorted(VERBS & FILES.keys()))
def test_verbs_do_not_import_verbs(name):
    assert siblings(name) & VERBS <= VERB_MAY.get(name, set())


@pytest.mark.parametrize("name", sorted(BELOW & FILES.keys()))
def test_model_trainer_and_start_stand_below_the_verbs(name):
    assert not siblings(name) & VERBS


def test_no_module_is_named_after_nothing():
    assert not FILES.keys() & {"utils", "util", "common", "helpers", "manager", "factory", "base", "misc", "core"}


CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_dangerous_is_called(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in CALLS, ast.unparse(node)
            literal = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
            assert not literal & {"trust_remote_code", "shell"}, ast.unparse(node)
        if isinstance(node, ast.Dict):
            pairs = [(ast.unparse(k), ast.unparse(v)) for k, v in zip(node.keys, node.values, strict=True) if k]
            assert ("'trust_remote_code'", "True") not in pairs
    assert not imports(name) & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "numpy", "bitsandbytes")
RUN = """
import json, sys, time
start = time.perf_counter()
code = 0
try:
    {body}
except SystemExit as error:
    code = error.code
seconds = time.perf_counter() - start
print(json.dumps([code, [m for m in {heavy!r} if m in sys.modules], seconds]), file=sys.stderr)
"""


def fresh(body: str, where: Path, *argv: str) -> tuple[int, list[str], float]:
    """Run a statement in a fresh interpreter -> (exit code, heavy modules that it imported, seconds)."""
    code = RUN.format(body=body, heavy=HEAVY)
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=where, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return tuple(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["list"], 0), (["list", "--json"], 0), (["show", "smollm3_ultrafeedback", "beta=0.3"], 0),
        (["show", "quickstart"], 0),
        (["new", "mine", "--from", "quickstart"], 0), (["--help"], 0), (["train", "--help"], 0), (["--version"], 0),
        (["trian"], 2), (["train", "quikstart"], 2), (["train", "smollm3_ultrafeedback", "--betta", "1"], 2),
        (["train", "smollm3_ultrafeedback", "trl.max_prompt_length=9"], 2),
        (["train", "zephyr_7b_qlora", "global_batch_size=7"], 2),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_looking_and_mistyping_import_nothing_heavy(tmp_path, argv, code):
    found, heavy, seconds = fresh("from dpo_recipes.cli import main; main()", tmp_path, *argv)
    print(f"dpo-recipes {' '.join(argv)}: {seconds:.2f} s")
    assert heavy == [] and found == code


@pytest.mark.parametrize(
    "body",
    [
        "import dpo_recipes; dpo_recipes.Recipe; dpo_recipes.load; dpo_recipes.PairLogps; dpo_recipes.conformance",
        "from dpo_recipes import toyworld; toyworld.reward",
    ],
)
def test_the_package_and_the_toy_world_import_nothing_heavy(tmp_path, body):
    assert fresh(body, tmp_path)[:2] == (0, [])


def test_public_names_are_what_they_say_however_they_are_reached(tmp_path):
    import importlib

    assert set(dpo_recipes.__all__) >= {"Recipe", "Data", "LoRA", "QLoRA", "PairLogps", "load", "train"}
    module = importlib.import_module("dpo_recipes.train")
    assert dpo_recipes.train is module.train and callable(dpo_recipes.train)
    for name in dpo_recipes.__all__:
        assert getattr(dpo_recipes, name) is not None
    mistyped = "trian"
    with pytest.raises(AttributeError, match="module 'dpo_recipes' has no attribute 'trian'"):
        getattr(dpo_recipes, mistyped)

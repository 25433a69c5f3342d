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
# Module, as `recipe.overrides` -> its file. The recipes that a wheel carries are data, not modules.
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.name != "__init__.py" and "shipped" not in file.parts
}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}

# A room may import the rooms of the lines above its own, and what stands in its own folder.
ORDER = [
    {"errors"},
    {"sentences", "signals"},
    {"side_by_side", "terminal"},
    {"result_tables"},
    {"progress"},
    {"losses"},
    {"formats"},
    {"recipe"},
    {"yaml_files"},
    {"runs"},
    {"data"},
    {"models"},
    {"guard", "shared_prefix"},
    {"training"},
    {"evaluation", "planning", "benchmark"},
    {"exports"},
    {"run_page"},
    {"commands", "cli_options", "command_words", "option_values", "told_once", "toyworld", "smollm2"},
    {"results"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# Reading a run's numbers needs no model code, so that `Run.load_model` reaches up when it is called.
LAZY_EXCEPTIONS = {("runs.folder", "models")}
LIGHT = {"errors", "losses", "formats", "recipe", "yaml_files"}
ONLY = {  # library -> the rooms or modules that may import it, also inside a function
    "typer": {"cli", "cli_options"},
    "peft": {"models", "shared_prefix.lora_linear"},
    "bitsandbytes": {"models"},
    "trl": {"training.trainer", "benchmark.bare", "shared_prefix.cpu_head"},
}
VERB_MAY = {
    "commands.sweep": {"train", "evaluate"},
    "commands.bench": {"train", "evaluate"},
    "commands.rounds": {"pairs", "train"},
}


def room(name: str) -> str:
    return name.partition(".")[0]


def imports(name: str, *, top: bool = False, types: bool = False) -> set[str]:
    """What a module imports: `.room.module` of ours, the first part of others' names; `top` leaves functions out."""

    def walk(node: ast.AST):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not types:
                continue
            if top and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            yield child
            yield from walk(child)

    folder = name.split(".")[:-1]
    imported = set()
    for node in walk(TREES[name]):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - (node.level - 1)]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:  # `from .. import errors` names a module, `from ..errors import nearest` does not
                longer = f"{target}.{alias.name}".strip(".")
                imported.add("." + (longer if longer in FILES else target))
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    return imported


def siblings(name: str, **which: bool) -> set[str]:
    return {imported[1:] for imported in imports(name, **which) if imported.startswith(".")}


def test_the_rules_below_see_the_whole_package():
    assert {room(name) for name in FILES} <= LEVEL.keys()
    assert len(FILES) >= 30 and sum(len(siblings(name)) for name in FILES) > 100
    assert siblings("commands.train") >= {"recipe.recipe", "runs.folder", "errors"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_room_imports_only_what_stands_before_it(name):
    for other in siblings(name):
        assert other in FILES or f"{other}.__init__" in FILES or other == "", (
            f"{name} imports {other}, which is no file"
        )
        if room(other) == room(name) or (name, room(other)) in LAZY_EXCEPTIONS:
            continue
        assert LEVEL[room(other)] < LEVEL[room(name)], f"{name} imports {other}"


def test_what_reaches_up_does_so_inside_a_function():
    for name, upper in LAZY_EXCEPTIONS:
        assert upper in map(room, siblings(name)) and upper not in map(room, siblings(name, top=True))


@pytest.mark.parametrize("folder", sorted({room(name) for name in FILES if "." in name}))
def test_no_folder_imports_itself_in_a_circle(folder):
    within = {}
    for name in FILES:
        if room(name) == folder:
            within[name] = {other for other in siblings(name) if room(other) == folder}

    # Take away what imports nothing that is left, again and again: what stays imports itself in a circle.
    while within:
        free = [name for name, others in within.items() if not others & within.keys()]
        assert free, f"in a circle: {sorted(within)}"
        for name in free:
            del within[name]


@pytest.mark.parametrize("name", sorted(name for name in FILES if room(name) in LIGHT))
def test_the_light_rooms_import_the_standard_library_and_each_other(name):
    for imported in imports(name, top=True):
        assert room(imported[1:]) in LIGHT if imported.startswith(".") else imported in sys.stdlib_module_names, (
            imported
        )


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_imported_by_its_room_only(library):
    importers = {name for name in FILES if library in imports(name)}
    assert {name for name in importers if not {name, room(name)} & ONLY[library]} == set()
    assert importers, f"nothing imports {library}: is its name still right?"


def test_nothing_imports_the_command_line():
    assert {name for name in FILES if "cli" in siblings(name, types=True)} == {"__main__"}


@pytest.mark.parametrize("name", sorted(name for name in FILES if room(name) == "commands"))
def test_verbs_do_not_import_verbs(name):
    others = {other.partition(".")[2] for other in siblings(name) if room(other) == "commands"}
    assert others <= VERB_MAY.get(name, set())


@pytest.mark.parametrize("name", sorted(name for name in FILES if room(name) == "commands"))
def test_a_verb_is_a_function_of_the_name_of_its_file(name):
    verb = name.partition(".")[2]
    functions = {node.name for node in TREES[name].body if isinstance(node, ast.FunctionDef)}
    assert {verb, f"{verb}_"} & functions or verb == "recipes"


def test_no_room_is_named_after_nothing():
    words = {word for name in FILES for word in name.split(".")}
    assert not words & {"utils", "util", "common", "helpers", "manager", "factory", "base", "misc", "core"}


def test_a_folder_says_what_it_holds():
    for folder in {file.parent for file in FILES.values()}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder


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
import json, os, sys, time
told = []
for body, argv in json.loads(os.environ["BODIES"]):
    sys.argv = argv
    start = time.perf_counter()
    code = 0
    try:
        exec(body)
    except SystemExit as error:
        code = error.code
    told.append([code, [m for m in {heavy!r} if m in sys.modules], time.perf_counter() - start])
print(json.dumps(told), file=sys.stderr)
"""


def fresh(bodies: list[tuple[str, list[str]]], where: Path) -> list[tuple[int, list[str], float]]:
    """Run statements one after the other in a fresh interpreter, each with its arguments of the command line.

    -> of each its exit code, the heavy modules that are imported by then, and its seconds.
    """
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "BODIES": json.dumps(bodies)}
    run = [sys.executable, "-c", RUN.format(heavy=HEAVY)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=where, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return [tuple(each) for each in json.loads(done.stderr.splitlines()[-1])]


QUICK_COMMANDS = [
    (["list"], 0),
    (["list", "--json"], 0),
    (["show", "smollm3_ultrafeedback", "beta=0.3"], 0),
    (["show", "quickstart"], 0),
    (["train", "quickstart", "data.path=my.jsonl"], 2),
    (["new", "mine", "--from", "quickstart"], 0),
    (["new", "my_own"], 0),
    (["--help"], 0),
    (["train", "--help"], 0),
    (["--version"], 0),
    (["trian"], 2),
    (["train", "quikstart"], 2),
    (["train", "smollm3_ultrafeedback", "--betta", "1"], 2),
    (["train", "smollm3_ultrafeedback", "trl.max_prompt_length=9"], 2),
    (["train", "zephyr_7b_qlora", "global_batch_size=7"], 2),
]


@pytest.mark.slow
def test_looking_and_mistyping_import_nothing_heavy(tmp_path):
    command_line = "from dpo_recipes.cli import main; main()"
    told = fresh([(command_line, ["dpo-recipes", *argv]) for argv, _ in QUICK_COMMANDS], tmp_path)
    for (argv, code), (found, heavy, seconds) in zip(QUICK_COMMANDS, told, strict=True):
        print(f"dpo-recipes {' '.join(argv)}: {seconds:.2f} s")
        assert heavy == [] and found == code, argv


@pytest.mark.parametrize(
    "body",
    [
        "import dpo_recipes; dpo_recipes.Recipe; dpo_recipes.load; dpo_recipes.PairLogps; dpo_recipes.conformance",
        "from dpo_recipes import toyworld; toyworld.reward",
    ],
)
def test_the_package_and_the_toy_world_import_nothing_heavy(tmp_path, body):
    [told] = fresh([(body, [])], tmp_path)
    assert told[:2] == (0, [])


def test_public_names_are_what_they_say_however_they_are_reached(tmp_path):
    from dpo_recipes.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    values = {
        "Recipe",
        "Data",
        "LoRA",
        "QLoRA",
        "RewardModel",
        "Endpoint",
        "JudgeEndpoint",
        "PairLogps",
        "Run",
        "RecipeError",
    }
    assert set(dpo_recipes.__all__) == values | {"load", "apply", "conformance", "rounds"} | verbs
    for name in dpo_recipes.__all__:
        assert getattr(dpo_recipes, name) is not None
    mistyped = "trian"
    with pytest.raises(AttributeError, match="module 'dpo_recipes' has no attribute 'trian'"):
        getattr(dpo_recipes, mistyped)

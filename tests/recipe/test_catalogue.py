"""Recipe files: found by name or path, loaded as values, and a broken one is one sentence."""

from __future__ import annotations

import sys

import pytest
from making import RECIPE, write_recipe

from dpo_recipes import Recipe, load
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.recipe.catalogue import SHIPPED, find, recipe_files

pytestmark = pytest.mark.usefixtures("here")


def test_names_are_the_files_of_both_folders_and_here_wins(here):
    shipped = {f.stem: f for f in SHIPPED.glob("*.py")}
    assert recipe_files() == dict(sorted(shipped.items()))
    mine, own = write_recipe(here / "recipes/mine.py"), write_recipe(here / "recipes/quickstart.py")
    write_recipe(here / "recipes/_part.py")
    (here / "recipes/folder.py").mkdir()
    assert recipe_files() == dict(sorted((shipped | {"mine": mine, "quickstart": own}).items()))
    assert load("quickstart").model == "m" and load("quickstart").source == own


def test_load_by_name_by_path_and_by_path_object(here):
    path = write_recipe(here / "sub/some.py")
    for given in ("sub/some.py", "./sub/some.py", str(path), path):
        recipe = load(given)
        assert isinstance(recipe, Recipe) and recipe.source == path and recipe.name == "some"
    write_recipe(here / "plain.py")
    assert load("plain.py").name == "plain"


def test_a_file_leaves_nothing_beside_it_and_what_it_prints_goes_to_stderr(here, capsys):
    write_recipe(here / "p.py", "print('hello')\n" + RECIPE)
    load("p.py")
    assert capsys.readouterr() == ("", "hello\n")
    assert [f.name for f in here.iterdir()] == ["p.py"]


def test_a_changed_file_is_read_again_and_two_of_one_stem_do_not_mix(here):
    write_recipe(here / "a/x.py", RECIPE.replace('"m"', '"one"'))
    write_recipe(here / "b/x.py", RECIPE.replace('"m"', '"two"'))
    assert (load("a/x.py").model, load("b/x.py").model) == ("one", "two")
    write_recipe(here / "a/x.py", RECIPE.replace('"m"', '"six"'))
    assert load("a/x.py").model == "six"


def test_a_function_of_the_file_is_its_loss(here):
    write_recipe(
        here / "own.py",
        "def mine(pairs, *, beta):\n    return -beta * pairs.h\n\n" + RECIPE.replace(")\n", ", loss=mine)\n"),
    )
    recipe = load("own.py")
    assert recipe.loss_names == {"mine"} and sys.modules[recipe.loss.__module__].mine is recipe.loss


def test_a_recipe_may_be_made_in_steps(tmp_path):
    body = "recipe = Recipe(model='m', data=Data('d'))\nrecipe = recipe.evolve(beta=0.3)\n"
    assert load(write_recipe(tmp_path / "steps.py", body)).beta == 0.3


def test_a_folder_is_no_recipe_and_its_files_are_named(tmp_path):
    write_recipe(tmp_path / "mine.py")
    with pytest.raises(UsageError, match=r"is a folder, and a recipe is a Python file. Files in it: mine.py."):
        load(tmp_path)


BROKEN = [
    ('recipe = Recipe(model="m"\n    data=Data("d"))', ", line 2: this is not valid Python: "),
    ("  recipe = 1", ", line 2: this is not valid Python: unexpected indent."),
    ("import no_such_module", ", line 2: ModuleNotFoundError: No module named 'no_such_module'."),
    ("from dpo_recipes import Recepie", ", line 2: ImportError: cannot import name 'Recepie'"),
    ("x = 1", " must define `recipe = Recipe(...)`, and nothing of that name is in it."),
    ("receipe = Recipe(model='m', data=Data('d'))", "and nothing of that name is in it."),
    (
        "recipe = Recipe(model='m', data=Data('d'))\nrecipe = Recipe(model='n', data=Data('d'))",
        " must define `recipe` once, and does so in lines 2 and 3: only the last would be used. Delete the others",
    ),
    ("recipe = {'model': 'm'}", " must define `recipe = Recipe(...)`, not a value of type dict."),
    ("recipe = Recipe", "not a value of type type."),
    ("def f():\n    return 1 / 0\n\nf()", ", line 3: ZeroDivisionError: division by zero."),
    ("raise ValueError", ", line 2: ValueError."),
    ("raise ValueError('one\\ntwo.')", ", line 2: ValueError: one two."),
    ("import sys\nsys.exit(3)", ", line 3: SystemExit: 3."),
    ("def f():\n    f()\n\nf()", ": RecursionError: maximum recursion depth exceeded"),
    (
        "recipe = Recipe(model='m')",
        ", line 2: TypeError: Recipe.__init__() missing 1 required keyword-only argument: 'data'.",
    ),
    (
        "recipe = Recipe('m', Data('d'))",
        ", line 2: TypeError: Recipe.__init__() takes 1 positional argument but 3 were given.",
    ),
    ("recipe = Recipe(model='m', data='d')", ", line 2: Recipe.data='d' must be Data(...)."),
    (
        "recipe = Recipe(\n    model='m', data=Data('d'),\n    adapter=LoRA(\n        r=0))",
        ", line 4: LoRA.r=0 must be at least 1.",
    ),
    (
        "recipe = Recipe(model='m', data=Data('d'), max_prompt_length=512)",
        ", line 2: Recipe has no field 'max_prompt_length'. max_prompt_length is gone since TRL 0.29: set max_length",
    ),
    (
        "recipe = Recipe(model='m', data=Data('d'), warmup_ratio=0.1)",
        "is gone from transformers 5: trl={'warmup_steps': 0.1}",
    ),
    ("recipe = Recipe(model='m', data=Data('d'), warmup_steps=9)", "(in a recipe file trl={'warmup_steps': VALUE})."),
    ("recipe = Recipe(model='m', data=Data('d'), lr=1)", "Recipe has no field 'lr'. Write learning_rate=VALUE."),
    ("recipe = Recipe(model='m', data=Data('d'), betta=1)", "Recipe has no field 'betta'. Did you mean 'beta'?"),
    (
        "recipe = Recipe(model='m', data=Data('d'), r=8)",
        "Recipe has no field 'r'. Write adapter.r=VALUE (in a recipe file adapter=LoRA(",
    ),
    ("recipe = Recipe(model='m', data=Data('d'), adapter=LoRA(beta=8))", "LoRA has no field 'beta'. Write beta=VALUE."),
    (
        "recipe = Recipe(model='m', data=Data('d'), trl={'max_prompt_length': 9})",
        ", line 2: trl.max_prompt_length=9 is gone since TRL 0.29",
    ),
    (
        "def my(pairs, beta):\n    return pairs.h\n\nrecipe = Recipe(model='m', data=Data('d'), loss=my)",
        ", line 5: The loss my(pairs, beta) must",
    ),
    (RECIPE + "recipe.beta = 0.3", ", line 3: FrozenInstanceError: cannot assign to field 'beta'."),
]


@pytest.mark.parametrize(("body", "message"), BROKEN)
def test_a_broken_file_is_one_sentence_with_its_line_and_exit_code_1(here, body, message):
    path = write_recipe(here / "broken.py", body)
    before = {m for m in sys.modules if m.startswith("dpo_recipes_file_")}
    with pytest.raises(RecipeError) as error:
        load("broken.py")
    assert str(error.value).startswith(f"{path}") and message in str(error.value)
    assert not isinstance(error.value, UsageError) and "\n" not in str(error.value)
    assert {m for m in sys.modules if m.startswith("dpo_recipes_file_")} == before or "must define" in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"), [(b"recipe = '\xff'\n", "can't decode byte 0xff"), (b"a\0b", "null bytes")]
)
def test_a_file_that_is_not_text(here, data, message):
    (here / "bytes.py").write_bytes(data)
    with pytest.raises(RecipeError, match="this is not valid Python") as error:
        load("bytes.py")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "smollm3",
            " Did you mean 'smollm3_apo' or 'smollm3_apo_lora' or 'smollm3_ultrafeedback'? ",
        ),
        ("quikstart", "There is no recipe 'quikstart'. Did you mean 'quickstart'?"),
        ("quickstart.py", "There is no recipe 'quickstart.py'. Did you mean 'quickstart'?"),
        ("sub/sone.py", "There is no recipe 'sub/sone.py'. Did you mean 'some'?"),
        ("sub/some", "There is no recipe 'sub/some'. Did you mean 'some'?"),
        ("sub", "sub is a folder, and a recipe is a Python file. Files in it: some.py."),
        ("sub/notes.txt", "There is no recipe 'sub/notes.txt'."),
        ("no/such/file.py", "There is no recipe 'no/such/file.py'. dpo-recipes list names all"),
        (".", ". is a folder, and a recipe is a Python file. Files in it: none."),
        ("", "There is no recipe ''. dpo-recipes list names all"),
        ("kettle", "There is no recipe 'kettle'. dpo-recipes list names all"),
    ],
)
def test_what_is_not_there_is_said(here, name, message):
    write_recipe(here / "sub/some.py")
    (here / "sub/notes.txt").write_text("x")
    with pytest.raises(UsageError) as error:
        find(name)
    assert str(error.value).startswith(message) or message in str(error.value)
    if "is a folder" not in message:  # which lists its own files
        assert str(error.value).endswith("; a file of yours is given by its path: ./mine.py.")

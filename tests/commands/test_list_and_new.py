"""Recipe files are listed even when broken, and forked under their own name."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import RECIPE, RECIPE_IMPORTS, write_recipe

from dpo_recipes import load
from dpo_recipes.commands.recipes import GROUPS, list_, new
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.losses.selection import name_of
from dpo_recipes.recipe.catalogue import SHIPPED, find, recipe_files

pytestmark = pytest.mark.usefixtures("here")


def test_list_shows_a_broken_file_as_broken(here):
    write_recipe(here / "recipes/a_broken.py", "recipe = Recipe(model='m')")
    write_recipe(
        here / "recipes/a_good.py",
        RECIPE.replace(")\n", ", adapter=QLoRA(r=4), loss={'sigmoid': 1, 'cdpo': 0.5})\n"),
        '"""What.\n\nMore."""\n' + RECIPE_IMPORTS,
    )
    shown = {row["name"]: row for row in list_()}
    assert shown["a_good"] == {
        "name": "a_good",
        "group": "Yours",
        "model": "m",
        "data": "d",
        "loss": "sigmoid + cdpo",
        "adapter": "QLoRA r=4",
        "what": "What.",
        "least_memory": None,
        "most_memory": None,
        "fits": None,
    }
    assert shown["a_broken"]["what"].startswith("broken: line 2: TypeError: Recipe.__init__() missing 1 required")
    assert shown["smollm3_ultrafeedback"]["adapter"] == "LoRA r=32" and not shown["smollm3_ultrafeedback"][
        "what"
    ].startswith("broken")


def test_ones_own_come_first_and_the_others_by_group(here):
    write_recipe(here / "recipes/zebra.py")
    write_recipe(here / "recipes/starter.py")  # which hides a shipped one
    rows = list_()
    assert [row["name"] for row in rows if row["group"] == "Yours"] == ["starter", "zebra"]
    groups = [row["group"] for row in rows]
    assert list(dict.fromkeys(groups)) == ["Yours", *GROUPS]
    assert [row["name"] for row in rows if row["group"] == "To begin with"] == [
        "quickstart",
        "smollm2_135m_cpu",
        "smollm2_135m_my_pairs",
        "smollm2_135m_quick",
    ]


def test_an_unchanged_copy_of_a_shipped_recipe_is_none_of_yours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name in ("starter", "quickstart"):
        text = (SHIPPED / f"{name}.py").read_bytes()
        (tmp_path / "recipes" / f"{name}.py").write_bytes(text if name == "quickstart" else text + b"# mine\n")
    groups = {row["name"]: row["group"] for row in list_()}
    assert (groups["starter"], groups["quickstart"]) == ("Yours", "To begin with")


@pytest.mark.parametrize("source", sorted(f.stem for f in SHIPPED.glob("*.py")))
def test_a_fork_is_the_same_value_under_its_own_name(here, source):
    path = new("mine", source)
    assert path == Path("recipes/mine.py") and path.resolve() == recipe_files()["mine"]
    text, original = path.read_text(encoding="utf-8"), find(source).read_text(encoding="utf-8")
    assert "dpo-recipes train mine" in text and f"train {source}" not in text
    assert text.split('"""')[2] == original.split('"""')[2]  # the code is untouched
    assert fields(load("mine")) == fields(load(source))


def fields(recipe) -> dict:
    """The fields of a recipe, with a function as its name: each file has its own."""
    values = {name: getattr(recipe, name) for name in recipe.given}
    return {name: name_of(value) if callable(value) else value for name, value in values.items()}


def test_a_fork_of_a_file_without_a_header_gets_one(here):
    path = write_recipe(here / "bare.py", RECIPE)
    assert new("mine", "bare.py").read_text() == "# mine: a fork of bare.\n" + path.read_text()


def test_a_fork_changes_the_header_only_and_whole_words_only(here):
    write_recipe(
        here / "abc.py",
        RECIPE.replace('"m"', '"abc"'),
        '"""abc, abc_2, other/abc.py, recipes/abc.py. Command: dpo-recipes train abc"""\n' + RECIPE_IMPORTS,
    )
    text = new("mine", "abc.py").read_text()
    assert (
        text.startswith('"""mine, abc_2, other/abc.py, recipes/mine.py. Command: dpo-recipes train mine"""\n')
        and 'model="abc"' in text
    )


def test_a_fork_never_overwrites(here):
    path = new("mine", "quickstart")
    path.write_text("precious")
    with pytest.raises(UsageError) as error:
        new("mine", "quickstart")
    assert str(error.value) == "recipes/mine.py exists already and stays as it is: choose another name, or delete it."
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("foo-bar", "foo_bar"),
        ("my recipe", "my_recipe"),
        ("recipes/mine.py", "mine"),
        ("../x", "x"),
        ("_mine", "mine"),
        ("3", "my_quickstart"),
        ("é", "my_quickstart"),
        ("", "my_quickstart"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_the_nearest_that_can(here, name, nearest):
    with pytest.raises(UsageError) as error:
        new(name, "quickstart")
    assert str(error.value) == f"{name!r} cannot be a recipe's name: letters, digits and _, such as {nearest}."


def test_without_a_source_it_is_the_template_that_is_copied(here):
    text = new("mine").read_text()
    assert "dpo-recipes train mine" in text and "starter" not in text
    assert (load("mine").model, load("mine").data.path) == ("./my_model", "./my_pairs.jsonl")


def test_a_fork_needs_a_start_that_loads_and_a_folder_that_can_be_made(here):
    write_recipe(here / "broken.py", "recipe = 1")
    with pytest.raises(RecipeError, match="must define"):
        new("mine", "broken.py")
    with pytest.raises(UsageError, match="There is no recipe 'nope'"):
        new("mine", "nope")
    (here / "recipes").write_text("a file")
    with pytest.raises(RecipeError, match=r"recipes/mine\.py cannot be written: "):
        new("mine", "quickstart")

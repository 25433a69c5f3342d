"""Finds and loads recipe files. The folder listing is the registry: `./recipes` wins over the shipped ones."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..errors import RecipeError, UsageError, nearest
from .data import FILE_SUFFIXES
from .overrides import where_it_belongs
from .recipe import Recipe

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = _PACKAGE / "shipped"
_IN_CHECKOUT = _PACKAGE.parent / "recipes"
SHIPPED = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT


def recipe_files() -> dict[str, Path]:
    """Recipe name -> file, sorted by name; a file in `./recipes` hides a shipped one of the same name."""
    files = {}
    for folder in (SHIPPED, Path("recipes").resolve()):
        for file in folder.glob("*.py"):
            if file.is_file() and not file.name.startswith("_"):
                files[file.stem] = file
    return dict(sorted(files.items()))


def shipped_names() -> list[str]:
    """The names of the recipes that come with this package, sorted."""
    return sorted(file.stem for file in SHIPPED.glob("*.py"))


def find(name: str) -> Path:
    """The file of a recipe given by name, or by a path that ends in .py."""
    known = recipe_files()
    if name in known:
        return known[name]

    path = Path(name).expanduser()
    if path.suffix == ".py" and path.is_file():
        return path.resolve()

    if name and path.is_dir():
        inside = sorted(file.name for file in path.glob("*.py"))
        raise UsageError(
            f"{name} is a folder, and a recipe is a Python file. Files in it: {', '.join(inside) or 'none'}."
        )
    if name.endswith(FILE_SUFFIXES) and path.is_file():
        raise UsageError(
            f"{name} is a file of data, and a recipe is a Python file. As the data of one: "
            f"dpo-recipes check starter data.path={name}"
        )
    raise UsageError(
        f"There is no recipe {name!r}.{_nearest_recipe(name, known)} dpo-recipes list names all of them; a file of "
        "yours is given by its path: ./mine.py."
    )


def _nearest_recipe(name: str, known: dict[str, Path]) -> str:
    """The sentence ` Did you mean 'x'?`, or nothing; recipes that begin with the name are nearer than any other."""
    beginning_so = [repr(other) for other in known if name and other.startswith(name)]
    if beginning_so:
        return f" Did you mean {' or '.join(beginning_so)}?"

    path = Path(name).expanduser()
    beside = [file.stem for file in path.parent.glob("*.py")]
    return nearest(path.stem, [*known, *beside])


def load(name: str | Path) -> Recipe:
    """The recipe value of a name or a path. Importing the file runs it, as any Python file; it starts nothing.

    UsageError where there is no such file; RecipeError, with the line, where it is no recipe.
    """
    path = find(str(name))
    recipe = getattr(_import(path), "recipe", None)
    _refuse_second_recipe(path)
    if recipe is None:
        raise RecipeError(f"{path} must define `recipe = Recipe(...)`, and nothing of that name is in it.")
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{path} must define `recipe = Recipe(...)`, not a value of type {type(recipe).__name__}.")
    return recipe.from_where(source=path)


def _refuse_second_recipe(path: Path) -> None:
    """A second `recipe = ...` that does not build on the first, which would be forgotten in silence."""
    assigned: list[int] = []  # lines
    for statement in ast.parse(path.read_bytes()).body:
        if not isinstance(statement, ast.Assign):
            continue
        is_of_recipe = any(isinstance(target, ast.Name) and target.id == "recipe" for target in statement.targets)
        builds_on_it = any(isinstance(node, ast.Name) and node.id == "recipe" for node in ast.walk(statement.value))
        if is_of_recipe and not builds_on_it:
            assigned.append(statement.lineno)
    if len(assigned) > 1:
        raise RecipeError(
            f"{path} must define `recipe` once, and does so in lines {' and '.join(map(str, assigned))}: only the last "
            "would be used. Delete the others, or give each a file."
        )


def _import(path: Path) -> ModuleType:
    # A dataclass or a pickled reader in the file looks its module up in sys.modules, so it must be there, under a
    # name that two files of the same stem do not share.
    module_name = re.sub(r"\W", "_", f"dpo_recipes_file_{path}")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        # What the file prints must not end up in --json.
        with _no_bytecode_written(), contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise RecipeError(f"{path}{_place_and_reason(error, path)}") from None
    return module


@contextlib.contextmanager
def _no_bytecode_written() -> Iterator[None]:
    """Leave no __pycache__ beside a user's file."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _place_and_reason(error: BaseException, path: Path) -> str:
    """`, line N: ` in a recipe file, as far as it is known, and what went wrong there."""
    if isinstance(error, SyntaxError):
        line = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)

    place = f", line {line}" if line else ""
    return f"{place}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """What went wrong, in one sentence, and for a misplaced name where it belongs."""
    if isinstance(error, SyntaxError):
        return f"this is not valid Python: {(error.msg or '').rstrip('.?')}."
    if isinstance(error, RecipeError):
        return str(error)

    text = " ".join(str(error).split()).rstrip(".")
    unknown_field = re.search(r"unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and unknown_field:
        cls = text.partition(".")[0]  # of `Recipe.__init__() got an unexpected keyword argument 'betta'`
        name = unknown_field[1]
        return f"{cls} has no field {name!r}.{where_it_belongs(name)}"

    if text:
        return f"{type(error).__name__}: {text}."
    return f"{type(error).__name__}."

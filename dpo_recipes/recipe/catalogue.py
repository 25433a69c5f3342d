"""Finds and loads recipe files. The folder listing is the registry: `./recipes` wins over the shipped ones."""

import contextlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path

from ..errors import RecipeError, UsageError, nearest
from .overrides import home
from .recipe import Recipe

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL, _IN_CHECKOUT = _PACKAGE / "shipped", _PACKAGE.parent / "recipes"
SHIPPED = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT


def recipe_files() -> dict[str, Path]:
    """Recipe name -> file, sorted by name; a file in `./recipes` hides a shipped one of the same name."""
    files = [f for folder in (SHIPPED, Path("recipes").resolve()) for f in folder.glob("*.py") if f.is_file()]
    return {f.stem: f for f in sorted(files, key=lambda f: f.stem) if not f.name.startswith("_")}


def find(name: str) -> Path:
    """The file of a recipe given by name, or by a path that ends in .py."""
    known, path = recipe_files(), Path(name).expanduser()
    if name in known:
        return known[name]
    if path.suffix == ".py" and path.is_file():
        return path.resolve()
    begins = [f" Did you mean {n!r}?" for n in known if name and n.startswith(name)]
    near = begins[0] if begins else nearest(path.stem, [*known, *(f.stem for f in path.parent.glob("*.py"))])
    raise UsageError(f"There is no recipe {name!r}.{near} Recipes by name: {', '.join(known)}; by path: ./mine.py.")


def load(name: str | Path) -> Recipe:
    """The recipe value of a name or a path. Importing the file runs it, as any Python file; it starts nothing."""
    path = find(str(name))
    # A dataclass or a pickled reader in the file looks its module up in sys.modules, so it must be there, under a
    # name that two files of the same stem do not share.
    module_name = re.sub(r"\W", "_", f"dpo_recipes_file_{path}")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    caching, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # leave no __pycache__ beside a user's file
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the file prints must not end up in --json
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise RecipeError(f"{path}{_reason(error, path)}") from None
    finally:
        sys.dont_write_bytecode = caching
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{path} must define `recipe = Recipe(...)`, not a value of type {type(recipe).__name__}.")
    object.__setattr__(recipe, "source", path)
    return recipe


def _reason(error: BaseException, path: Path) -> str:
    """Where in a recipe file, what went wrong, and for a misplaced name where it belongs."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    text = " ".join(str(error).split()).rstrip(".")
    why = f"{type(error).__name__}{f': {text}' if text else ''}."
    if isinstance(error, SyntaxError):
        lines, why = [error.lineno], f"this is not valid Python: {(error.msg or '').rstrip('.?')}."
    elif isinstance(error, RecipeError):
        why = str(error)
    elif isinstance(error, TypeError) and (word := re.search(r"unexpected keyword argument '(\w+)'", text)):
        why = f"{text.partition('.')[0]} has no field {word[1]!r}.{home(word[1])}"
    return f", line {lines[-1]}: {why}" if lines and lines[-1] else f": {why}"

"""Finds, loads and forks recipe files. The folder listing is the registry: `./recipes` wins over the shipped ones."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path

from .errors import RecipeError, UsageError, nearest
from .losses import name_of
from .overrides import home
from .recipe import Recipe

_HERE = Path(__file__).resolve().parent
SHIPPED = _HERE / "recipes" if (_HERE / "recipes").is_dir() else _HERE.parent / "recipes"  # in a wheel | in a checkout


def names() -> dict[str, Path]:
    """Recipe name -> file, sorted by name; a file in `./recipes` hides a shipped one of the same name."""
    found: dict[str, Path] = {}
    for folder in (SHIPPED, Path("recipes").resolve()):
        if folder.is_dir():
            found |= {f.stem: f for f in folder.glob("*.py") if not f.name.startswith("_") and f.is_file()}
    return dict(sorted(found.items()))


def find(name: str) -> Path:
    """The file of a recipe given by name, or by a path that ends in .py."""
    known, path = names(), Path(name).expanduser()
    if name in known:
        return known[name]
    if path.suffix == ".py" and path.is_file():
        return path.resolve()
    begins = [f" Did you mean {n!r}?" for n in known if name and n.startswith(name)]
    what, near = "recipe", begins[0] if begins else nearest(path.stem, known)
    if name and (path.suffix or "/" in name or path.is_dir()):
        folder = path if path.is_dir() else path.parent
        files = {f.stem: f.name for f in sorted(folder.glob("*.py"))} if folder.is_dir() else {}
        what = "recipe file"
        if path.is_dir():
            near = f" It is a folder, with {', '.join([*files.values()][:9]) or 'no recipe file in it'}."
        elif path.stem not in known:
            near = nearest(path.stem, files) or near
    raise UsageError(
        f"There is no {what} {name!r}.{near} Recipes by name: {', '.join(known)}; by path, such as ./mine.py."
    )


def load(name: str | Path) -> Recipe:
    """The recipe value of a name or a path. Importing the file runs it, as any Python file; it starts nothing."""
    path = find(str(name))
    # A dataclass or a pickled reader in the file looks its module up in sys.modules, so it must be there, under a
    # name that two files of the same stem do not share.
    module_name = f"dpo_recipes_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
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
        others = [n for n, value in vars(module).items() if isinstance(value, Recipe)]
        found = f"a value of type {type(recipe).__name__}" if recipe is not None else "nothing of that name"
        found += f", but {others[0]!r} is a Recipe: rename it" if others else ""
        raise RecipeError(f"{path} must define `recipe = Recipe(...)`; it has {found}.")
    object.__setattr__(recipe, "source", path)
    return recipe


def _reason(error: BaseException, path: Path) -> str:
    """Where in a recipe file, what went wrong, and for a misplaced name where it belongs."""
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno}" if error.lineno else ""
        return f"{line}: this is not valid Python: {(error.msg or '').rstrip('.?')}."
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = f", line {lines[-1]}" if lines else ""
    text = str(error).strip().replace("\n", " ").rstrip(".")
    if isinstance(error, RecipeError):
        return f"{line}: {error}"
    if isinstance(error, TypeError) and (word := re.search(r"unexpected keyword argument '(\w+)'", text)):
        owner = text.partition(".")[0]
        return f"{line}: {owner} has no field {word[1]!r}.{home(word[1])}"
    return f"{line}: {type(error).__name__}{f': {text}' if text else ''}."


def summary(path: Path) -> str:
    """The first line of a recipe file's docstring: what it is."""
    try:
        text = ast.get_docstring(ast.parse(importlib.util.decode_source(path.read_bytes()))) or ""
    except (SyntaxError, UnicodeDecodeError):
        return "(not valid Python)"
    return text.strip().split("\n")[0]


def rows() -> list[dict[str, str]]:
    """One dict per recipe: name, model, data, loss, adapter, and a line of what it is; there a broken file says so."""
    found = []
    for name, path in names().items():
        row = {"name": name, "model": "", "data": "", "loss": "", "adapter": ""}
        try:
            recipe = load(path)
        except RecipeError as error:
            found.append({**row, "what": f"broken: {str(error).removeprefix(f'{path}, ')}"})
            continue
        row |= {"model": recipe.model, "data": recipe.data.path, "loss": " + ".join(map(name_of, recipe.weights))}
        adapter = recipe.adapter
        row["adapter"] = f"{type(adapter).__name__} r={adapter.r}" if adapter else "full"
        found.append({**row, "what": summary(path)})
    return found


def new(name: str, source: str, folder: Path | str = "recipes") -> Path:
    """Fork a recipe: copy its file to `folder`/`name`.py, its header already naming itself; never overwrites."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        better = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_0123456789") or f"my_{find(source).stem}"
        raise UsageError(f"{name!r} cannot be a recipe's name: letters, digits and _, such as {better}.")
    original, target = find(source), Path(folder) / f"{name}.py"
    load(original)  # a file that does not load is no start
    text = importlib.util.decode_source(original.read_bytes())
    docstring = ast.parse(text).body[0].end_lineno if ast.get_docstring(ast.parse(text)) else 0
    lines = text.splitlines(keepends=True)
    header = re.sub(rf"(?<![\w/]){re.escape(original.stem)}(?!\w)", name, "".join(lines[:docstring]))
    if name not in header:
        header = f"# {name}: a fork of {original.stem}.\n{header}"
    text = header + "".join(lines[docstring:])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if target.exists():
            raise UsageError(
                f"{target} exists already and stays as it is: choose another name, or delete it."
            ) from None
        raise RecipeError(f"{target} cannot be written: {error.strerror}.") from None
    return target

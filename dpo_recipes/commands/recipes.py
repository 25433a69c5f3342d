"""The recipe files themselves: list what there is, fork one into a new file."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

from ..errors import RecipeError, UsageError
from ..losses.selection import name_of
from ..planning.amounts import USABLE, parse_memory
from ..planning.needs import Needs, needs
from ..recipe import catalogue
from ..yaml_files.read import Imported, read_yaml, text_of_recipe

TEMPLATE = "starter"  # the recipe that is made to be copied
# What a shipped recipe's header says behind `Group`, in the order of the list; above them stand one's own.
YOURS = "Yours"
GROUPS = ("To begin with", "One GPU", "Published runs", "The DPO paper", "Losses and methods")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def list_(*, model: str | None = None, adapter: str | None = None, gpu: str | None = None) -> list[dict[str, Any]]:
    """Every recipe, by group and name, as a dict: name, group, model, data, loss, adapter, what it is; and its memory.

    `model`: only those whose model has this in its name, whatever the case; `adapter`: none, lora or qlora. `gpu`, such
    as "24GB": not those that cannot fit into so much. Then `least_memory` and `most_memory` are bytes between which the
    need of a run lies, where the model's shape is known, and `fits` is True where the most does and None where it
    cannot be told. A file that does not load is listed too, unless there is such a filter: its `what` says what is
    wrong with it, and all else is empty.
    """
    memory = None if gpu is None else int(USABLE * parse_memory(gpu))
    rows = [_summary(name, path, memory) for name, path in catalogue.recipe_files().items()]
    if model is not None:
        rows = [row for row in rows if model.lower() in row["model"].lower()]
    if adapter is not None:
        kind = "full" if adapter == "none" else adapter
        rows = [row for row in rows if row["adapter"].lower().split(" ")[0] == kind]
    if memory is not None:
        rows = [row for row in rows if row["fits"] is not False and row["model"]]
    return sorted(rows, key=_place_in_list)


def _place_in_list(row: dict[str, Any]) -> tuple[int, str]:
    groups = (YOURS, *GROUPS)
    return groups.index(row["group"]), row["name"]


def _summary(name: str, path: Path, memory: int | None) -> dict[str, Any]:
    """A row of the list; `memory`: the bytes that a run may take, where it is asked whether it fits."""
    texts = dict.fromkeys(("model", "data", "loss", "adapter", "what"), "")
    numbers = dict.fromkeys(("least_memory", "most_memory", "fits"))
    summary: dict[str, Any] = {"name": name, "group": YOURS, **texts, **numbers}
    try:
        recipe = catalogue.load(path)
    except RecipeError as error:
        reason = str(error).removeprefix(f"{path}, ")  # the name stands beside it
        summary["what"] = f"broken: {reason}"
        return summary

    summary["model"] = recipe.model
    summary["data"] = recipe.data.name
    summary["loss"] = " + ".join(name_of(loss) for loss in recipe.weights)
    if recipe.adapter:
        summary["adapter"] = f"{type(recipe.adapter).__name__} r={recipe.adapter.r}"
    else:
        summary["adapter"] = "full"

    header = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    summary["what"] = header.split("\n")[0]
    if _is_shipped(path):
        summary["group"] = _group(header)
    if memory is not None:
        bounds = needs(recipe)
        if bounds is not None:
            summary["least_memory"], summary["most_memory"] = bounds
            summary["fits"] = _fits(bounds, memory)
    return summary


def _is_shipped(path: Path) -> bool:
    """Whether a file is one that comes with the package, or an unchanged copy of it, as in another checkout."""
    shipped = catalogue.SHIPPED / path.name
    return path == shipped or (shipped.is_file() and shipped.read_bytes() == path.read_bytes())


def _fits(bounds: Needs, memory: int) -> bool | None:
    """None where only a plan can tell."""
    if bounds.most < memory:
        return True
    if bounds.least >= memory:
        return False
    return None


def _group(header: str) -> str:
    """The group that a shipped recipe's header names."""
    named = re.search(r"^Group +(.+)$", header, re.M)
    return named[1].strip() if named else GROUPS[-1]


def memory_in_words(row: dict[str, Any]) -> str:
    """What a row of the list says of its memory, such as `fits: 7 to 11 GB`."""
    if row["least_memory"] is None:
        return "memory not known"
    least, most = row["least_memory"] / 1e9, row["most_memory"] / 1e9
    verdict = "fits" if row["fits"] else "may fit"
    return f"{verdict}: {least:.3g} to {most:.3g} GB"


def new(name: str, source: str = TEMPLATE, folder: Path | str = "recipes") -> Path:
    """Fork a recipe: copy the file of `source` to `folder`/`name`.py, its header already naming itself.

    Returns the new file. UsageError where `name` cannot be a recipe's name or its file exists already, since nothing
    is ever overwritten; RecipeError where `source` does not load or the file cannot be written.
    """
    original = catalogue.find(source)
    target = _target(name, original.stem, folder)
    catalogue.load(original)  # a file that does not load is no start
    text = importlib.util.decode_source(original.read_bytes())
    _write(target, _renamed(text, original.stem, name))
    return target


def new_from_yaml(name: str, file: Path | str, folder: Path | str = "recipes") -> tuple[Path, Imported]:
    """A recipe file of the DPO run in a YAML file of TRL, the alignment handbook, Axolotl or LLaMA-Factory.

    Returns the new file, and what was read. UsageError as for `new`, and where the YAML file is no DPO run or cannot be
    said in a recipe.
    """
    target = _target(name, "imported", folder)
    imported = read_yaml(file)
    _write(target, text_of_recipe(name, file, imported))
    return target, imported


def _target(name: str, original: str, folder: Path | str) -> Path:
    """The new file of a recipe. UsageError where it may not have that name, or is there already."""
    if not NAME.fullmatch(name):
        suggestion = _as_a_name(name) or f"my_{original}"
        raise UsageError(f"{name!r} cannot be a recipe's name: letters, digits and _, such as {suggestion}.")
    target = Path(folder) / f"{name}.py"
    if target.exists():
        raise UsageError(f"{target} exists already and stays as it is: choose another name, or delete it.")
    return target


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{target} cannot be written: {error.strerror}.") from None


def _as_a_name(text: str) -> str:
    """The recipe's name nearest to a text, such as `my_recipe` to `my-recipe` and to `recipes/my recipe.py`; or ""."""
    last_part = text.removesuffix(".py").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9]+", "_", last_part).strip("_")
    return name if NAME.fullmatch(name) else ""


def _renamed(text: str, original: str, name: str) -> str:
    """The text of a recipe file whose header names the fork; its code is untouched.

    The header's commands are then those of the fork. Only whole words are replaced, and of paths only the file's own.
    """
    header = ast.get_docstring(ast.parse(text), clean=False) or ""
    new_header = re.sub(rf"(?<![\w/])(recipes/)?{re.escape(original)}(?!\w)", rf"\g<1>{name}", header)
    if name not in new_header:
        return f"# {name}: a fork of {original}.\n{text}"
    return text.replace(header, new_header, 1)

"""A YAML file of TRL, the alignment handbook, Axolotl or LLaMA-Factory as the text of a recipe file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError
from ..recipe.as_python import as_python
from ..recipe.data import Data
from ..recipe.recipe import Recipe
from . import axolotl, llama_factory, trl
from .translation import Translation

# Words in the names of a file and its folders that tell a method of which no key does.
METHOD_WORDS = {"sft": "SFT", "orpo": "ORPO", "kto": "KTO", "grpo": "GRPO", "ppo": "PPO", "cpo": "CPO", "rloo": "RLOO"}


class Imported(NamedTuple):
    """A recipe, and what became of the file that it was read from."""

    recipe: Recipe
    program: str
    left_out: list[tuple[str, str]]  # what is not kept, and why
    notes: list[str]  # what is kept, in other words


def read_yaml(path: Path | str) -> Imported:
    """The DPO run of a file. UsageError where it is another, which is named, or cannot be said in a recipe."""
    path = Path(path)
    values = _values(path)
    try:
        file = _translation(path, values)
        _find_beside(path, file)
        _say_what_is_held_out(file)
        recipe = file.recipe()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return Imported(recipe, file.program, file.left_out, file.notes)


def text_of_recipe(name: str, path: Path | str, imported: Imported) -> str:
    """The recipe file: a header that says what was not kept, then the recipe."""
    lines = [f"{name}: {Path(path).name} of {imported.program}, as a recipe.", ""]
    if imported.notes:
        lines += ["In other words here:", *[f"    {note}" for note in imported.notes], ""]
    if imported.left_out:
        lines += ["Not kept:", *[f"    {said} ({reason})" for said, reason in imported.left_out], ""]
    lines.append(f"Look at it first: dpo-recipes check {name}")
    header = "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{header}\n"""\n\n{as_python(imported.recipe)}'


def _values(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is no YAML: {reason}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{path} holds no settings: a YAML file of a run has a key and a value a line.")
    for key, value in values.items():
        if key.endswith("_strategy") and value is False:  # a bare no, as YAML reads it
            values[key] = "no"
    return values


def _translation(path: Path, values: dict[str, Any]) -> Translation:
    if "base_model" in values or "rl" in values:
        _refuse(axolotl.other_method(values), "Axolotl")
        return axolotl.translate(values)
    if "stage" in values or "finetuning_type" in values:
        _refuse(llama_factory.other_method(values), "LLaMA-Factory")
        return llama_factory.translate(values, path.parent)
    if "model_name_or_path" in values:
        _refuse(trl.other_method(values) or _method_by_name(path, values), "TRL")
        return trl.translate(values)
    if "model" in values and "train_dataset" in values:
        raise UsageError(
            "it is a file of LLaMA-Factory's second version, which does not say what it trains. One of the first, "
            "with stage: dpo, is read."
        )
    raise UsageError(
        "it is no run of TRL, the alignment handbook, Axolotl or LLaMA-Factory: none of model_name_or_path, base_model "
        "and stage is in it."
    )


def _find_beside(path: Path, file: Translation) -> None:
    """A model or pairs that the file names, and that lie beside it, are those."""
    for key in ("model", "data.path"):
        named = file.values.get(key)
        if isinstance(named, str) and (path.parent / named).exists():
            file.values[key] = str((path.parent / named).resolve())


def _say_what_is_held_out(file: Translation) -> None:
    """A recipe always holds pairs out; a file that evaluates on none trains on all of them."""
    is_said = any("data.eval" in reason for _, reason in file.left_out)
    if "data.eval" not in file.values and not is_said:
        file.notes.append(
            f"{Data.eval:.0%} of the pairs are held out, on which the file trains too; data.eval is another share."
        )


def _refuse(method: str | None, program: str) -> None:
    if method is not None:
        raise UsageError(f"it is a run of {program} for {method}, and what is trained here is DPO and its kin.")


def _method_by_name(path: Path, values: dict[str, Any]) -> str | None:
    """The method that the name of a file or of its nearest folders tells, where its keys could be of several."""
    if "loss_type" in values:
        return None
    for part in reversed(path.resolve().parts[-3:]):
        words = set(re.split(r"[\W_]+", part.lower()))
        if "dpo" in words:
            return None
        for word, method in METHOD_WORDS.items():
            if word in words:
                return method
    return None

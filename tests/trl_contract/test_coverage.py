"""Which versions were read, and that every module which knows TRL has a contract, and every contract a module.

A module that knows TRL says so in a line of its docstring, `Leans on TRL 1.16: ...`. Its contract is the file
`test_<folder>_<module>.py` beside this one, whose docstring says what to read again in TRL when its version moves.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import transformers
import trl
from reading_trl import leaning

import dpo_recipes

PACKAGE = Path(dpo_recipes.__file__).parent
MODULES = {f"{file.parent.name}/{file.name}": file for file in PACKAGE.glob("*/*.py") if file.name != "__init__.py"}
CONTRACTS = {file.name: file for file in Path(__file__).parent.glob("test_*.py") if file.name != Path(__file__).name}


def docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def contract_of(module: str) -> str:
    """`training/trainer.py` -> `test_training_trainer.py`."""
    return "test_" + module.replace("/", "_")


def modules_that_lean() -> set[str]:
    return {module for module, file in MODULES.items() if re.search(r"^Leans on TRL", docstring(file), re.MULTILINE)}


def test_the_versions_are_those_that_were_read():
    assert trl.__version__.startswith("1.16."), leaning("every contract beside this one", "TRL 1.16 is installed")
    assert transformers.__version__.startswith("5.23."), leaning("recipe/trl_options.py", "Transformers 5.23")


def test_a_module_that_leans_says_on_which_version_and_for_what():
    assert len(modules_that_lean()) >= 10
    for module in modules_that_lean():
        assert re.search(r"^Leans on TRL 1\.16: \S", docstring(MODULES[module]), re.MULTILINE), module


def test_every_module_that_leans_has_its_contract_and_every_contract_its_module():
    assert {contract_of(module) for module in modules_that_lean()} == CONTRACTS.keys()


def test_every_contract_says_what_to_read_again():
    for name, file in CONTRACTS.items():
        assert "Read again" in docstring(file), name


def test_a_failure_names_files_that_exist():
    named = set()
    for file in CONTRACTS.values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"leaning", "assert_still_reads"}:
                named |= set(ast.literal_eval(node.args[0]).split(", "))
    assert named <= MODULES.keys()
    assert {contract_of(module) for module in named} >= CONTRACTS.keys()

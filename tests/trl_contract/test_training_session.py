"""What training/session.py expects of TRL while a trainer is made.

Read again: the errors that `DPOTrainer.__init__` raises, for each a recipe that would reach it, and the progress bars
that it shows.
"""

from __future__ import annotations

import ast
import importlib
import textwrap

import pytest
from reading_trl import SOURCE, leaning


def test_what_trl_refuses_is_raised_as_an_error_that_becomes_a_sentence():
    tree = ast.parse(textwrap.dedent(SOURCE["__init__"]))
    raised = {ast.unparse(node.exc.func) for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    # A TypeError is of an argument that is no data set, tokenizer or adapter, which no recipe can bring about.
    expected = {"ValueError", "NotImplementedError", "ImportError", "TypeError"}
    assert raised == expected, leaning("training/session.py", "the errors of DPOTrainer.__init__")


def test_the_bar_of_the_reference_pass_is_silenced_by_an_environment_variable():
    text = 'os.environ.get("TQDM_DISABLE"'
    assert text in SOURCE["_precompute_ref_logps"], leaning("training/session.py", "TQDM_DISABLE silences the bar")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers", "PrinterCallback"),
        ("transformers.utils.logging", "disable_progress_bar"),
        ("datasets", "disable_progress_bars"),
    ],
)
def test_a_name_that_we_import_is_there(module, name):
    assert hasattr(importlib.import_module(module), name), leaning("training/session.py", f"{module}.{name}")

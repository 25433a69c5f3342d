"""What training/session.py expects of TRL while a trainer is made.

Read again: the errors that `DPOTrainer.__init__` raises, for each a recipe that would reach it.
"""

from __future__ import annotations

import ast
import textwrap

import transformers
from reading_trl import SOURCE, leaning


def test_what_trl_refuses_is_raised_as_an_error_that_becomes_a_sentence():
    tree = ast.parse(textwrap.dedent(SOURCE["__init__"]))
    raised = {ast.unparse(node.exc.func) for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    # A NotImplementedError is a RuntimeError, and becomes the same sentence. A TypeError is of an argument that is no
    # data set, tokenizer or adapter, which no recipe can bring about.
    expected = {"ValueError", "NotImplementedError", "ImportError", "TypeError"}
    assert raised == expected, leaning("training/session.py", "the errors of DPOTrainer.__init__")


def test_the_callback_that_we_remove_is_there():
    assert hasattr(transformers, "PrinterCallback"), leaning("training/session.py", "transformers.PrinterCallback")
